"""Exports of common architectures: import, compare, take one step, write back, compare again."""

from __future__ import annotations

import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from bnpass.frontends.onnx.free_batch import free_batch  # noqa: E402
from bnpass.importer import to_torch, write_back  # noqa: E402
from tests.importer.nets import NETS, export, net, ort_run, relative, take_one_step  # noqa: E402

FUSED = ("vit", "transformer")  # attention in one call: the older exporter has it since opset 14
AGAIN = ("convnext", "unet", "vit", "tagger")


@pytest.mark.parametrize("name", [n for n in NETS if n not in FUSED])
def test_legacy_exports_with_a_fixed_batch(name: str) -> None:
    check(name, 13, dynamo=False, free=False)


@pytest.mark.parametrize("name", ["resnet", "lstm", "style", "mlp", *FUSED])
def test_legacy_exports_with_a_free_batch(name: str) -> None:
    check(name, 17, dynamo=False, free=True)


@pytest.mark.parametrize("name", [n for n in NETS if n != "transformer"])
def test_dynamo_exports_with_a_fixed_batch(name: str) -> None:
    """Every opset from 18 to 23 by turns; fused attention is an operator of its own at 23."""
    opset = 23 if name in FUSED else 18 + list(NETS).index(name) % 6
    check(name, opset, dynamo=True, free=False)


@pytest.mark.parametrize(("name", "opset"), [("unet", 20), ("attention", 23), ("transformer", 23)])
def test_dynamo_exports_with_a_free_batch(name: str, opset: int) -> None:
    check(name, opset, dynamo=True, free=True)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 19, 22])
@pytest.mark.parametrize("name", AGAIN)
def test_dynamo_exports_at_more_opsets(name: str, opset: int) -> None:
    check(name, opset, dynamo=True, free=opset % 2 == 0)


def bound(model: onnx.ModelProto) -> float:
    """onnxruntime's GroupNormalization is by itself up to 2e-5 away from float64."""
    kinds = {node.op_type for node in model.graph.node}
    return 1e-4 if "GroupNormalization" in kinds else 1e-5


def check(name: str, opset: int, *, dynamo: bool, free: bool) -> None:
    module, inputs = net(name)
    model = export(module, inputs(2 if free else 1), opset, dynamo=dynamo, free=free)
    gm = to_torch(model, batch="free").eval()
    x = inputs(3)  # neither the size that it was exported with, nor 1
    freed = free_batch(model)
    onnx.checker.check_model(freed)
    with torch.no_grad():
        assert relative(gm(x), ort_run(freed, x.numpy())[0]) < bound(model)
    assert write_back(gm, model).SerializeToString() == model.SerializeToString()
    take_one_step(gm, x)
    trained = write_back(gm, model)
    onnx.checker.check_model(trained)
    with torch.no_grad():
        assert relative(gm.eval()(x), ort_run(free_batch(trained), x.numpy())[0]) < 1e-4
    again = dict(to_torch(trained).named_parameters())
    for path, parameter in gm.named_parameters():
        assert torch.equal(parameter, again[path]), path
