"""Tables as text."""

from __future__ import annotations

import io

import pytest

from bnpass.report.tables import Table, percent, render, size, text


def rendered(table: Table) -> str:
    out = io.StringIO()
    render(table, out)
    return out.getvalue()


def test_rows_and_headings_are_shown_without_colour_in_a_pipe() -> None:
    table = Table("folds", ["node", "error"], right=frozenset({1}), note="the end")
    table.add("conv1", 1.25e-7)
    shown = rendered(table)
    assert "\x1b" not in shown
    for part in ("folds", "node", "conv1", "1.25e-07", "the end"):
        assert part in shown


def test_names_are_never_cut_and_are_no_markup() -> None:
    name = "/features/[0]/" + "block/" * 20 + "Conv"
    table = Table("", ["node"])
    table.add(name)
    assert name.replace("/", "") in rendered(table).replace("/", "").replace("\n", "").replace(
        " ", ""
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (True, "yes"), (False, "no"), (0.123456, "0.1235"), (3, "3"),
     (61706, "61,706"), (("a", 1), "a, 1")],
)
def test_cells(value: object, shown: str) -> None:
    assert text(value) == shown


def test_percent_and_size() -> None:
    assert percent(0.98765) == "98.77 %"
    assert percent(None) == "-"
    assert [size(999), size(1500), size(2_500_000), size(3 * 10**9)] == [
        "999 B", "1.5 kB", "2.5 MB", "3.00 GB"
    ]


def test_a_wide_table_of_few_rows_is_turned_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("", ["output", *(f"column number {i}" for i in range(8))])
    table.add("logits", *range(8))
    monkeypatch.setenv("COLUMNS", "160")
    assert len(rendered(table).splitlines()) < 6
    monkeypatch.setenv("COLUMNS", "60")
    lines = [line.split() for line in rendered(table).splitlines() if line.strip()]
    assert lines[0] == ["output", "logits"]
    assert lines[-1] == ["column", "number", "7", "7"]
