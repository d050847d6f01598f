"""README.md keeps its word: its commands and its Python run, in order, in one folder.

A block marked ``sh`` is run line by line, one marked ``python`` as a script. `make` and
installing are left out: they set up the environment that the tests already run in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP = ("make ", "pip ", "git ", "cd ")


def blocks() -> list[tuple[str, str]]:
    """Every runnable piece, in order: ("sh", one command line) or ("python", a script)."""
    found: list[tuple[str, str]] = []
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        if language == "python":
            found.append((language, body))
        elif language in {"sh", "console"}:
            lines = body.replace("\\\n", " ").splitlines()
            commands = [line.removeprefix("$ ").strip() for line in lines]
            found += [("sh", c) for c in commands if c and not c.startswith(("#", *SETUP))]
    return found


PIECES = blocks()
TITLES = [
    text.splitlines()[0] if kind == "sh" else f"python-{i}" for i, (kind, text) in enumerate(PIECES)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone holds that the commands name: cli.py and models/."""
    place = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "models", place / "models", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", place)
    return place


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`bnpass` and `python` on the PATH, both of this interpreter and this source tree."""
    programs = tmp_path_factory.mktemp("bin")
    for name, arguments in (("bnpass", "-m bnpass "), ("python", "")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
        "NO_COLOR": "1",
    }


def test_readme_has_commands_and_python() -> None:
    kinds = [kind for kind, _ in PIECES]
    assert kinds.count("sh") >= 6
    assert kinds.count("python") >= 2


@pytest.mark.skipif(os.name == "nt", reason="the commands are written for a POSIX shell")
@pytest.mark.parametrize(("kind", "text"), PIECES, ids=TITLES)
def test_piece_runs(kind: str, text: str, folder: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    command = ["sh", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
    done = processes.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_link_leads_somewhere(target: str) -> None:
    if target.startswith("https://"):
        pytest.skip("a web address: not asked without a network")
    assert (ROOT / target).exists()


def test_code_map_names_what_exists() -> None:
    code_map = TEXT.split("## Code map")[1].split("\n## ")[0]
    named = re.findall(r"^    (\S+)", code_map, re.MULTILINE)
    assert "bnpass/rules/" in named
    assert not [name for name in named if not (ROOT / name).exists()]
    parts = {path.name for path in (ROOT / "bnpass").iterdir() if not path.name.startswith("_")}
    mapped = {Path(name).name for name in named}
    assert {p for p in parts if p != "py.typed"} - mapped == set(), "missing in the code map"
