"""The page that fold, verify and run write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnpass.report.page import Card, Page, Section, write_page
from bnpass.report.page.chart import Series, chart, ticks
from bnpass.report.tables import Table
from tests.commands.helpers import Run, add_norm, mlp, write

EVIL = "<script>alert(1)</script>\x1b]0;title\x07"


def test_nothing_is_loaded_and_nothing_of_a_name_is_obeyed(tmp_path: Path) -> None:
    table = Table(EVIL, [EVIL], [[EVIL]], note=EVIL)
    page = Page(EVIL, EVIL, [Card(EVIL, EVIL, EVIL, True)], [Section(EVIL, [table, EVIL])], [EVIL])
    text = write_page(page, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "\x1b" not in text
    assert text.count("<script>") == 1
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", text)
    assert "default-src 'none'" in text and "@import" not in text and "url(http" not in text


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [(0, 1, False, [0, 0.25, 0.5, 0.75, 1]), (0, 1000, True, [0, 250, 500, 750, 1000]),
     (1, 3, True, [1, 2, 3]), (-0.3, 0.2, False, [-0.4, -0.2, 0, 0.2]), (5, 5, True, [2, 4, 6, 8])],
)  # fmt: skip
def test_ticks_are_round_and_cover(
    low: float, high: float, whole: bool, expected: list[float]
) -> None:
    assert ticks(low, high, whole=whole) == pytest.approx(expected)


def test_a_chart_leaves_out_what_is_no_number_and_says_the_last_values() -> None:
    line = Series("with <BN>", [(1, 2.0), (2, float("nan")), (3, 1.0)])
    drawn = chart("loss", [line], "step", "loss")
    assert "nan" not in drawn and "with &lt;BN&gt;: 1 at 3" in drawn
    assert chart("loss", [Series("empty", [(1, float("inf"))])], "step", "loss") == ""


def test_fold_writes_a_page_with_every_site(bnpass: Run, tmp_path: Path) -> None:
    model = write(add_norm(mlp()), tmp_path / "net.onnx")
    page = tmp_path / "report.html"
    result = bnpass("fold", model, "-o", tmp_path / "out.onnx", "--report", page, "--json")
    assert result.code == 0, result.err
    assert result.document["report"] == str(page)
    text = page.read_text(encoding="utf-8")
    for part in ("PASSED", "allowed: ", 'class="box norm dashed"', "sd ", "backward", "samples/s",
                 "bnpass verify "):  # fmt: skip
        assert part in text, part
    assert text.count("<figure") == 2, "before and after"
    again = bnpass("fold", model, "-o", tmp_path / "new.onnx", "--report", page)
    again.assert_refused(2, "the output exists", "--force")
    assert not (tmp_path / "new.onnx").exists()


def test_sites_that_look_alike_are_drawn_once(bnpass: Run, tmp_path: Path) -> None:
    model = write(mlp(layers=8), tmp_path / "net.onnx")
    normed, page = tmp_path / "bn.onnx", tmp_path / "p.html"
    assert bnpass("insert", model, "-o", normed).code == 0
    bnpass("fold", normed, "-o", tmp_path / "o.onnx", "--report", page, "--no-verify")
    text = page.read_text(encoding="utf-8")
    assert "and 5 more like it" in text
    assert text.count("<figure") == 4, "the first one reads the input"


def test_verify_writes_a_page_and_other_endings_are_refused(bnpass: Run, tmp_path: Path) -> None:
    model = write(add_norm(mlp()), tmp_path / "net.onnx")
    folded, page = tmp_path / "out.onnx", tmp_path / "verify.html"
    bnpass("fold", model, "-o", folded)
    assert bnpass("verify", model, folded, "--report", page, "--edits").code == 0
    assert "every edit: right" in page.read_text(encoding="utf-8")
    bnpass("verify", model, folded, "--report", tmp_path / "v.pdf").assert_refused(2, "HTML page")
