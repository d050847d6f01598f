"""What people see who print a plan, an inspection or a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnpass
from bnpass.report.shown import as_html
from bnpass.report.tables import Table
from tests.commands.helpers import add_norm, mlp, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(add_norm(mlp()), tmp_path / "net.onnx")


def shown(path: Path) -> dict[str, object]:
    return {
        "insert": bnpass.insert(path, plan_only=True, last=True),
        "fold": bnpass.fold(path, plan_only=True),
        "collapse": bnpass.collapse(path, plan_only=True),
        "inspect": bnpass.inspect(path),
        "verify": bnpass.verify(path, path),
    }


def test_str_is_the_table_of_the_command_and_repr_is_a_line(path: Path) -> None:
    found = shown(path)
    assert "fc0" in str(found["fold"]) and "backward" in str(found["fold"])
    said = "1 of 1 maps would fold: 1 of 1 BatchNorm (1 backward)"
    assert repr(found["fold"]) == f"<FoldPlan: {said}>"
    assert "(N, 6)" in str(found["inspect"]) and "float32" in str(found["inspect"])
    assert "PASSED" in repr(found["verify"]) and "of its noise" in str(found["verify"])
    for value in found.values():
        assert len(repr(value).splitlines()) == 1
        assert "array(" not in repr(value) + str(value)
        assert "<table>" in value._repr_html_() or not str(value).count("\n")  # type: ignore[attr-defined]


def test_html_holds_names_of_files_as_text() -> None:
    table = Table("a<b", ["n"], [["<script>alert(1)</script>\x1b"]], frozenset({0}), "x & y")
    assert as_html(table) == (
        "<table><caption>a&lt;b</caption><thead><tr>"
        '<th style="text-align:right">n</th></tr></thead>\n'
        '<tbody><tr><td style="text-align:right">&lt;script&gt;alert(1)&lt;/script&gt;\\x1b</td>'
        "</tr>\n</tbody></table><p>x &amp; y</p>"
    )


def test_help_shows_names_and_defaults_without_types() -> None:
    import inspect

    text = str(inspect.signature(bnpass.insert))
    assert text.startswith("(model, example_inputs=None, *, output=None, init='fresh'")
    assert ":" not in text and "Example:" in (bnpass.insert.__doc__ or "")


