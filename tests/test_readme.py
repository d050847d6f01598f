"""README.md keeps its word: its commands and its Python run, in order, in one folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.documents import ROOT, Piece, clone, environment, links, pieces, run, titles

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PIECES = pieces(TEXT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("bin"))


def test_readme_has_commands_and_python() -> None:
    kinds = [kind for kind, _ in PIECES]
    assert kinds.count("sh") >= 6
    assert kinds.count("python") >= 2


@pytest.mark.skipif(os.name == "nt", reason="the commands are written for a POSIX shell")
@pytest.mark.parametrize("piece", PIECES, ids=titles(PIECES))
def test_piece_runs(piece: Piece, folder: Path, variables: dict[str, str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    run(piece, folder, variables)


@pytest.mark.parametrize("target", links(TEXT))
def test_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_code_map_names_what_exists() -> None:
    code_map = TEXT.split("## Code map")[1].split("\n## ")[0]
    named = re.findall(r"^    (\S+)", code_map, re.MULTILINE)
    assert "bnpass/rules/" in named
    assert not [name for name in named if not (ROOT / name).exists()]
    parts = {path.name for path in (ROOT / "bnpass").iterdir() if not path.name.startswith("_")}
    mapped = {Path(name).name for name in named}
    assert {p for p in parts if p != "py.typed"} - mapped == set(), "missing in the code map"
