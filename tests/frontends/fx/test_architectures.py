"""Well-known architectures: insert, a training step, population statistics, fold, compare."""

from __future__ import annotations

import onnx
import pytest
import torch

import bnpass
from bnpass.runtime.session import session
from tests.frontends.fx.architectures import NORMED, PLAIN
from tests.frontends.fx.helpers import norms, randomize, run

SITES = {
    "vgg": 5, "alexnet": 4, "googlenet": 7, "resnet18": 6, "resnet50": 8, "mobilenet_v2": 6,
    "mobilenet_v3": 8, "efficientnet": 8, "densenet": 5, "unet": 4, "conv3d": 2, "convnext": 2,
    "text_cnn": 2, "lstm_tagger": 4, "mixer": 4, "generator": 2, "discriminator": 2,
}  # fmt: skip
"""BatchNorms that are inserted."""


@pytest.mark.parametrize("name", PLAIN)
def test_insert_train_calibrate_fold(name):
    torch.manual_seed(0)
    net, x = PLAIN[name]()
    made = bnpass.insert(net, x)
    assert len(norms(made)) == SITES[name], bnpass.insert(net, x, plan_only=True).skipped
    optimizer = torch.optim.SGD(made.train().parameters(), lr=1e-3)
    made(*x).square().mean().backward()
    optimizer.step()
    bnpass.calibrate(made, [x])
    folded = bnpass.fold(made)
    assert not norms(folded)
    want, got = run(made, x), run(folded, x)
    assert (got - want).abs().max() <= 1e-4 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("name", ["unet", "mobilenet_v3", "text_cnn", "generator"])
def test_exported_it_is_what_was_trained(name, tmp_path):
    torch.manual_seed(0)
    net, x = PLAIN[name]()
    made = bnpass.calibrate(randomize(bnpass.insert(net, x)), [x])
    path = bnpass.export(bnpass.fold(made), x, tmp_path / "deploy.onnx", verify=False)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    more = tuple(torch.cat([v, v.flip(0)[:3]]) for v in x)  # of another batch size
    runs = session(path)
    got = runs.run(None, {i.name: v.numpy() for i, v in zip(runs.get_inputs(), more, strict=True)})
    want = run(made, more)
    error = (torch.from_numpy(got[0]) - want).abs().max()
    assert error <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("name", NORMED)
def test_fold_what_others_made(name):
    torch.manual_seed(0)
    net, x = NORMED[name]()
    net, x = randomize(net.double().eval()), tuple(v.double() for v in x)
    folded = bnpass.fold(net, x)
    want, got = run(net, x), run(folded, x)
    assert (got - want).abs().max() <= 1e-9 * max(1.0, float(want.abs().max()))
    assert len(norms(folded)) == (4 if name == "densenet" else 0)  # they stand before a ReLU
