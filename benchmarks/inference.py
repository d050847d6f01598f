"""What a fold does to inference on onnxruntime: fused kernels, layout, nodes, size, latency.

Architectures of timm and transformers (both have to be installed; random weights), each exported by
both of torch's exporters, each folded by bnpass and beside it by onnxsim, onnxslim and what
onnxruntime writes offline. Counts are those of onnxruntime's optimized graph; a ratio is the speed
over that of the original, from interleaved pairs on one thread.

A row is bad where a fused kernel is lost, a change of layout is added, or the ratio is below 0.98.

    python benchmarks/inference.py --only convnext gpt2 -o out/inference.json
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnx

from benchmarks import tools
from benchmarks.common import heading, machine, parser, save, table
from benchmarks.inference_nets import NETS, Model

EXPORTERS = {"torchscript": (False, 14), "dynamo": (True, 18)}
PEERS = ("onnxsim", "onnxslim", "onnxruntime")
FUSED = (
    "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "LayerNormalization",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "FusedMatMul", "FusedGemm", "FusedConv", "Attention", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QLinearConv", "QGemm", "BiasSoftmax",
)  # fmt: skip
PARTS = {
    "Gelu": ("Erf", "Tanh"), "BiasGelu": ("Erf", "Gelu"), "FastGelu": ("Tanh", "Gelu"),
    "QuickGelu": ("Sigmoid",), "FusedMatMul": ("Mul", "Div", "Transpose"),
    "FusedConv": ("Relu", "Clip", "LeakyRelu"), "FusedGemm": ("Relu", "Clip", "MatMul"),
    "LayerNormalization": ("ReduceMean",), "SimplifiedLayerNormalization": ("ReduceMean", "Pow"),
    "SkipLayerNormalization": ("LayerNormalization", "Add"), "BiasSoftmax": ("Softmax",),
    "SkipSimplifiedLayerNormalization": ("SimplifiedLayerNormalization", "Add"),
    "Attention": ("Softmax",), "DynamicQuantizeMatMul": ("MatMulInteger", "MatMulIntegerToFloat"),
    "MatMulIntegerToFloat": ("MatMulInteger",), "QLinearConv": ("Conv", "DequantizeLinear"),
    "QGemm": ("Gemm", "DequantizeLinear"),
}  # fmt: skip
"""What stands there instead of a fused kernel that is lost."""
LAYOUT = ("ReorderInput", "ReorderOutput", "BatchNormalization")
SLOWEST = 0.98


def main() -> int:
    """Run the benchmark; 1 where a row is bad."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", metavar="NAME", help="architectures (default all)")
    arguments.add_argument("--no-latency", action="store_true", help="counts and sizes alone")
    arguments.add_argument("--files", type=Path, metavar="FOLDER",
                           help="keep the files there, and take those that are there already")
    args = arguments.parse_args()
    names = [n for n in NETS if not args.only or any(word in n for word in args.only)]
    results: dict[str, Any] = {"before": machine()}
    heading("Inference on onnxruntime: original and folded")
    rows = []
    for name in names[:2] if args.quick else names:
        for exporter in EXPORTERS:
            found = one(name, exporter, latency=not args.no_latency, quick=args.quick,
                        kept=args.files)  # fmt: skip
            results[f"{name} {exporter}"] = found
            rows.append(_row(name, exporter, found))
            print("  ".join(map(str, rows[-1])), flush=True)
    table(["architecture", "exporter", "nodes", "size", "ratio", *PEERS, "lost, added"], rows)
    bad = [f"{row[0]} {row[1]}" for row in rows if row[-1] or _slow(results, row)]
    print(f"{len(rows) - len(bad)} of {len(rows)} good" + "".join(f"; {name}" for name in bad))
    results["after"] = machine()
    save(args.output, results)
    return 1 if bad else 0


def one(
    name: str, exporter: str, *, latency: bool, quick: bool, kept: Path | None = None
) -> dict[str, Any]:
    """Everything about one file."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) if kept is None else kept / f"{name} {exporter}"
        try:
            files = made(name, exporter, place)
        except Exception as error:  # noqa: BLE001 - exporters raise whatever they meet
            return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
        found: dict[str, Any] = {"counts": {}, "size": {}}
        for tool, path in files.items():
            found["size"][tool] = path.stat().st_size
            found["counts"][tool] = dict(kernels(path))
        if latency:
            found["ratio"] = ratios(files, quick=quick)
        return found


def made(name: str, exporter: str, folder: Path) -> dict[str, Path]:
    """The original and what every tool makes of it; what is in the folder already is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {tool: folder / f"{tool}.onnx" for tool in ("original", "bnpass", *PEERS)}
    if not files["original"].exists():
        export(NETS[name], exporter, files["original"])
        for tool in ("bnpass", *PEERS):
            with contextlib.suppress(Exception), _quiet():
                if tools.installed(tool):
                    tools.TOOLS[tool](str(files["original"]), str(files[tool]))
    return {tool: path for tool, path in files.items() if path.exists()}


def export(make: Callable[[], Model], exporter: str, path: Path) -> None:
    """A file as one of torch's exporters writes it."""
    import torch

    torch.manual_seed(0)
    net, inputs = make()
    dynamo, opset = EXPORTERS[exporter]
    with _quiet(), torch.no_grad():
        torch.onnx.export(net.eval(), inputs, str(path), opset_version=opset, dynamo=dynamo,
                          external_data=False, optimize=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def kernels(path: Path) -> Counter[str]:
    """Operators of onnxruntime's optimized graph by type; convolutions with a sum by themselves."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    found = Counter(node.op_type for node in graph.node)
    found["Conv with a sum"] = sum(n.op_type in ("Conv", "FusedConv") and len(n.input) > 3
                                   for n in graph.node)
    found["nodes"] = len(graph.node)
    return found


def ratios(files: dict[str, Path], *, quick: bool) -> dict[str, float]:
    """Speed of each file over that of the original: above 1 is faster."""
    from bnpass.runtime.bench import bench

    report = bench(files, batches=(1,), threads=(1,), runs=10 if quick else 200,
                   seconds=3 if quick else 10)
    return {ratio.model: 1 / ratio.ratio for ratio in report.ratios}


def changes(counts: dict[str, dict[str, int]]) -> list[str]:
    """Fused kernels that a fold lost, and what it added that costs time."""
    before, after = (Counter(counts[k]) for k in ("original", "bnpass"))
    fewer = [k for k in FUSED if after[k] < before[k]]
    lost = [k for k in fewer if any(after[part] > before[part] for part in PARTS.get(k, ("Mul",)))]
    # onnxruntime runs a BN in the blocked layout as a convolution: its sum goes with it
    fewer_sums, fewer_convs = (sum(before[k] - after[k] for k in kinds)
                               for kinds in (("Conv with a sum",), ("Conv", "FusedConv")))
    if fewer_sums > max(0, fewer_convs) and after["Add"] > before["Add"]:
        lost.append("Conv with a sum")
    gone = before["nodes"] - after["nodes"]
    added = [k for k in LAYOUT if after[k] - before[k] > max(0, gone // 2)]
    return [f"{k} {before[k]} -> {after[k]}" for k in (*lost, *added)]


def _row(name: str, exporter: str, found: dict[str, Any]) -> list[Any]:
    if "failed" in found:
        return [name, exporter, found["failed"], "", "", "", "", "", ""]
    counts, size, ratio = found["counts"], found["size"], found.get("ratio", {})
    if "bnpass" not in counts:
        return [name, exporter, "", "", "", "", "", "", "bnpass failed"]
    nodes = f"{counts['original']['nodes']} -> {counts['bnpass']['nodes']}"
    share = f"{size['bnpass'] / size['original'] - 1:+.1%}"
    speeds = [f"{ratio[k]:.3f}" if k in ratio else "" for k in ("bnpass", *PEERS)]
    return [name, exporter, nodes, share, *speeds, "; ".join(changes(counts))]


def _slow(results: dict[str, Any], row: list[Any]) -> bool:
    ratio = results[f"{row[0]} {row[1]}"].get("ratio", {}).get("bnpass")
    return ratio is not None and ratio < SLOWEST


if __name__ == "__main__":
    sys.exit(main())
