"""Turn linear branches into the one operator that computes the same.

Parallel convolutions, BatchNorms, identities and sums of them on one value, and layers that follow
each other with nothing between, become a single layer wherever that has no more weights and no more
multiply-adds: RepVGG, MobileOne, ACNet and the like as they are deployed. fold does it by itself
where a BatchNorm is among them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.commands.checking import add_budget, add_data, add_trust, check, samples
from bnpass.report.box import Counted, say_result, say_unchanged
from bnpass.report.plans import collapse_summary, collapse_table
from bnpass.report.ui import Ui
from bnpass.report.words import many

if TYPE_CHECKING:
    from bnpass.frontends.onnx.collapsing import Collapsed
    from bnpass.passes.collapse import CollapsePlan
    from bnpass.runtime.verification import VerifyReport


EXAMPLES = (
    "bnpass collapse models/inception.onnx --dry-run --explain",
    "bnpass collapse models/lenet.onnx --dry-run",
)
COMMON = ("-o", "--force", "--explain", "--dry-run", "--require-change", "--only", "--skip",
          "--norms-only", "--no-verify", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    options.add_written(parser)
    options.add_plan_options(parser)
    parser.add_argument("--norms-only", action="store_true",
                        help="only regions with a BatchNorm in them, as fold does")
    parser.add_argument("--no-verify", action="store_true",
                        help="do not compare with the original before writing")
    add_trust(parser)
    add_budget(parser)
    add_data(parser)
    options.add_seed(parser)
    options.add_provider(parser)
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.frontends.onnx.collapsing import Options, collapse
    from bnpass.onnx_model.editing import edit_file
    from bnpass.onnx_model.model import OnnxModel
    from bnpass.verdict.judge import Edits

    path = options.want_output(args, "collapsed")
    options.check_patterns((*args.only, *args.skip), args.model)
    wanted = Options(tuple(args.only), tuple(args.skip), "bn" if args.norms_only else "all")
    counted = Counted()
    reports: list[VerifyReport] = []

    def prove(done: Collapsed, after: Any) -> None:
        if not done.plan.collapsed:
            return
        edits = Edits(done.pairs, None, done.correspondences.changed,
                      tuple(sorted(done.declared)), args.trust_shapes)
        reports.append(check(
            args.model, after, ui, edits=edits, provider=args.provider, seed=args.seed,
            budget=args.check_budget, dims=args.dims, data=samples(after, args, ui),
        ))  # fmt: skip

    if path is None:
        plan = collapse(OnnxModel.of(args.model).copy(), wanted).plan
    else:
        proof = None if args.no_verify else prove
        with ui.status(f"reading {args.model}") as counted.says:
            plan = edit_file(args.model, path, counted.around(lambda m: collapse(m, wanted)),
                             force=args.force, check=proof).plan
        ui.document["output"] = path
    _show(plan, args, ui)
    if not plan.collapsed:
        why = f"{many(len(plan.refused), 'region')} stay: --explain gives the reasons" \
            if plan.refused else "no branches that are linear in one value meet in the model"
        say_unchanged(ui, why, path)
        return options.unchanged(args, why, ui)
    if path is None:
        ui.say("nothing was written (no -o, or --dry-run)")
        return 0
    left = counted.found[-1].batch_norms
    say_result(ui, counted, args.model, path,
               reports[-1] if reports else "not verified: --no-verify",
               f"bnpass fold {path} -o {options.sibling(path, 'folded')}" if left
               else f"bnpass bench {args.model} {path}")
    return 0


def _show(plan: CollapsePlan, args: argparse.Namespace, ui: Ui) -> None:
    ui.document.update(ok=True, collapsed=len(plan.collapsed), refused=len(plan.refused))
    if ui.json:
        ui.document["plan"] = plan.to_dict()
    if args.explain and plan.entries:
        ui.table(collapse_table(plan))
    if plan.collapsed:
        ui.say(collapse_summary(plan))
