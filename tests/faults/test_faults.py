"""The n-th write, rename, fsync or open fails or kills, in commands that rewrite a model.

As in SQLite's tests.

For every n with BNPASS_FAULTS=all (``make faults``), else for some.

Whatever happens: the input and an earlier output are whole, or the new output is; nothing is left
after a failure, and the next run clears away what a kill left.
"""

from __future__ import annotations

import errno
from pathlib import Path

import onnx
import pytest

from tests.faults.lab import (
    assert_clear,
    chosen,
    contents,
    job,
    model_of,
    needs_shim,
    served,
)

pytestmark = needs_shim

COMMANDS = {
    "insert": ["insert", "plain.onnx", "-o", "o.onnx", "--force"],
    "fold": ["fold", "m.onnx", "-o", "o.onnx", "--force", "--no-verify"],
    "fold with a sidecar": ["fold", "m.onnx", "-o", "o.onnx", "--sidecar", "s.undo", "--force",
                            "--no-verify"],
    "fold external": ["fold", "e.onnx", "-o", "o.onnx", "--force", "--no-verify"],
    "insert external": ["insert", "e.onnx", "-o", "o.onnx", "--force"],
    "unfold": ["unfold", "f.onnx", "f.undo", "-o", "o.onnx", "--force"],
}


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
    assert served(tmp_path, [job(inputs, tmp_path / "whole", arguments, LOG=log)], shim) == [0]
    steps = log.stat().st_size
    assert steps > 4
    old, new = model_of(inputs), model_of(tmp_path / "whole")
    faults = [(n, what) for n in chosen(steps, 7) for what in (errno.ENOSPC, "kill")]
    places = [tmp_path / f"{n}-{what}" for n, what in faults]
    codes = served(tmp_path, [
        job(inputs, place, arguments, AT=n, DO=what)
        for place, (n, what) in zip(places, faults, strict=True)], shim)
    assert {2, -9} <= set(codes)
    for place, (n, what), code in zip(places, faults, codes, strict=True):
        found = contents(place)
        where = f"{name}: {what} at {n} of {steps}, exit {code}"
        assert {k: v for k, v in found.items() if k in before and not k.startswith("o.onnx")} == {
            k: v for k, v in before.items() if not k.startswith("o.onnx")}, where
        assert model_of(place) in (old, new), where
        if what != "kill":
            assert code in (0, 2), where
            assert_clear(place, code, where)
            assert (model_of(place) == new) == (code == 0) or old == new, where
            assert not unnamed(place, before), where
    killed = [place for place, (_, what) in zip(places, faults, strict=True) if what == "kill"]
    again = [tmp_path / f"again-{place.name}" for place in killed]
    assert set(served(tmp_path, [job(a, b, arguments) for a, b in
                                 zip(killed, again, strict=True)], shim)) == {0}
    for place in again:
        assert model_of(place) == new
        assert not unnamed(place, before), place.name
