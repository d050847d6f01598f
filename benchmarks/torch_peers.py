"""What torch itself folds, and what goes wrong: python benchmarks/torch_peers.py [-o OUT.json]

bnpass, torch.fx.experimental.optimization.fuse, torch.ao's fuse_fx, torch.jit.freeze and
torch.compile with freezing on small modules in eval mode, in float32; the judge is the module
itself in float64.
"""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

import bnpass
from benchmarks.common import machine, parser, save, table
from benchmarks.torch_patterns import PATTERNS, Pattern

WRONG = 1e-3  # relative error from which a result is wrong; rounding to float32 gives 1e-6

Folded = tuple[Callable[[torch.Tensor], Any], Callable[[], int]]
"""What a tool made, and a function that counts the BatchNorms left once it has run."""


def ours(module: nn.Module, x: torch.Tensor) -> Folded:
    made = bnpass.fold(module, (x,))
    return made, lambda: left(made)


def fx_fuse(module: nn.Module, _: torch.Tensor) -> Folded:
    from torch.fx.experimental.optimization import fuse

    made = fuse(module)
    return made, lambda: left(made)


def ao_fuse(module: nn.Module, _: torch.Tensor) -> Folded:
    from torch.ao.quantization.quantize_fx import fuse_fx

    made = fuse_fx(module)
    return made, lambda: left(made)


def jit_freeze(module: nn.Module, x: torch.Tensor) -> Folded:
    made = torch.jit.freeze(torch.jit.trace(module, x, check_trace=False))
    nodes = list(made.inlined_graph.nodes())
    return made, lambda: sum(node.kind() == "aten::batch_norm" for node in nodes)


def compiled(module: nn.Module, _: torch.Tensor) -> Folded:
    """A BN counts as left if its arithmetic, or a part of it, is in the graph that is compiled."""
    from torch._inductor import config

    graphs: list[int] = []
    torch._dynamo.reset()

    def look(graph: fx.Graph) -> None:
        graphs.append(sum(_is_norm(node) for node in graph.nodes))

    def run(value: torch.Tensor) -> Any:
        with config.patch(freezing=True, post_grad_custom_post_pass=_Pass(look)):
            return made(value)

    made = torch.compile(module)
    return run, lambda: min(1, sum(graphs)) if graphs else 1  # no graph: it ran as it was


def _Pass(look: Callable[[fx.Graph], None]) -> Any:  # noqa: N802 - a class made when asked for
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Pass(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            look(graph)

        def uuid(self) -> None:
            return None  # nothing is taken from a cache

    return Pass()


_ARITHMETIC = ("aten.sub.Tensor", "aten.mul.Tensor", "aten.rsqrt.default")


def _is_norm(node: fx.Node) -> bool:
    """Arithmetic on a frozen constant, or a BatchNorm as such."""
    name = str(node.target)
    if "batch_norm" in name:
        return True
    constants = any(n.op == "get_attr" for n in node.all_input_nodes)
    return name in _ARITHMETIC and constants


def left(gm: nn.Module) -> int:
    """BatchNorms that a traced module calls."""
    assert isinstance(gm, fx.GraphModule)
    return sum(_calls_norm(gm, node) for node in gm.graph.nodes)


def _calls_norm(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(isinstance(m, _BatchNorm) for m in gm.get_submodule(str(node.target)).modules())
    return node.target in (F.batch_norm, torch.batch_norm)


TOOLS: dict[str, Callable[[nn.Module, torch.Tensor], Folded]] = {
    "bnpass": ours,
    "fx fuse": fx_fuse,
    "ao fuse_fx": ao_fuse,
    "jit.freeze": jit_freeze,
    "compile freezing": compiled,
}


def randomize(module: nn.Module) -> nn.Module:
    """Statistics, gammas and betas as after training; a third of the gammas negative."""
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, _BatchNorm):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 1.5)
                if m.affine:
                    sign = torch.where(torch.rand(m.num_features) < 0.3, -1.0, 1.0)
                    m.weight.uniform_(0.5, 1.5).mul_(sign)
                    m.bias.normal_()
    return module


def judge(pattern: Pattern, tool: Callable[[nn.Module, torch.Tensor], Folded]) -> str:
    """One cell: folds, part, -, WRONG and the error, or the exception."""
    torch.manual_seed(0)
    module = randomize(pattern.make())
    if "train" not in pattern.name:
        module.eval()
    x = torch.randn(*pattern.shape)
    with torch.no_grad():
        want = _flat(copy.deepcopy(module).double()(x.double()))
        before = sum(isinstance(m, _BatchNorm) for m in module.modules())
        try:
            made, count = tool(copy.deepcopy(module), x)
            error = float((_flat(made(x)) - want).abs().max() / want.abs().max())
        except Exception as problem:  # noqa: BLE001 - the table says what does not work
            return type(problem).__name__
    if not error <= WRONG:
        return f"WRONG {error:.2g}"
    rest = count()
    return "folds" if not rest else "-" if rest >= before or tool is compiled else "in part"


def _flat(value: Any) -> torch.Tensor:
    values = value if isinstance(value, tuple) else (value,)
    return torch.cat([v.detach().double().flatten() for v in values])


def main() -> None:
    """Run and print the table; exit 1 if bnpass is wrong or leaves what can fold."""
    options = parser(__doc__)
    options.add_argument("--only", metavar="TEXT", default="", help="patterns whose name has it")
    args = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    facts = {**machine(), "torch": torch.__version__}
    table(["machine", ""], facts.items())
    print("\n-: left alone, right. in part: some of several. WRONG: error. Else: it raises.\n")
    tools = {k: v for k, v in TOOLS.items() if not (args.quick and v is compiled)}
    patterns = [p for p in PATTERNS if args.only in p.name]
    cells = {p.name: {name: judge(p, tool) for name, tool in tools.items()} for p in patterns}
    table(["pattern", *tools], ([name, *row.values()] for name, row in cells.items()))
    print()
    for name in tools:
        print(f"{name}: {_summary(cells, name)}")
    save(args.output, {"machine": facts, "cells": cells})
    wanted = {p.name: "-" if p.stays else "folds" for p in patterns}
    sys.exit(any(cells[name]["bnpass"] != want for name, want in wanted.items()))


def _summary(cells: dict[str, dict[str, str]], name: str) -> str:
    known = ("folds", "in part", "-", "WRONG")
    words = (row[name].split()[0] if row[name] != "in part" else "in part"
             for row in cells.values())  # fmt: skip
    counts = Counter(word if word in known else "fails" for word in words)
    return ", ".join(f"{counts[k]} {k}" for k in (*known, "fails") if counts[k])


if __name__ == "__main__":
    main()
