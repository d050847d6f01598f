"""Exports of common architectures: import, compare, take one step, write back, compare again."""

from __future__ import annotations

import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from bnpass.frontends.onnx.batch import free_batch  # noqa: E402
from bnpass.importer import to_torch, write_back  # noqa: E402
from tests.importer.nets import NETS, export, net, ort_run, relative  # noqa: E402

# (opset, dynamo, free batch): both exporters, a free and a fixed batch of 1
FORMS = [(20, True, True), (23, True, False), (13, False, False), (17, False, True)]


@pytest.mark.parametrize("name", NETS)
def test_legacy_exports_with_a_fixed_batch(name: str) -> None:
    check(name, *FORMS[2])


@pytest.mark.parametrize("name", ["resnet", "lstm", "style", "mlp", "attention"])
def test_legacy_exports_with_a_free_batch(name: str) -> None:
    check(name, *FORMS[3])


@pytest.mark.parametrize("name", NETS)
def test_dynamo_exports_with_a_fixed_batch(name: str) -> None:
    check(name, *FORMS[1])


@pytest.mark.parametrize("name", ["resnet", "unet", "lstm", "attention"])
def test_dynamo_exports_with_a_free_batch(name: str) -> None:
    check(name, *FORMS[0])


def check(name: str, opset: int, dynamo: bool, free: bool) -> None:
    module, inputs = net(name)
    model = export(module, inputs(2 if free else 1), opset, dynamo=dynamo, free=free)
    gm = to_torch(model, batch="free").eval()
    x = inputs(3)  # neither the size that it was exported with, nor 1
    freed = free_batch(model)
    onnx.checker.check_model(freed)
    with torch.no_grad():
        assert relative(gm(x), ort_run(freed, x.numpy())[0]) < 1e-5
    assert write_back(gm, model).SerializeToString() == model.SerializeToString()
    take_one_step(gm, x)
    trained = write_back(gm, model)
    onnx.checker.check_model(trained)
    with torch.no_grad():
        assert relative(gm.eval()(x), ort_run(free_batch(trained), x.numpy())[0]) < 1e-4
    again = dict(to_torch(trained).named_parameters())
    for path, parameter in gm.named_parameters():
        assert torch.equal(parameter, again[path]), path


def take_one_step(gm: torch.fx.GraphModule, x: torch.Tensor) -> None:
    """One step of SGD moves every parameter."""
    before = {path: p.detach().clone() for path, p in gm.named_parameters()}
    y = gm.train()(x)
    (y * torch.randn_like(y)).sum().backward()
    torch.optim.SGD(gm.parameters(), lr=0.05).step()
    for path, p in gm.named_parameters():
        assert p.grad is not None, path
        dead = p.grad.abs().max() < 1e-6  # a bias in front of a normalisation
        assert dead or not torch.equal(before[path], p), path
