"""Trained branches made one: the fold of a file beside each architecture's own function.

    python benchmarks/reparameterize.py [--quick] [--no-latency] [-o OUT.json]

Networks of timm (it has to be installed; random weights and statistics), exported as they are and
folded by bnpass; and exported after timm's reparameterize_model, which calls what their authors
wrote for each kind of block. Error: onnxruntime without optimizations against the network in
float64, relative to its largest output.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import torch

import bnpass
from benchmarks.common import heading, machine, parser, save, table
from benchmarks.folding.judge import run as outputs
from benchmarks.inference import export, kernels, ratios
from benchmarks.timm_models import timm_models
from benchmarks.torch_models import disturb

NETS = {"repvgg_a0": 64, "mobileone_s0": 64, "fastvit_t8": 64, "repvit_m0_9": 64,
        "repghostnet_050": 64, "levit_128s": 224}  # fmt: skip
"""Names in timm and sizes of their images."""
LAYERS = ("Conv", "Gemm", "MatMul")


def main() -> int:
    """Run the benchmark; 1 where ours costs more than the authors' own, or is wrong."""
    arguments = parser(__doc__)
    arguments.add_argument("--no-latency", action="store_true", help="numbers and costs alone")
    args = arguments.parse_args()
    why = timm_models()[1]
    if why:
        print(f"nothing done: {why}")
        return 0
    results: dict[str, Any] = {"machine": machine()}
    heading("Branches: as trained, folded by bnpass, by the authors' own function")
    rows, good = [], True
    for name in list(NETS)[:1] if args.quick else NETS:
        results[name] = found = one(name, latency=not args.no_latency, quick=args.quick)
        rows += [[name if tool == "trained" else "", tool, *_cells(found[tool])] for tool in found]
        ours, own = found["bnpass"], found["own"]
        good &= ours["error"] < 1e-3 and ours["multiply_adds"] <= own["multiply_adds"]
    table(["network", "", "BN", "layers", "nodes", "multiply-adds", "weights", "error",
           "time over trained"], rows)
    save(args.output, results)
    return 0 if good else 1


def one(name: str, *, latency: bool, quick: bool) -> dict[str, dict[str, Any]]:
    """What each file of one network costs, and how far it is off."""
    net, x = _network(name)
    with torch.no_grad():
        reference = copy.deepcopy(net).double()(x.double()).numpy()
    with tempfile.TemporaryDirectory() as folder:
        files = {tool: Path(folder) / f"{tool}.onnx" for tool in ("trained", "bnpass", "own")}
        export(lambda: (net, (x,)), "dynamo", files["trained"])
        bnpass.fold(files["trained"], output=files["bnpass"])
        export(lambda: (_reparameterized(net), (x,)), "dynamo", files["own"])
        found = {tool: _measured(path, x, reference) for tool, path in files.items()}
        if latency:
            for tool, ratio in ratios({"original": files.pop("trained"), **files},
                                      quick=quick).items():  # fmt: skip
                found[tool]["time"] = 1 / ratio
    return found


def _network(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10)
    disturb(net)
    with torch.no_grad():
        net.train()(torch.randn(8, 3, NETS[name], NETS[name]))  # statistics off 0 and 1
    return net.eval(), torch.randn(1, 3, NETS[name], NETS[name])


def _reparameterized(net: torch.nn.Module) -> torch.nn.Module:
    from timm.utils import reparameterize_model

    made: torch.nn.Module = reparameterize_model(copy.deepcopy(net).eval())
    return made


def _measured(path: Path, x: torch.Tensor, reference: Any) -> dict[str, Any]:
    model = onnx.load(path)
    name = model.graph.input[0].name
    got = outputs(path, {name: x.numpy()})[0]
    kinds = [node.op_type for node in model.graph.node]
    return {
        "norms": kinds.count("BatchNormalization"),
        "layers": sum(kind in LAYERS for kind in kinds),
        "nodes": kernels(path)["nodes"],
        "multiply_adds": multiply_adds(model),
        "weights": sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == 1),
        "error": float(abs(got - reference).max() / abs(reference).max()),
    }


def multiply_adds(model: onnx.ModelProto) -> int:
    """Of convolutions and matrix products (no transA), for the sizes that the file has."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in (*graph.input, *graph.value_info, *graph.output)}
    shapes.update({t.name: list(t.dims) for t in graph.initializer})
    total = 0
    for node in graph.node:
        if node.op_type in LAYERS:
            conv = node.op_type == "Conv"
            inner = shapes[node.input[1]][1:] if conv else shapes[node.input[0]][-1:]
            total += int(np.prod(shapes[node.output[0]])) * int(np.prod(inner))
    return total


def _cells(found: dict[str, Any]) -> list[Any]:
    millions = f"{found['multiply_adds'] / 1e6:,.1f} M"
    return [found["norms"], found["layers"], found["nodes"], millions,
            f"{found['weights'] / 1e6:,.2f} M", found["error"], found.get("time")]


if __name__ == "__main__":
    sys.exit(main())
