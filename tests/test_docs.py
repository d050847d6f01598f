"""docs/: links lead somewhere, and the recipes run as they are written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.documents import ROOT, Piece, clone, environment, links, pieces, run, titles

PAGES = sorted((ROOT / "docs").glob("*.md"))
RECIPES = pieces((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [t for t in links(page.read_text(encoding="utf-8")) if not (page.parent / t).exists()]
    assert not broken


def test_the_index_names_every_page() -> None:
    named = links((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert {page.name for page in PAGES} - {"index.md"} <= set(named)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("bin"))


@pytest.mark.skipif(os.name == "nt", reason="the commands are written for a POSIX shell")
@pytest.mark.parametrize("piece", RECIPES, ids=titles(RECIPES))
def test_recipe_runs(piece: Piece, folder: Path, variables: dict[str, str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    run(piece, folder, variables)


OPTIONAL = re.findall(r"^```py (\w+)\n(.*?)^```$", (ROOT / "docs" / "recipes.md").read_text(),
                      re.DOTALL | re.MULTILINE)  # fmt: skip


@pytest.mark.parametrize(("package", "text"), OPTIONAL, ids=[package for package, _ in OPTIONAL])
def test_recipe_with_another_package_runs(
    package: str, text: str, folder: Path, variables: dict[str, str]
) -> None:
    pytest.importorskip(package, exc_type=ImportError)
    run(("python", text), folder, variables)
