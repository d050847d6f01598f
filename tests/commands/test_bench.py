"""bnpass bench."""

from __future__ import annotations

from pathlib import Path

from tests.commands.helpers import Run


def test_models_are_timed_side_by_side(bnpass: Run, plain: Path, normed: Path) -> None:
    document = bnpass("bench", plain, normed, "--batches", "1,4", "--runs", "5", "--json").document
    assert {(row["model"], row["batch"]) for row in document["rows"]} == {
        ("plain", 1), ("plain", 4), ("normed", 1), ("normed", 4)
    }
    assert all(row["p50"] > 0 for row in document["rows"])
    assert [ratio["model"] for ratio in document["ratios"]] == ["normed", "normed"]


def test_the_tables_name_the_models(bnpass: Run, plain: Path) -> None:
    result = bnpass("bench", plain, "--batches", "2", "--runs", "5")
    assert result.code == 0
    assert "plain" in result.out
    assert "timed in" in result.out


def test_a_missing_model_is_refused(bnpass: Run, plain: Path) -> None:
    bnpass("bench", plain, "nowhere.onnx").assert_refused(2, "no such file")
