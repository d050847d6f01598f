"""The n-th write, rename, fsync or open fails or kills a training, a calibration, a whole run.

For every n with BNPASS_FAULTS=all (``make faults``), else for some.

Whatever happens: inputs and an earlier output are whole, or the new output is; a failure is one
line; and the same command with --resume goes on and ends with the same numbers.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.lab import assert_clear, chosen, contents, job, model_of, needs_shim, served

pytestmark = [needs_shim, pytest.mark.slow]

STEPS = ("--steps", "4", "--eval-every", "2", "--checkpoint-every", "2", "--device", "cpu")


class Command(NamedTuple):
    """A command, what it adds to be run again, and the model that it makes."""

    arguments: tuple[str, ...]
    again: tuple[str, ...]
    output: str


COMMANDS = {
    "train": Command(("train", "m.onnx", "--data", "d.npz", "-o", "o.onnx", "--force", *STEPS),
                     ("--resume",), "o.onnx"),
    "calibrate": Command(("calibrate", "m.onnx", "--data", "d.npz", "-o", "o.onnx", "--force"),
                         (), "o.onnx"),
    "run": Command(("run", "plain.onnx", "--data", "d.npz", "-o", "out", *STEPS), ("--resume",),
                   "out/deploy.onnx"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_change_of_a_file_may_fail_or_kill(
    shim: Path, training: Path, tmp_path: Path, name: str
) -> None:
    command, before, log = COMMANDS[name], contents(training), tmp_path / "log"
    whole = tmp_path / "whole"
    assert served(tmp_path, [job(training, whole, command.arguments, LOG=log)], shim) == [0]
    new, steps = model_of(whole, command.output), log.stat().st_size
    old = model_of(training, command.output) if command.output in before else None
    faults = [(n, what) for n in chosen(steps, 3) for what in (errno.ENOSPC, "kill")]
    places = [tmp_path / f"{n}-{what}" for n, what in faults]
    codes = served(tmp_path, [
        job(training, place, command.arguments, AT=n, DO=what)
        for place, (n, what) in zip(places, faults, strict=True)], shim)
    assert {2, -9} <= set(codes)
    for place, (n, what), code in zip(places, faults, codes, strict=True):
        where = f"{name}: {what} at {n} of {steps}, exit {code}"
        found = contents(place)
        assert all(found[key] == value for key, value in before.items() if key != "o.onnx"), where
        there = model_of(place, command.output) if command.output in found else None
        assert there in (old, new), where
        if what != "kill":
            assert code in (0, 2), where
            assert_clear(place, code, where)
            assert (there == new) >= (code == 0), where
            assert not _temporary(place), where
    again = [tmp_path / f"again-{place.name}" for place in places]
    codes = served(tmp_path, [job(a, b, (*command.arguments, *command.again))
                              for a, b in zip(places, again, strict=True)], shim)
    for place, code in zip(again, codes, strict=True):
        assert_clear(place, code, place.name)
        assert code == 0, place.name
        assert model_of(place, command.output) == new, place.name
        assert not _temporary(place), place.name


def _temporary(place: Path) -> list[str]:
    return [path for path in contents(place) if path.endswith(".tmp")]
