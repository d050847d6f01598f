"""The picture of a training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bnpass.errors import MissingDependencyError
from bnpass.report.curves import Curve, draw_curves, smooth


def test_a_picture_with_both_arms(tmp_path: Path) -> None:
    arms = [
        Curve("with BN", [(1, 2.0), (2, 1.0)], [(2, 0.5)]),
        Curve("without BN", [(1, 2.3), (2, 2.2)], [(2, 0.1)]),
    ]
    path = draw_curves(arms, tmp_path / "curves.png", title="net")
    assert path.read_bytes().startswith(b"\x89PNG")
    svg = draw_curves(arms, tmp_path / "curves.svg")
    assert svg.read_text().count("<svg") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "curves.svg"]


def test_without_matplotlib_the_hint_is_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError) as caught:
        draw_curves([], tmp_path / "curves.png")
    assert caught.value.hint == "pip install matplotlib"
    assert not list(tmp_path.iterdir())


def test_smooth_averages_over_the_last_values() -> None:
    points = [(1, 4.0), (2, 2.0), (3, 0.0), (4, 1.0)]
    assert smooth(points, 2) == [(1, 4.0), (2, 3.0), (3, 1.0), (4, 0.5)]
