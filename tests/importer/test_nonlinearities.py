"""Every nonlinearity of the table of operators gets its BatchNorm, on every way into bnpass."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import bnpass  # noqa: E402
from bnpass.frontends.onnx.inserting import insert_model  # noqa: E402
from bnpass.importer import to_torch  # noqa: E402
from bnpass.importer.activations import ACTIVATIONS  # noqa: E402
from bnpass.ir.operators import kinds  # noqa: E402
from tests.helpers import build, feeds, run  # noqa: E402

SINGLE = sorted(
    kind
    for kind in kinds(lambda row: row.nonlinearity)
    if "::" not in kind and kind not in ("Max", "Min")
)
MORE = {"PRelu": "PRelu(c, s)", "Clip": "Clip(c, low, high)"}


def model_with(kind):
    """A convolution, the nonlinearity, a convolution."""
    call = MORE.get(kind, f"{kind}(c)")
    text = f"(float[1,3,6,6] x) => (float[] y) {{ c = Conv(x, w) a = {call} y = Conv(a, v) }}"
    weights = {"w": (4, 3, 3, 3), "v": (2, 4, 1, 1)}
    if kind == "PRelu":
        weights["s"] = (4, 1, 1)
    if kind == "Clip":
        weights |= {"low": -1.0, "high": 1.0}
    return build(text, weights, opset=24, ir=11)


@pytest.mark.parametrize("kind", SINGLE)
def test_an_imported_module_keeps_the_nonlinearity(kind):
    model = model_with(kind)
    assert [site.value for site in insert_model(model).plan.sites] == ["c"]
    module, inputs = to_torch(model), feeds(model)
    x = torch.from_numpy(inputs["x"])
    plan = bnpass.insert(module, (x,), plan_only=True)
    assert len(plan.sites) == 1, plan.skipped
    if kind != "Swish":  # onnxruntime 1.27 has none
        wanted = torch.from_numpy(run(model, inputs)["y"])
        torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "cls", [cls for row in ACTIVATIONS for cls in row.modules], ids=lambda cls: cls.__name__
)
def test_torch_s_own_modules_are_found(cls):
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), cls(), torch.nn.Linear(5, 2)).eval()
    assert len(bnpass.insert(net, (torch.zeros(3, 4),), plan_only=True).sites) == 1


@pytest.mark.parametrize("name", [name for row in ACTIVATIONS for name in row.names])
def test_torch_s_own_functions_are_found(name):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = torch.nn.Linear(4, 5), torch.nn.Linear(5, 2)

        def forward(self, x):
            function = getattr(torch.nn.functional, name, None) or getattr(torch, name)
            return self.other(function(self.one(x)))

    plan = bnpass.insert(Net().eval(), (torch.zeros(3, 4),), plan_only=True)
    assert len(plan.sites) == 1, plan.skipped
