"""``bnpass fold --to``: the folded model in float16 or bfloat16."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.commands.checking import check
from bnpass.errors import UsageError
from bnpass.report.tables import Table
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.commands.normalising import Normalised
    from bnpass.frontends.onnx.folding import Folded, FoldOptions
    from bnpass.frontends.onnx.half import HalfModel
    from bnpass.runtime.accuracy import Conditioning


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


def fold_to(
    args: argparse.Namespace,
    ui: Ui,
    path: Path,
    wanted: FoldOptions,
    prove: Callable[[Any, Any, frozenset[str]], object] | None,
    chosen: Normalised | None = None,
) -> Folded:
    """Fold, narrow, verify both, and write.

    Args:
        args: of ``bnpass fold``.
        ui: gets what was found.
        path: the output.
        wanted: options of the fold.
        prove: verifies the fold; None verifies nothing.
        chosen: the model with a normalisation in front that is folded, too.
    """
    from bnpass.files import data_files, save_model
    from bnpass.frontends.onnx.half.fold import fold_to_half

    source = Path(args.model)
    external = True if data_files(source) else None
    check_half = None if prove is None else _narrow_check(args, ui, chosen)
    given: dict[str, Any] = {"io": args.to_io, "check": prove, "check_half": check_half}
    if chosen is None:
        done, narrowed = fold_to_half(source, wanted, args.to, **given)
    else:
        model = chosen.front.model
        done, narrowed = fold_to_half(model, wanted, args.to, fold=chosen.fold, **given)
    save_model(done.model, path, force=args.force, source=source, external=external)
    _show(narrowed, ui)
    return done


def _narrow_check(
    args: argparse.Namespace, ui: Ui, chosen: Normalised | None
) -> Callable[[Any, HalfModel, frozenset[str]], object]:
    def prove(before: Any, narrowed: HalfModel, changed: frozenset[str]) -> None:
        from bnpass.runtime.precision import precision

        found = precision(before, narrowed.dtype, seed=args.seed)
        ui.document["precision"] = found.to_dict()
        if "verify" in ui.document:
            ui.document["verify_fold"] = ui.document.pop("verify")
        if args.explain and found.conditioning:
            ui.table(conditioning_table(found.conditioning, narrowed.dtype))
        for note in found.notes:
            ui.warn(note)
        ui.say(f"tolerance in {narrowed.dtype}: {found.rule.rtol:.2g} relative, from the type and "
               f"the |mean| / sigma of {len(found.conditioning)} layers")
        check(before, narrowed.model, ui, changed=changed, provider=args.provider, seed=args.seed,
              rule=found.rule, prepare=None if chosen is None else chosen.prepare)

    return prove


def conditioning_table(layers: list[Conditioning], dtype: str) -> Table:
    """Layers by |mean| / sigma, the worst first."""
    table = Table(f"conditioning: what {dtype} costs a normalised value",
                  ["layer", "value", "worst |mean|/sigma", "rms", "expected relative error"],
                  right=frozenset({2, 3, 4}))
    for layer in layers:
        table.add(layer.node, layer.value, layer.ratio, layer.rms, layer.expected)
    return table


def _show(narrowed: HalfModel, ui: Ui) -> None:
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
