"""``bnpass fold --to``: the folded model in float16 or bfloat16."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bnpass.errors import UsageError
from bnpass.report.tables import Table
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.deploy import Deployed
    from bnpass.frontends.onnx.half import HalfModel
    from bnpass.runtime.accuracy import Conditioning
    from bnpass.runtime.tolerance import Tolerance


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """``--to`` and ``--to-io``."""
    group.add_argument("--to", choices=("fp16", "bf16", "float16", "bfloat16"), metavar="fp16|bf16",
                       help="also convert the folded model to float16 or bfloat16")
    group.add_argument("--to-io", action="store_true",
                       help="with --to: inputs and outputs too (they stay float32 otherwise)")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse ``--to-io`` alone.

    Raises:
        UsageError: there is no ``--to``.
    """
    if args.to_io and not args.to:
        raise UsageError("--to-io without --to", "add --to fp16 or --to bf16")


def tolerance(done: Deployed, args: argparse.Namespace, ui: Ui) -> Tolerance:
    """What the narrow type allows the result to differ by."""
    from bnpass.runtime.precision import precision

    assert done.half is not None
    dtype = done.half.dtype
    found = precision(done.reference, dtype, seed=args.seed)
    ui.document["precision"] = found.to_dict()
    if "verify" in ui.document:
        ui.document["verify_fold"] = ui.document.pop("verify")
    if args.explain and found.conditioning:
        ui.table(conditioning_table(found.conditioning, dtype))
    for note in found.notes:
        ui.warn(note)
    ui.say(f"tolerance in {dtype}: {found.rule.rtol:.2g} relative, from the type and "
           f"the |mean| / sigma of {len(found.conditioning)} layers")
    return found.rule


def conditioning_table(layers: list[Conditioning], dtype: str) -> Table:
    """Layers by |mean| / sigma, the worst first."""
    table = Table(f"conditioning: what {dtype} costs a normalised value",
                  ["layer", "value", "worst |mean|/sigma", "rms", "expected relative error"],
                  right=frozenset({2, 3, 4}))
    for layer in layers:
        table.add(layer.node, layer.value, layer.ratio, layer.rms, layer.expected)
    return table


def show(narrowed: HalfModel, ui: Ui) -> None:
    """Say what was narrowed."""
    ui.document["narrow"] = narrowed.to_dict()
    if narrowed.storage:
        ui.say(f"weights stored in {narrowed.dtype}, arithmetic in float32: {narrowed.storage}")
    else:
        ui.say(f"weights and arithmetic in {narrowed.dtype}, rounded from the folded float32 "
               f"weights; {len(narrowed.kept)} nodes stay in float32")
    for node, reason in narrowed.kept.items():
        ui.detail(f"{node}: {reason}")
    if narrowed.vanished:
        ui.warn(f"{narrowed.vanished} weights are too small for {narrowed.dtype} and became 0")
