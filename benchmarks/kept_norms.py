"""Exports that keep BatchNorm: ``python benchmarks/kept_norms.py [--only NAME]``.

``torch.onnx.export(dynamo=True, optimize=False)`` leaves every BatchNorm in the file, and writes a
bias that a layer does not have as zeros, ``Expand(CastLike(0, x), Shape(W))``. Each architecture
is exported twice:

- with BatchNorms and without the biases that these make redundant: as many fold as in torch;
- without BatchNorms and without biases: they are inserted, the outputs stay, and they fold again.

Outputs are compared on onnxruntime without optimizations.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

import bnpass
from benchmarks import common
from benchmarks.architectures import NORMED, PLAIN, resnet

MODELS = {
    **PLAIN, "ResNet-34": lambda: resnet((3, 4, 6, 3), False),
    "ResNet-26": lambda: resnet((2, 2, 2, 2), True),
    "MLP": lambda: (nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(),
                                  nn.Linear(64, 10)), (torch.randn(4, 32),)),
}  # fmt: skip

LIMIT = 2e-4
"""Largest difference by the output's largest magnitude; 100 layers of float32 in a row."""


@dataclass
class Row:
    """What became of one architecture.

    Attributes:
        name: which.
        norms: BatchNorms in the file that has them.
        left: of these after the fold.
        algebra: of these after a fold of the torch module itself: what no weight can take in.
        error: of the fold, relative to the largest output.
        inserted: BatchNorms inserted into the file without any.
        unfolded: of these after a fold.
        moved: relative change of the outputs by insertion and fold together.
        trouble: what went wrong, else empty.
    """

    name: str
    norms: int = 0
    left: int = 0
    algebra: int = 0
    error: float = 0.0
    inserted: int = 0
    unfolded: int = 0
    moved: float = 0.0
    trouble: str = ""

    @property
    def right(self) -> bool:
        """Whether all folds, and insertion found a place and came out again."""
        folds = self.norms > 0 and self.left == self.algebra and self.error <= LIMIT
        inserts = self.inserted > 0 and self.unfolded == 0 and self.moved <= LIMIT
        return folds and inserts and not self.trouble


def without_biases(net: nn.Module) -> nn.Module:
    """The same with convolutions and linear layers that have none.

    But 3-d convolutions: the zeros that the exporter writes there have a shape that onnxruntime
    does not take.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
        elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            module.register_parameter("bias", None)
    return net


def disturbed(net: nn.Module) -> nn.Module:
    """Statistics and scales that a forgotten fold would show."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            count = module.num_features
            module.weight.data.copy_(torch.rand(count, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(count, generator=generator) * 0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(count, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(count, generator=generator) + 0.5)
    return net


def exported(net: nn.Module, inputs: tuple[Any, ...], path: Path) -> onnx.ModelProto:
    """The file that keeps every BatchNorm, read again."""
    torch.onnx.export(net.eval(), inputs, path, dynamo=True, optimize=False, verbose=False)
    return onnx.load(path)


def norms(model: onnx.ModelProto) -> int:
    """BatchNormalizations of the main graph."""
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def outputs(model: onnx.ModelProto, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    """What onnxruntime computes, without optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_inputs()]
    feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return list(session.run(None, feeds))


def apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest difference by the largest magnitude."""
    pairs = zip(a, b, strict=True)
    return max(float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-12)) for x, y in pairs)


def count(module: nn.Module) -> int:
    """BatchNorms of a torch module."""
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def row(name: str, published: bool, folder: Path) -> Row:
    """Both files of one architecture, there and back.

    Args:
        name: of the architecture.
        published: with the BatchNorms that it was published with, else with inserted ones.
        folder: for the files.
    """
    found = Row(f"{name}, published" if published else name)
    try:
        torch.manual_seed(0)
        made, inputs = (NORMED if published else MODELS)[name]()
        net = without_biases(MODELS[name]()[0].eval())
        normed = made if published else bnpass.insert(net, inputs)
        normed = disturbed(without_biases(normed)).eval()
        found.algebra = count(bnpass.fold(normed, inputs))
        model = exported(normed, inputs, folder / "normed.onnx")
        folded = bnpass.fold(model, verify=False)
        found.norms, found.left = norms(model), norms(folded)
        found.error = apart(outputs(model, inputs), outputs(folded, inputs))
        plain = exported(net, inputs, folder / "plain.onnx")
        with_norms = bnpass.insert(plain, init="preserve")
        again = bnpass.fold(with_norms, verify=False)
        found.inserted, found.unfolded = norms(with_norms), norms(again)
        found.moved = apart(outputs(plain, inputs), outputs(again, inputs))
    except Exception as error:  # noqa: BLE001 - what goes wrong is the result
        found.trouble = f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
    return found


def main() -> None:
    """Run and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", metavar="NAME", help="architectures whose name contains this")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = [
        (name, published) for name in MODELS if not args.only or args.only in name
        for published in (False, True) if not published or name in NORMED
    ]  # fmt: skip
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, published in names[:2] if args.quick else names:
            found.append(row(name, published, Path(folder)))
            print(found[-1], flush=True)
    common.heading("exports that keep BatchNorm: folded, and inserted into")
    columns = ("architecture", "BN", "left", "in torch", "error", "inserted", "left", "error",
               "right")
    common.table(columns, [
        (r.name, r.norms, r.left, r.algebra, f"{r.error:.0e}", r.inserted, r.unfolded,
         f"{r.moved:.0e}", "yes" if r.right else f"NO {r.trouble}")
        for r in found
    ])  # fmt: skip
    print(f"\n{sum(r.right for r in found)} of {len(found)} right")
    common.save(args.output, {"machine": common.machine(), "rows": [asdict(r) for r in found]})


if __name__ == "__main__":
    main()
