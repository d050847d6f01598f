"""Commands and Python in a document, run in order in one folder.

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

from tests import processes

ROOT = Path(__file__).resolve().parents[1]
SETUP = ("make ", "pip ", "git ", "cd ")

Piece = tuple[str, str]
"""("sh", one command line) or ("python", a script)."""


def pieces(text: str) -> list[Piece]:
    """Every runnable piece of a document, in order."""
    found: list[Piece] = []
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language == "python":
            found.append((language, body))
        elif language in {"sh", "console"}:
            lines = body.replace("\\\n", " ").splitlines()
            commands = [line.removeprefix("$ ").strip() for line in lines]
            found += [("sh", c) for c in commands if c and not c.startswith(("#", *SETUP))]
    return found


def titles(found: list[Piece]) -> list[str]:
    """Names of the pieces, for tests."""
    return [
        text.splitlines()[0] if kind == "sh" else f"python-{i}"
        for i, (kind, text) in enumerate(found)
    ]


def links(text: str) -> list[str]:
    """Where a document's links lead, web addresses left out."""
    targets = set(re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text))
    return sorted(target for target in targets if not target.startswith("https://"))


def clone(place: Path) -> Path:
    """A copy of what a clone holds that the commands name: cli.py and models/."""
    shutil.copytree(ROOT / "models", place / "models", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", place)
    return place


def environment(programs: Path) -> dict[str, str]:
    """`bnpass` and `python` on the PATH, both of this interpreter and this source tree."""
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


def run(piece: Piece, folder: Path, variables: dict[str, str]) -> None:
    """Run a piece; it has to end well."""
    kind, text = piece
    command = ["sh", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
    done = processes.run(command, cwd=folder, env=variables, capture_output=True, text=True,
                         check=False, timeout=300, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
