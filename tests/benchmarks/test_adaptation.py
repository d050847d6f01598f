"""New statistics for a new domain (AdaBN, Li et al. 2016): on the ONNX file, without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import bnpass
from bnpass.pipeline.datasets import open_for
from tests import processes

ROOT = Path(__file__).resolve().parents[2]
LENET = ROOT / "models" / "lenet.onnx"
SAMPLE = ROOT / "models" / "data"
# Inverted digits are not among them, and cannot be: 1 - x turns the sign of what a linear layer
# gives, the batch's own statistics keep that sign, and a scale that could turn it is no statistic.
MOVED = {
    "noisy": lambda x, rng: (x + rng.normal(0, 0.4, x.shape)).clip(0, 1),
    "shifted": lambda x, _: 0.4 * x + 0.5,
    "faded": lambda x, _: 0.15 * x,
}


def images(split: str) -> tuple[np.ndarray, np.ndarray]:
    return next(open_for(LENET, str(SAMPLE), split=split).batches(10_000))


def accuracy(model: onnx.ModelProto | Path, x: np.ndarray, y: np.ndarray) -> float:
    session = bnpass.session(model)
    outputs = session.run(None, {session.get_inputs()[0].name: x.astype(np.float32)})[0]
    return float((outputs.argmax(1) == y).mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeNet with BN, trained on digits as they are, statistics pooled; BN still in it."""
    torch = pytest.importorskip("torch")
    from bnpass.training import TrainConfig, calibrate, train

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = bnpass.insert(LENET)
    gm = bnpass.to_torch(model)
    data = open_for(LENET, str(SAMPLE))
    train(gm, data, None, TrainConfig(lr=0.1, steps=300, batch_size=60, device="cpu"))
    calibrate(gm, data)
    torch.set_num_threads(before)
    path = tmp_path_factory.mktemp("adapt") / "trained.onnx"
    path.write_bytes(bnpass.write_back(gm, model).SerializeToString())
    return path


@pytest.mark.parametrize("domain", MOVED)
def test_calibrate_recovers_most_of_the_accuracy(trained, tmp_path, domain):
    rng = np.random.default_rng(0)
    move = MOVED[domain]
    x, y = images("test")
    home = accuracy(trained, x, y)
    away = move(x, rng)
    lost = accuracy(trained, away, y)
    # Unlabelled samples of the new domain, other digits than those that are judged by.
    np.savez(tmp_path / "new.npz", x=move(images("train")[0][:2000], rng).astype(np.float32))
    run = (
        "import sys; from bnpass.cli import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    adapted, folded = tmp_path / "adapted.onnx", tmp_path / "folded.onnx"
    processes.run([sys.executable, "-c", run, "calibrate", str(trained), "--data",
                    str(tmp_path / "new.npz"), "-o", str(adapted)], check=True, cwd=ROOT)
    bnpass.fold(adapted, output=folded)
    assert not any(n.op_type == "BatchNormalization" for n in onnx.load(folded).graph.node)
    found = accuracy(folded, away, y)
    print(f"{domain}: {home:.3f} at home, {lost:.3f} away, {found:.3f} adapted")
    assert home > 0.95
    assert home - lost > 0.1
    assert found - lost > 0.6 * (home - lost)
