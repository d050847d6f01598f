"""The n-th write, rename, fsync or open fails or kills, as in SQLite's tests.

For every n with BNPASS_FAULTS=all (``make faults``), else for some.

Whatever happens: the input and an earlier output are whole, or the new output is; nothing is left
after a failure, and the next run clears away what a kill left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

import bnpass as package
from tests import processes
from tests.commands.helpers import add_norm, mlp

ROOT = Path(package.__file__).parents[1]
SHIM = Path(__file__).with_name("shim.c")
COMPILER = shutil.which("cc") or shutil.which("gcc")
EVERY = os.environ.get("BNPASS_FAULTS") == "all"

pytestmark = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="no C compiler for the shim")

COMMANDS = {
    "insert": ["insert", "plain.onnx", "-o", "o.onnx", "--force"],
    "fold": ["fold", "m.onnx", "-o", "o.onnx", "--force", "--no-verify"],
    "fold with a sidecar": ["fold", "m.onnx", "-o", "o.onnx", "--sidecar", "s.undo", "--force",
                            "--no-verify"],
    "fold external": ["fold", "e.onnx", "-o", "o.onnx", "--force", "--no-verify"],
    "insert external": ["insert", "e.onnx", "-o", "o.onnx", "--force"],
    "unfold": ["unfold", "f.onnx", "f.undo", "-o", "o.onnx", "--force"],
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    assert COMPILER is not None
    processes.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", str(made), str(SHIM), "-ldl"],
                  check=True)
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, a folded pair, and an earlier output with data of its own."""
    folder = tmp_path_factory.mktemp("inputs")
    onnx.save(mlp(), folder / "plain.onnx")
    model = add_norm(mlp())
    onnx.save(model, folder / "m.onnx")
    onnx.save(model, str(folder / "e.onnx"), save_as_external_data=True, location="e.data",
              size_threshold=0)
    from bnpass.cli import main

    assert main(["fold", str(folder / "m.onnx"), "-o", str(folder / "f.onnx"), "--sidecar",
                 str(folder / "f.undo"), "--no-verify", "-q"]) == 0
    assert main(["fold", str(folder / "e.onnx"), "-o", str(folder / "o.onnx"), "--no-verify",
                 "-q"]) == 0
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.iterdir()}


def served(shim: Path, tmp_path: Path, jobs: Sequence[dict[str, Any]]) -> list[int]:
    """The exit codes of jobs, each run in a copy of its folder."""
    listed = tmp_path / f"jobs{len(list(tmp_path.iterdir()))}.json"
    listed.write_text(json.dumps(jobs))
    done = processes.run(
        [sys.executable, "-m", "tests.faults.server", str(listed)], cwd=ROOT, check=True,
        capture_output=True, text=True,
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)})
    return [json.loads(line)["code"] for line in done.stdout.splitlines()]


def job(folder: Path, place: Path, arguments: list[str], **fault: object) -> dict[str, Any]:
    return {"folder": str(folder), "place": str(place), "arguments": arguments,
            "fault": {f"FAULT_{key}": str(value) for key, value in fault.items()}}


def model_of(folder: Path) -> list[bytes]:
    """The output's weights with its data, whatever the data file is called."""
    return [t.raw_data for t in onnx.load(folder / "o.onnx").graph.initializer]


def unnamed(folder: Path, before: dict[str, str]) -> set[str]:
    """Files that were not there and that the output does not name."""
    named = {entry.value for tensor in
             onnx.load(folder / "o.onnx", load_external_data=False).graph.initializer
             for entry in tensor.external_data if entry.key == "location"}
    return {path.name for path in folder.iterdir()} - set(before) - named - {"s.undo"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_change_of_a_file_may_fail_or_kill(
    shim: Path, inputs: Path, tmp_path: Path, name: str
) -> None:
    arguments, before = COMMANDS[name], contents(inputs)
    log = tmp_path / "log"
    assert served(shim, tmp_path, [job(inputs, tmp_path / "whole", arguments, LOG=log)]) == [0]
    steps = log.stat().st_size
    assert steps > 4
    old, new = model_of(inputs), model_of(tmp_path / "whole")
    chosen = range(1, steps + 1) if EVERY else sorted({1, *range(2, steps + 1, 6), steps})
    faults = [(n, what) for n in chosen for what in (errno.ENOSPC, "kill")]
    places = [tmp_path / f"{n}-{what}" for n, what in faults]
    codes = served(shim, tmp_path, [
        job(inputs, place, arguments, AT=n, DO=what)
        for place, (n, what) in zip(places, faults, strict=True)])
    assert {2, -9} <= set(codes)
    for place, (n, what), code in zip(places, faults, codes, strict=True):
        found = contents(place)
        where = f"{name}: {what} at {n} of {steps}, exit {code}"
        assert {k: v for k, v in found.items() if k in before and not k.startswith("o.onnx")} == {
            k: v for k, v in before.items() if not k.startswith("o.onnx")}, where
        assert model_of(place) in (old, new), where
        if what != "kill":
            assert code in (0, 2), where
            assert (model_of(place) == new) == (code == 0) or old == new, where
            assert not unnamed(place, before), where
    killed = [place for place, (_, what) in zip(places, faults, strict=True) if what == "kill"]
    again = [tmp_path / f"again-{place.name}" for place in killed]
    assert set(served(shim, tmp_path, [job(a, b, arguments) for a, b in
                                       zip(killed, again, strict=True)])) == {0}
    for place in again:
        assert model_of(place) == new
        assert not unnamed(place, before), place.name
