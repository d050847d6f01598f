"""Published torch architectures, end to end: python benchmarks/torch_models.py [-o OUT.json]

Plain networks: insert -> one training step -> calibrate -> fold -> export; onnxruntime on the
folded file is compared with torch on the network that still has its BN, on a batch of another size
(error), beside what float32 costs that network in torch (torch's own, against float64) and the
error of the fold where everything is float64.
Networks with BN of their own, and timm's if timm is installed: the same without the insertion.
Modules of timm, transformers, segmentation_models_pytorch and ultralytics, as far as they are
installed, the whole way, and what is left of them: anchors, class, state_dict, dropout.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import bnpass
from benchmarks.architectures import NORMED, PLAIN, Model
from benchmarks.common import heading, machine, parser, save, table, version
from benchmarks.module_nets import NETS
from benchmarks.module_path import PathRow, whole_path
from benchmarks.timm_models import timm_models
from bnpass.passes.fold import FoldPlan
from bnpass.runtime.session import session

LIMIT = 1e-4  # relative error up to which onnxruntime equals torch
EXACT = 1e-9  # the same for the fold in float64
QUICK = ("VGG-16", "U-Net", "Text CNN", "MobileNetV2")

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Row:
    """What came of one network.

    Attributes:
        nonlinearities, inserted, skipped, biases: of the insertion's plan.
        norms: BatchNorms that the network has itself.
        left: BatchNormalization nodes in the folded file.
        reasons: why, and how many of them.
        error: largest difference of the outputs, over the largest output.
        own: the same of torch in float32 against torch in float64, both with BN.
        exact: the same of the network folded in float64 against torch in float64.
        seconds: insert, fold and export, without training and checks.
    """

    name: str
    nonlinearities: int = 0
    inserted: int = 0
    skipped: int = 0
    biases: int = 0
    norms: int = 0
    left: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    error: float | None = None
    own: float = 0.0
    exact: float = 0.0
    seconds: float = 0.0
    failed: str = ""


class Watch:
    """Adds up the time that the passes take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **options)
        self.seconds += time.perf_counter() - start
        return result


def plain(name: str, net: nn.Module, x: Inputs, folder: Path) -> Row:
    """The whole way of a network without BN."""
    watch = Watch()
    plan = bnpass.insert(net, x, plan_only=True)
    made = watch(bnpass.insert, net, x)
    _step(made, x)
    bnpass.calibrate(made, [x[0]])
    folded = watch(bnpass.fold, made)
    found = _compare(made, folded, x, folder / f"{name}.onnx", watch)
    return Row(
        name, plan.nonlinearities, len(plan.sites), len(plan.skipped), plan.dropped,
        **found, seconds=watch.seconds,
    )  # fmt: skip


def normed(name: str, net: nn.Module, x: Inputs, folder: Path) -> Row:
    """A network with BN of its own: a training step, statistics, fold."""
    watch = Watch()
    own = sum(isinstance(m, _BatchNorm) for m in net.modules())
    disturb(net)
    _step(net, x)
    bnpass.calibrate(net, [x[0]])
    plan = bnpass.fold(net, x, plan_only=True)
    folded = watch(bnpass.fold, net, x)
    found = _compare(net, folded, x, folder / f"{name}.onnx", watch)
    return Row(name, norms=own, reasons=_reasons(plan), **found, seconds=watch.seconds)


def _reasons(plan: FoldPlan) -> dict[str, int]:
    """Why what is left is left, without names, and how often."""
    return dict(Counter(re.sub(r" '[^']*'", "", e.reason) for e in plan.entries if not e.how))


def _step(module: nn.Module, x: Inputs) -> None:
    optimizer = torch.optim.SGD(module.train().parameters(), lr=1e-3)
    y = module(*x)
    (y - torch.randn_like(y)).square().mean().backward()
    optimizer.step()


def disturb(module: nn.Module) -> None:
    """Gammas and betas as after training; a few gammas are negative."""
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, _BatchNorm) and m.affine:
                m.weight.normal_(0.9, 0.4)
                m.bias.normal_(0.0, 0.3)


def _compare(
    net: nn.Module, folded: nn.Module, x: Inputs, path: Path, watch: Watch
) -> dict[str, Any]:
    """The folded file on onnxruntime against torch, with three samples more than exported."""
    watch(bnpass.export, folded, x, path, verify=False)
    left = sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    run = session(path)
    more = tuple(torch.cat([v, v.flip(0)[:3]]) for v in x)
    feeds = {i.name: v.numpy() for i, v in zip(run.get_inputs(), more, strict=True)}
    got = torch.from_numpy(run.run(None, feeds)[0])
    with torch.no_grad():
        want = net.eval()(*more)
        more = tuple(v.double() if v.is_floating_point() else v for v in more)
        exact = net.double()(*more)
        again = bnpass.fold(net, more)(*more)
    return {"left": left, "error": _relative(got, want), "own": _relative(want, exact),
            "exact": _relative(again, exact)}  # fmt: skip


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).abs().max() / want.abs().max())


def rows(models: dict[str, Callable[[], Model]], work: Callable[..., Row]) -> Iterator[Row]:
    """One row a network; what fails is a row too."""
    with tempfile.TemporaryDirectory() as folder:
        for name, make in models.items():
            torch.manual_seed(0)
            net, x = make()
            try:
                yield work(name, net, x, Path(folder))
            except Exception as error:  # noqa: BLE001 - the table says what does not work
                yield Row(name, failed=f"{type(error).__name__}: {str(error).splitlines()[0]}")


def show_plain(found: list[Row]) -> None:
    """The table of the networks without BN."""
    columns = ["model", "nonlinearities", "BN inserted", "none", "biases dropped", "BN left",
               "error", "torch's own", "in float64", "seconds", ""]  # fmt: skip
    table(columns, (
        (r.name, r.nonlinearities, r.inserted, r.skipped, r.biases, r.left, *_errors(r),
         round(r.seconds, 1), r.failed) for r in found
    ))  # fmt: skip


def show_normed(found: list[Row]) -> None:
    """The table of the networks with BN of their own."""
    columns = ["model", "BN", "BN left", "error", "torch's own", "in float64", "seconds", ""]
    table(columns, (
        (r.name, r.norms, r.left, *_errors(r), round(r.seconds, 1), r.failed) for r in found
    ))  # fmt: skip
    for row in found:
        for reason, count in row.reasons.items():
            print(f"  {row.name}, {count}: {reason}")


def wrong(row: Row) -> bool:
    """The fold is not exact; or onnxruntime differs, by more than float32 itself costs here."""
    if row.error is None or not row.exact <= EXACT:
        return True
    return not row.error <= max(LIMIT, 5 * row.own)


def _errors(row: Row) -> tuple[str, str, str]:
    if row.error is None:
        return "", "", ""
    note = " WRONG" if wrong(row) else " (over 1e-4)" if row.error > LIMIT else ""
    return f"{row.error:.1e}{note}", f"{row.own:.1e}", f"{row.exact:.1e}"


def _plain(quick: bool) -> list[Row]:
    heading("Networks without BN: insert, train a step, calibrate, fold, export")
    found = list(rows({k: v for k, v in PLAIN.items() if not quick or k in QUICK}, plain))
    show_plain(found)
    return found


def _normed(quick: bool) -> list[Row]:
    heading("Networks with BN of their own: train a step, calibrate, fold, export")
    found = list(rows({k: v for k, v in NORMED.items() if not quick or k in QUICK}, normed))
    show_normed(found)
    return found


def _timm(quick: bool) -> list[Row]:
    models, why = ({}, "--quick") if quick else timm_models()
    heading("timm's networks" + (f": left out ({why})" if why else ", as they are"))
    found = list(rows(models, normed))
    if found:
        show_normed(found)
    return found


def _modules(quick: bool, only: Sequence[str] = ("*",)) -> list[PathRow]:
    heading("Modules of other libraries without BN: what the whole way leaves of them")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = {n: make for n, make in NETS.items() if any(fnmatch(n, p) for p in only)}
        for name, make in {} if quick else chosen.items():
            torch.manual_seed(0)
            try:
                net, x = make()
                found.append(whole_path(name, net, x, Path(folder)))
                print(f"{name}: {found[-1].seconds:.1f} CPU s", file=sys.stderr, flush=True)
            except Exception as error:  # noqa: BLE001 - the table says what does not work
                text = (str(error).splitlines() or [""])[0]
                found.append(PathRow(name, failed=f"{type(error).__name__}: {text}"))
    columns = ["module", "BN", "a", "b", "c", "class", "graphs", "old state", "eval", "training",
               "as given", "drop path", "left", "error", "torch's own", "in float64", "CPU s",
               ""]  # fmt: skip
    table(columns, map(_path_cells, found))
    return found


def _path_cells(r: PathRow) -> tuple[Any, ...]:
    if r.failed:
        return (r.name, *[""] * 16, r.failed)
    share = "" if r.dropped is None else f"{r.dropped:.2f}"
    return (r.name, r.sites, r.at_output, r.at_input, r.inside, _kept(r.same_class), r.graphs,
            "loads" if r.old_state else "NO", "same" if r.still else "DIFFERS",
            f"{r.alive:.1g}", f"{r.given:.1g}", share, r.left, f"{r.error:.1e}", f"{r.own:.1e}",
            f"{r.exact:.1e}", round(r.seconds, 1), "")  # fmt: skip


def _kept(same: bool) -> str:
    return "kept" if same else "graph"


def spoilt(row: PathRow) -> bool:
    """A module that is not the one that was given, or that computes something else."""
    dead = row.given > 0 and not row.alive
    wide = row.error is None or row.error > max(LIMIT, 5 * row.own)
    return bool(row.failed or dead or wide or row.exact > EXACT or row.left) or not (
        row.old_state and row.still)  # fmt: skip


PARTS: dict[str, Callable[[bool], list[Any]]] = {
    "plain": _plain, "normed": _normed, "timm": _timm, "modules": _modules,
}  # fmt: skip


def main() -> None:
    """Run and print the tables; exit 1 if some network is wrong or fails."""
    options = parser(__doc__)
    options.add_argument("--part", choices=PARTS, action="append", help="only this part")
    options.add_argument("--module", action="append", help="of the modules: only these (globs)")
    args = options.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("bnpass").setLevel(logging.ERROR)  # a batch of 8 is no population
    others = ("timm", "transformers", "segmentation-models-pytorch", "ultralytics")
    facts = {**machine(), "torch": torch.__version__, **{name: version(name) for name in others}}
    table(["machine", ""], facts.items())
    parts = {name: PARTS[name](args.quick) for name in args.part or PARTS if name != "modules"}
    if "modules" in (args.part or PARTS):
        parts["modules"] = _modules(args.quick, args.module or ("*",))
    save(args.output, {"machine": facts, **{k: [asdict(r) for r in v] for k, v in parts.items()}})
    bad = any(map(spoilt, parts.get("modules", [])))
    found = [row for name, part in parts.items() if name != "modules" for row in part]
    sys.exit(bad or any(map(wrong, found)) or any(r.left for r in parts.get("plain", [])))


if __name__ == "__main__":
    main()
