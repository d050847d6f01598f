"""On a GPU an imported module computes what it computes on the CPU, and trains."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from bnpass.importer import to_torch  # noqa: E402
from tests.importer.nets import NETS, export, net, relative  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", NETS)
def test_the_same_on_a_gpu(name: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module, inputs = net(name)
    x = inputs(3)
    gm = to_torch(export(module, x, 17, dynamo=False, free=True)).eval()
    with torch.no_grad():
        wanted = gm(x).numpy()
        gm.cuda()
        assert relative(gm(x.cuda()).cpu(), wanted) < 1e-4
    gm.train()(x.cuda()).square().sum().backward()
    assert all(p.grad is not None for p in gm.parameters())
