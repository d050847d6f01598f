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


def test_a_picture_is_drawn(bnpass: Run, plain: Path, normed: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    arguments = ("bench", plain, normed, "--batches", "1,4", "--threads", "1,2", "--runs", "5",
                 "--picture", picture)
    document = bnpass(*arguments, "--json").document
    assert document["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    before = picture.read_bytes()
    bnpass(*arguments).assert_refused(2, "the output exists", "--force")
    assert picture.read_bytes() == before
    assert bnpass(*arguments, "--force").code == 0


def test_the_picture_of_one_model_shows_its_throughput(
    bnpass: Run, plain: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "bench.svg"
    result = bnpass("bench", plain, "--batches", "1,4", "--runs", "5", "--picture", picture)
    assert result.code == 0, result.err
    text = picture.read_text()
    assert "samples a second" in text and "latency (ms)" in text and "batch size" in text


def test_a_picture_that_cannot_be_drawn_is_refused_at_once(
    bnpass: Run, plain: Path, tmp_path: Path
) -> None:
    asked = ("bench", plain, "--picture", tmp_path / "bench.bmp")
    bnpass(*asked).assert_refused(2, "'bench.bmp'", ".svg")
    bnpass("bench", plain, "--picture", plain).assert_refused(2, "")


def test_binding_on_the_cpu_and_what_is_for_a_gpu_only(bnpass: Run, normed: Path) -> None:
    timed = bnpass("bench", normed, "--io-binding", "--runs", "5", "--batches", "2", "--json")
    assert timed.document["rows"][0]["p50"] > 0
    for option in ("--tf32", "--cuda-graph", "--provider-option=trt_fp16_enable=1"):
        bnpass("bench", normed, option).assert_refused(
            2, f"{option.partition('=')[0]} with --provider cpu", "cuda or tensorrt")
    bnpass("bench", normed, "--provider-option", "fast").assert_refused(2, "not KEY=VALUE")
