"""Population statistics: pooled, the paper's formula and moving averages against exact ones.

``python benchmarks/population.py [--data DIR] [-o out/population]``. For nets with sigmoids, tanh
and ReLU that were trained for a while, the statistics of every BN by each method at batch sizes 2
to 1000 are compared with exact ones: layer by layer in float64, each BN over all samples, with the
BNs in front of it in inference mode on exact statistics already. The table shows how far off the
variance of the BNs is that stand behind another BN (geometric mean of the ratio, and the worst
channel's), the picture the ratio against the batch size. A second table shows what torch's own
moving average is worth after 20 and after 100 training steps.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnx  # noqa: E402 - the package is imported from the source tree
import torch  # noqa: E402
from torch import nn  # noqa: E402

import bnpass  # noqa: E402
from bnpass.data import Data  # noqa: E402
from bnpass.files import atomic_write, load_model  # noqa: E402
from bnpass.nn.norms import batch_norms  # noqa: E402
from bnpass.pipeline.datasets import open_for  # noqa: E402
from bnpass.training import TrainConfig, calibrate, evaluate, initialize, train  # noqa: E402

SIZES = (2, 4, 8, 20, 60, 200, 1000)
METHODS = ("pooled", "paper", "ema")
NETS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}
STEPS = (20, 100)
Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Ratio:
    """Variance by one method over the exact one, for one kind of BN.

    Attributes:
        net, method, batch: what was measured.
        place: ``"first"`` BN of the net, or those ``"behind"`` another one.
        mean: geometric mean over channels and BNs.
        worst: of the channel that is farthest off.
    """

    net: str
    method: str
    batch: int
    place: str
    mean: float
    worst: float


@dataclass
class Report:
    """Both tables."""

    ratios: list[Ratio] = field(default_factory=list)
    ema: list[dict[str, Any]] = field(default_factory=list)


def network(nonlinearity: str, seed: int = 0) -> nn.Module:
    """Ten layers of 100 units with BN, from the ONNX file, as a module."""
    model = load_model(ROOT / "models" / "deep_sigmoid_mlp.onnx")
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = nonlinearity
    gm = bnpass.to_torch(bnpass.insert(model))
    return initialize(gm, "glorot", gain=math.sqrt(2) if nonlinearity == "Relu" else 1.0, seed=seed)


def trained(nonlinearity: str, data: Data, steps: int, seed: int = 0) -> nn.Module:
    """The network after some steps; its running statistics are torch's moving average."""
    gm = network(nonlinearity, seed)
    train(gm, data, None, TrainConfig(lr=0.1, steps=steps, batch_size=60, device="cpu", seed=seed,
                                      schedule="constant"))
    return gm


def exact(gm: nn.Module, x: torch.Tensor) -> Statistics:
    """Mean and biased variance of every BN, layer by layer, in float64.

    Args:
        gm: a network whose BNs are called in the order in which they are listed.
        x: all samples.
    """
    net = copy.deepcopy(gm).double().eval()
    found: Statistics = {}
    for name, norm in batch_norms(net).items():
        seen: list[torch.Tensor] = []
        hook = norm.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            net(x.double())
        hook.remove()
        values = torch.cat(seen).transpose(0, 1).flatten(1)
        found[name] = (values.mean(1), values.var(1, correction=0))
        norm.get_buffer("running_mean").copy_(found[name][0])
        norm.get_buffer("running_var").copy_(found[name][1])
    return found


def statistics_of(gm: nn.Module) -> Statistics:
    """The running statistics of every BN as they are."""
    return {n: (b.get_buffer("running_mean").double(), b.get_buffer("running_var").double())
            for n, b in batch_norms(gm).items()}


def compare(found: Statistics, right: Statistics, net: str, method: str, batch: int) -> list[Ratio]:
    """The ratios of the first BN and of those behind it."""
    names = list(right)
    lines = []
    for place, chosen in (("first", names[:1]), ("behind", names[1:])):
        logs = []
        for name in chosen:
            kept = right[name][1] > 1e-6 * right[name][1].max()  # a dead channel has no ratio
            logs.append((found[name][1][kept] / right[name][1][kept]).log())
        log = torch.cat(logs)
        worst = log[log.abs().argmax()]
        lines.append(Ratio(net, method, batch, place, float(log.mean().exp()), float(worst.exp())))
    return lines


def measure(data: Data, test: Data, *, steps: int = 300, sizes: tuple[int, ...] = SIZES) -> Report:
    """Fill both tables.

    Args:
        data: training data; statistics are taken over all of it.
        test: on which decisions are counted.
        steps: of the training before the first table.
        sizes: batch sizes of the first table.
    """
    report = Report()
    x = torch.from_numpy(data.batches(len(data)).__next__()[0])
    for net, kind in NETS.items():
        gm = trained(kind, data, steps)
        right = exact(gm, x)
        for method in METHODS:
            for size in sizes:
                other = copy.deepcopy(gm)
                calibrate(other, data, method=method, batch_size=size, warn=False)
                report.ratios += compare(statistics_of(other), right, net, method, size)
        print(f"{net}: done", file=sys.stderr, flush=True)
        report.ema += [after(kind, net, data, test, count) for count in STEPS]
    return report


def after(kind: str, net: str, data: Data, test: Data, steps: int) -> dict[str, Any]:
    """The moving average of a short training against pooled statistics: accuracy and decisions."""
    ema = trained(kind, data, steps)
    pooled = copy.deepcopy(ema)
    calibrate(pooled, data)
    x, _ = next(test.batches(len(test)))
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        differ = (ema.eval()(inputs).argmax(1) != pooled(inputs).argmax(1)).double().mean()
    return {"net": net, "steps": steps, "ema": evaluate(ema, test, device="cpu").accuracy,
            "pooled": evaluate(pooled, test, device="cpu").accuracy, "differ": float(differ)}


def markdown(report: Report) -> str:
    """Both tables."""
    sizes = sorted({r.batch for r in report.ratios})
    rows = [("net", "method", "BN", *map(str, sizes)), ("---",) * (3 + len(sizes))]
    known = {(r.net, r.method, r.place, r.batch): r for r in report.ratios}
    for net in dict.fromkeys(r.net for r in report.ratios):
        for method in METHODS:
            for place in ("first", "behind"):
                cells = [known[net, method, place, s] for s in sizes]
                rows.append((net, method, place, *(f"{c.mean:.3f} ({c.worst:.2f})" for c in cells)))
    second = [("net", "steps", "moving average", "pooled", "decisions that differ"), ("---",) * 5]
    second += [(e["net"], str(e["steps"]), f"{100 * e['ema']:.1f} %", f"{100 * e['pooled']:.1f} %",
                f"{100 * e['differ']:.1f} %") for e in report.ema]
    tables = ("\n".join("| " + " | ".join(r) + " |" for r in t) for t in (rows, second))
    first, ema = tables
    return (f"Variance over the exact one by batch size: mean (worst channel)\n\n{first}\n\n"
            f"Accuracy with the statistics that training leaves\n\n{ema}\n")


def draw(report: Report, path: Path) -> None:
    """The mean ratio of the BNs behind another one against the batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    nets = list(dict.fromkeys(r.net for r in report.ratios))
    figure = Figure(figsize=(4 * len(nets), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, net in zip(figure.subplots(1, len(nets), squeeze=False)[0], nets, strict=True):
        for method in METHODS:
            line = [r for r in report.ratios
                    if (r.net, r.method, r.place) == (net, method, "behind")]
            axes.semilogx([r.batch for r in line], [r.mean for r in line], marker=".",
                          label=method)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set(title=net, xlabel="batch size", ylabel="variance / exact variance")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def to_csv(report: Report) -> str:
    """The ratios, one a row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("net", "method", "batch", "place", "mean", "worst"))
    writer.writerows((r.net, r.method, r.batch, r.place, r.mean, r.worst) for r in report.ratios)
    return text.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "models" / "data",
                        help="IDX files of MNIST; the default is the committed sample")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/population"))
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(arguments)
    model: onnx.ModelProto = load_model(ROOT / "models" / "deep_sigmoid_mlp.onnx")
    data, test = (open_for(model, str(args.data), split=s) for s in ("train", "test"))
    data = data.subset(list(range(min(args.samples, len(data)))))
    report = measure(data, test, steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out / "population.csv", to_csv(report))
    atomic_write(args.out / "population.md", markdown(report))
    draw(report, args.out / "population.png")
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
