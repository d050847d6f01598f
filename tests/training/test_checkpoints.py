from __future__ import annotations

import csv
import io
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bnpass.errors import InputError, OutputError
from bnpass.training import Checkpoint, History, load_checkpoint, train
from tests import processes
from tests.training.killed import SETTINGS
from tests.training.nets import blobs, convnet, mlp

ROOT = Path(__file__).parents[2]


def run_until_killed(out: Path, stop_at: int) -> None:
    """A real process, killed by the kernel behind step ``stop_at``."""
    with processes.started(
        [sys.executable, "-m", "tests.training.killed", str(out), str(stop_at)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == stop_at:
                process.kill()
        assert process.wait() == -signal.SIGKILL


def finish(out: Path, **changes):
    gm = mlp(dropout=0.3)
    history = train(gm, blobs(), blobs(60, seed=1), replace(SETTINGS, **changes), out=out,
                    resume=True)
    return gm, history


def test_killed_twice_and_resumed_ends_with_equal_bits(tmp_path: Path) -> None:
    whole, expected = finish(tmp_path / "whole")
    out = tmp_path / "killed"
    run_until_killed(out, 18)
    assert load_checkpoint(out / "checkpoints" / "last.pt").step == 15
    run_until_killed(out, 42)
    gm, history = finish(out)
    for (name, a), b in zip(gm.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [(r.step, r.loss, r.validation_loss) for r in history.rows] == [
        (r.step, r.loss, r.validation_loss) for r in expected.rows]
    assert (history.best_step, history.best_score) == (expected.best_step, expected.best_score)
    with (out / "metrics.csv").open() as stream:
        assert [int(r["step"]) for r in csv.DictReader(stream)] == list(range(1, 61))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, _ = finish(tmp_path)
    seen = []
    gm = mlp(dropout=0.3)
    history = train(gm, blobs(), blobs(60, seed=1), SETTINGS, out=tmp_path, resume=True,
                    progress=seen.append)
    assert seen == []
    assert history.steps == 60
    assert torch.equal(gm.get_parameter("0.weight"), first.get_parameter("0.weight"))


def test_best_is_the_best_validation(tmp_path: Path) -> None:
    gm, history = finish(tmp_path, restore_best=True)
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert best.step == history.best_step
    for name, value in gm.state_dict().items():
        assert torch.equal(value, best.model[name])


def test_other_settings_or_another_network_are_refused(tmp_path: Path) -> None:
    finish(tmp_path)
    with pytest.raises(InputError, match=r"the run had lr 0\.2, not 0\.3"):
        finish(tmp_path, lr=0.3)
    finish(tmp_path, log_every=10)
    with pytest.raises(InputError, match="of another network"):
        train(mlp(width=12, norm=False), blobs(), None, SETTINGS, out=tmp_path, resume=True)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(path)
    for content in (b"", b"no checkpoint", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            load_checkpoint(path)
    torch.save({"model": convnet().state_dict()}, path)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


def read(path: Path) -> tuple[Checkpoint | None, str]:
    try:
        return load_checkpoint(path), ""
    except InputError as error:
        return None, error.message


def test_damaged_files_are_told(tmp_path: Path) -> None:
    finish(tmp_path)
    path = tmp_path / "checkpoints" / "last.pt"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        content = bytearray(whole)
        if number % 2:
            content = content[: rng.integers(0, len(content))]
        else:
            content[rng.integers(0, len(content))] ^= 1 << rng.integers(0, 8)
        path.write_bytes(bytes(content))
        found, message = read(path)
        if found is None:
            assert "last.pt: cannot be read as a checkpoint" in message
            continue
        path.write_bytes(whole)  # the bit was one that no reader looks at
        right = load_checkpoint(path)
        assert found.history == right.history
        assert all(torch.equal(v, right.model[k]) for k, v in found.model.items())


@pytest.mark.parametrize("key", ["step", "model", "optimizer", "history", "about", "scaler"])
@pytest.mark.parametrize("odd", [None, -1, "x", [], {"a": torch.zeros(2)}, torch.zeros(3)])
def test_odd_contents_are_told(tmp_path: Path, key: str, odd: object) -> None:
    (tmp_path / "checkpoints").mkdir()
    Checkpoint(3, mlp(dropout=0.3).state_dict(), {}, {}, History(config=SETTINGS.to_dict())).save(
        tmp_path / "checkpoints" / "last.pt")
    path = tmp_path / "checkpoints" / "last.pt"
    torch.save({**torch.load(path, weights_only=True), key: odd}, path)
    with pytest.raises(InputError, match=r"last\.pt: (cannot be read|a checkpoint of)"):
        finish(tmp_path)


def test_a_checkpoint_of_another_version(tmp_path: Path) -> None:
    finish(tmp_path)
    path = tmp_path / "checkpoints" / "last.pt"
    torch.save({**torch.load(path, weights_only=True), "version": 1}, path)
    with pytest.raises(InputError, match="of version 1, not"):
        finish(tmp_path)


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"version": 1, "step": Evil()}, path)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)
    assert not Evil.ran


def test_an_earlier_checkpoint_survives_a_failed_write(tmp_path: Path, monkeypatch) -> None:
    finish(tmp_path)
    path = tmp_path / "checkpoints" / "last.pt"
    before = path.read_bytes()
    assert zipfile.is_zipfile(io.BytesIO(before))

    def full_disk(self, *_args):
        raise OSError(28, "No space left on device")

    found = load_checkpoint(path)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        found.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["best.pt", "last.pt"]
