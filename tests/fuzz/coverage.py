"""Damaged models led by coverage: ``python -m tests.fuzz.coverage FOLDER -max_total_time=600``.

Needs atheris (``pip install atheris``, Linux and macOS); other options are libFuzzer's. The
files that reach something new stay in FOLDER, which begins with undamaged models.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["bnpass"]):
    from bnpass.cli import main
    from bnpass.commands import fold, inspect
    from bnpass.frontends.onnx import folding

from tests.fuzz.damage import originals

COMMANDS = (["inspect", "m.onnx", "--explain"], ["fold", "m.onnx", "--dry-run", "--explain"])


def once(content: bytes) -> None:
    """Give a file to the commands: whatever is in it, they say so in one line or do it."""
    Path("m.onnx").write_bytes(content)
    for command in COMMANDS:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(command))
        said = err.getvalue()
        if code not in (0, 1, 2) or "internal error" in said or "Traceback" in said:
            raise RuntimeError(f"{command}: {code}: {said[:300]}")


def run(arguments: list[str]) -> None:
    """Begin with undamaged models, and go on until libFuzzer's options say stop."""
    assert fold and inspect and folding
    folder = Path(arguments[1]).absolute()
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bnpass-coverage-") as place:
        for name, content in originals(Path(place)).items():
            if name != "sidecar":
                (folder / name).write_bytes(content)
        os.chdir(place)
        atheris.Setup([arguments[0], str(folder), *arguments[2:]], once)
        atheris.Fuzz()


if __name__ == "__main__":
    run(sys.argv)
