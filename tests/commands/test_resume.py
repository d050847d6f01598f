"""kill -9 at any moment: what is resumed ends with the same bits."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.commands.helpers import Run, add_norm, mlp, write

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
TRAIN = ("--steps", "24", "--eval-every", "6", "--checkpoint-every", "4", "--device", "cpu",
         "--optimizer", "adamw", "--lr", "0.02")
SEARCH = (*TRAIN[:-2], "--lr-grid", "0.001,0.02", "--compare-plain")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def kill(place: str, number: int, *arguments: object, ranks: bool = False, rank: int = 0) -> str:
    """Run a command that is killed at a place, see tests/commands/killed.py; what it said."""
    command = [sys.executable, *(TORCHRUN if ranks else ()), "-m", "tests.commands.killed", place,
               str(number), str(rank), *map(str, arguments)]
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                          timeout=300)
    assert done.returncode == (1 if ranks else -signal.SIGKILL), done.stderr
    assert ("SIGKILL" in done.stderr) == ranks
    return str(done.stderr)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(add_norm(mlp()), tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.mark.parametrize(("place", "number", "more"), [
    ("step", 14, ("--crop", "1", "--virtual-batch", "20")),
    ("validation", 3, ("--restore-best", "--watch", "h0")),
    ("half a checkpoint", 4, ("--patience", "2", "--restore-best")),
    ("unnamed checkpoint", 3, ("--schedule", "onecycle")),
    ("best, not last", 1, ("--restore-best",)),
    ("range test", 30, ("--lr", "auto")),
])
def test_train(bnpass: Run, model: Path, data: Path, tmp_path: Path, place: str, number: int,
               more: tuple[str, ...]) -> None:
    common = ("train", model, "--data", data, *TRAIN, *more)
    whole, out = tmp_path / "whole.trained.onnx", tmp_path / "killed.trained.onnx"
    assert bnpass(*common, "-o", whole).code == 0
    kill(place, number, *common, "-o", out)
    assert not out.exists()
    result = bnpass(*common, "-o", out, "--resume")
    assert result.code == 0, result.err
    assert out.read_bytes() == whole.read_bytes()
    for name in ("percentiles.csv",) if "--watch" in more else ():
        one, other = (tmp_path / f"{stem}.trained.run" / name for stem in ("whole", "killed"))
        assert one.read_text() == other.read_text()
    left = [p for p in (tmp_path / "killed.trained.run").rglob("*") if p.suffix == ".tmp"]
    assert left == []


@pytest.mark.parametrize(("place", "number", "more"), [
    ("step", 3, SEARCH),  # of the first trial
    ("half a checkpoint", 9, SEARCH),  # of the training without
    ("range test", 20, (*TRAIN, "--lr", "auto")),
    ("statistics", 5, TRAIN),  # of the training set; four validations were before
    ("deployed", 1, TRAIN),
])
def test_run(bnpass: Run, data: Path, tmp_path: Path, place: str, number: int,
             more: tuple[str, ...]) -> None:
    common = ("run", write(mlp(), tmp_path / "net.onnx"), "--data", data, *more)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert bnpass(*common, "-o", whole).code == 0
    kill(place, number, *common, "-o", out)
    assert not (out / "deploy.onnx").exists()
    result = bnpass(*common, "-o", out, "--resume")
    assert result.code == 0, result.err
    for name in ("trained.onnx", "deploy.onnx", *(["plain.onnx"] if "--lr-grid" in more else [])):
        assert (whole / name).read_bytes() == (out / name).read_bytes(), name


def test_train_under_torchrun(model: Path, data: Path, tmp_path: Path) -> None:
    common = ("train", model, "--data", data, *TRAIN)
    whole, out = tmp_path / "whole.onnx", tmp_path / "killed.onnx"
    kill("half a checkpoint", 2, *common, "-o", out, ranks=True)
    said = kill("validation", 2, *common, "-o", out, "--resume", ranks=True, rank=1)
    assert not out.exists()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "process" in errors[0] and "lost" in errors[0], said
    assert "internal" not in said and "with --resume goes on from the last checkpoint" in said
    for target, more in ((whole, ()), (out, ("--resume",))):
        command = [sys.executable, *TORCHRUN, "-m", "bnpass", *map(str, common), "-o", str(target),
                   *more]
        done = processes.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    assert whole.read_bytes() == out.read_bytes()


def test_another_network_other_data_or_settings_are_refused(
    bnpass: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    import numpy as np

    common = ("--run-dir", tmp_path / "run", *TRAIN, "-o", tmp_path / "out.onnx")
    assert bnpass("train", model, "--data", data, *common).code == 0
    again = ("--resume", "--force", *common)
    other = write(add_norm(mlp(kind="Tanh")), tmp_path / "other.onnx")
    bnpass("train", other, "--data", data, *again).assert_refused(2, "another network")
    held = np.load(data)
    np.savez(tmp_path / "other.npz", x=held["x"] + 1, y=held["y"])
    bnpass("train", model, "--data", tmp_path / "other.npz", *again).assert_refused(2, "other data")
    np.savez(tmp_path / "other.npz", x=held["x"], y=held["y"][::-1])
    bnpass("train", model, "--data", tmp_path / "other.npz", *again).assert_refused(2, "other data")
    changed = ("train", model, "--data", data, *again)
    bnpass(*changed, "--validation", "0.2").assert_refused(2, "other data")
    bnpass(*changed, "--seed", "1").assert_refused(2, "seed")
    bnpass(*changed, "--momentum", "0.5").assert_refused(2, "momentum")


def test_a_new_run_leaves_no_checkpoint_of_the_old_one(
    bnpass: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    """Else a later --resume would take up what was trained before."""
    common = ("train", model, "--data", data, *TRAIN, "-o", tmp_path / "out.onnx")
    assert bnpass(*common).code == 0
    checkpoint = tmp_path / "out.run/checkpoints/last.pt"
    assert checkpoint.exists()
    kill("step", 2, *common, "--force")
    assert not checkpoint.exists()
