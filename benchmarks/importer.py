"""The importer side by side: ``python benchmarks/importer.py [--rounds N] [--skip-cases]``.

1. A training step of an imported network against the same network in torch, steps interleaved.
2. Import time against the number of nodes, in CPU time.
3. onnx's own node tests: how many this importer passes, and other readers where installed.

On the CPU, one thread unless OMP_NUM_THREADS says otherwise. No network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from bnpass.importer import known_ops, to_torch
from bnpass.importer.values import from_array, to_tensor, torch_dtype
from bnpass.report.tables import Table, render


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
            nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name -> a network and a batch of inputs."""
    images = torch.randn(16, 3, 32, 32)
    conv = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Sigmoid(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.Sigmoid(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    residual = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), Residual(32), Residual(32), nn.AvgPool2d(4), Residual(32),
        nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip
    widths = (256, 256, 256, 256)
    layers = [m for i, o in pairwise(widths)
              for m in (nn.Linear(i, o), nn.BatchNorm1d(o), nn.Sigmoid())]  # fmt: skip
    encoder = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    return {
        "convolutions": (conv, images),
        "residual": (residual, images),
        "MLP": (nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(256, 256)),
        "LSTM": (Tagger(), torch.randn(32, 24, 32)),
        "transformer": (encoder, torch.randn(16, 32, 64)),
    }


def imported(module: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    """The network out of its own ONNX export; optimised by the exporter if no BN gets lost."""
    norms = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in module.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("N", min=2)},)
        program = torch.onnx.export(
            module.eval(), (x,), dynamo=True, optimize=not norms, dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    return to_torch(program.model_proto)


def stepper(module: nn.Module, x: Tensor) -> Callable[[], float]:
    """A function that takes one training step and says how long it took."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def step_speed(rounds: int) -> Table:
    """One row a network: median of each, and the median of the ratios of neighbouring steps."""
    rows = []
    for name, (module, x) in networks().items():
        steps = [stepper(imported(module, x), x), stepper(module, x)]
        pairs = []
        for number in range(rounds + 5):
            order = (0, 1) if number % 2 else (1, 0)  # neither of them is always the first
            taken = {which: steps[which]() for which in order}
            pairs.append((taken[0], taken[1]))
        pairs = pairs[5:]
        ours, torchs = (statistics.median(p[i] for p in pairs) * 1e3 for i in (0, 1))
        ratio = statistics.median(a / b for a, b in pairs)
        rows.append([name, f"{torchs:.2f}", f"{ours:.2f}", f"{ratio:.3f}"])
    return Table(
        "A training step, imported against written by hand",
        ("network", "torch ms", "imported ms", "ratio"), rows, note="ratio: imported / torch",
    )  # fmt: skip


def chain(count: int) -> onnx.ModelProto:
    """``count`` nodes of Conv, BatchNormalization and Relu, in a row."""
    nodes, weights, value = [], [], "x"
    for i in range(count // 3):
        shapes = {"W": (2, 2, 1, 1), "g": (2,), "b": (2,), "m": (2,), "v": (2,)}
        weights += [
            numpy_helper.from_array(np.ones(shape, np.float32), f"layer{i}.{name}")
            for name, shape in shapes.items()
        ]
        norm = [f"layer{i}.{name}" for name in "gbmv"]
        nodes += [
            helper.make_node("Conv", [value, f"layer{i}.W"], [f"c{i}"]),
            helper.make_node("BatchNormalization", [f"c{i}", *norm], [f"n{i}"]),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"]),
        ]
        value = f"r{i}"
    ends = [helper.make_tensor_value_info(n, 1, [1, 2, 3, 3]) for n in ("x", value)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def import_time(counts: list[int]) -> Table:
    """One row a size: CPU time of to_torch, and a node's share against that of the smallest."""
    to_torch(chain(30))
    rows, first = [], 0.0
    for count in counts:
        model = chain(count)
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            to_torch(model)
            best = min(best, time.process_time() - start)
        each = best / count * 1e6
        first = first or each
        rows.append([f"{count:,}", f"{best:.2f}", f"{each:.0f}", f"{each / first:.2f}"])
    return Table("Import time", ("nodes", "CPU s", "us a node", "ratio to the first"), rows)


def outcome(read: Callable[[onnx.ModelProto], nn.Module], case: Any) -> str:
    """Whether a reader gives the expected outputs of a case."""
    try:
        module = read(case.model).eval()
        for inputs, wanted in case.data_sets:
            feeds = [tensor_of(v, i) for v, i in zip(inputs, case.model.graph.input, strict=True)]
            with torch.no_grad():
                made = module(*feeds)
            made = made if isinstance(made, tuple | list) else (made,)
            pairs = zip(made, wanted, case.model.graph.output, strict=True)
            if not all(same(a, tensor_of(b, info), case.rtol) for a, b, info in pairs):
                return "different"
    except Exception:  # noqa: BLE001 - whatever another reader raises, the case is refused
        return "refused"
    return "passed"


def tensor_of(value: Any, info: onnx.ValueInfoProto) -> Tensor:
    if isinstance(value, onnx.TensorProto):
        return to_tensor(value)
    dtype = torch_dtype(info.type.tensor_type.elem_type)
    if dtype is None:
        raise ValueError("no torch type")
    return from_array(np.asarray(value), dtype)


def same(made: Tensor, wanted: Tensor, rtol: float) -> bool:
    if made.shape != wanted.shape or made.dtype != wanted.dtype:
        return False
    eps = torch.finfo(wanted.dtype).eps if wanted.dtype.itemsize < 4 and made.is_floating_point() \
        else 0.0  # fmt: skip
    pair = made.double(), wanted.double()
    return bool(torch.allclose(
        *pair, rtol=max(rtol, 1e-4, 4 * eps), atol=max(1e-6, eps), equal_nan=True
    ))  # fmt: skip


def readers() -> dict[str, Callable[[onnx.ModelProto], nn.Module] | str]:
    """Name -> how it reads a model, or why it cannot be asked."""
    found: dict[str, Callable[[onnx.ModelProto], nn.Module] | str] = {
        "bnpass": lambda model: to_torch(model, batch="keep")
    }
    try:
        import onnx2torch  # type: ignore[import-not-found]

        found["onnx2torch"] = onnx2torch.convert
    except ImportError as error:
        found["onnx2torch"] = f"not installed ({error}; it needs torchvision)"
    try:
        import onnx2pytorch  # type: ignore[import-not-found]

        found["onnx2pytorch"] = onnx2pytorch.ConvertModel
    except ImportError as error:
        found["onnx2pytorch"] = f"not installed ({error})"
    return found


def case_counts() -> Table:
    """One row a reader: the cases of one node of an operator that the importer's table has."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = set(known_ops()) | {"Constant", "If"}
        cases = [
            c for c in collect_testcases(None)
            if len(c.model.graph.node) == 1 and c.model.graph.node[0].op_type in known
            and not c.model.graph.node[0].domain
        ]  # fmt: skip
        rows = []
        for name, read in readers().items():
            if isinstance(read, str):
                rows.append([name, read, "", "", ""])
                continue
            found = Counter(outcome(read, case) for case in cases)
            counts = [str(found[kind]) for kind in ("passed", "refused", "different")]
            rows.append([name, *counts, f"{found['passed'] / len(cases):.3f}"])
    return Table(
        f"onnx's node tests: {len(cases)} cases", ("reader", "passed", "refused", "different",
        "ratio"), rows, note="different: random Dropout, and two Resize where onnxruntime rounds",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60, help="timed pairs of steps")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1500, 6000, 24000])
    parser.add_argument("--skip-cases", action="store_true", help="leave the node tests out")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    render(step_speed(args.rounds), sys.stdout)
    render(import_time(args.nodes), sys.stdout)
    if not args.skip_cases:
        render(case_counts(), sys.stdout)


if __name__ == "__main__":
    main()
