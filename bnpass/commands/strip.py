"""Take out what BatchNorm makes unnecessary: LRN and Dropout (section 4.2.1 of the paper).

Without LRN the network computes something else and wants training; without Dropout inference is
unchanged. --dropout 0.1 keeps every Dropout with that ratio instead.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.commands.checking import add_budget, add_data, check, samples
from bnpass.errors import UsageError
from bnpass.report.box import Counted, say_result, say_unchanged
from bnpass.report.plans import strip_summary, strip_table
from bnpass.report.ui import Ui
from bnpass.report.words import many

if TYPE_CHECKING:
    from bnpass.frontends.onnx.inserting import Stripped
    from bnpass.passes.strip import StripPlan
    from bnpass.runtime.verification import VerifyReport


EXAMPLES = (
    "bnpass strip models/inception.onnx -o out/plain.onnx",
    "bnpass strip models/inception.onnx --strip lrn --dry-run --explain",
)
COMMON = ("-o", "--force", "--explain", "--dry-run", "--require-change", "--only", "--skip",
          "--strip", "--dropout", "--no-verify", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    options.add_written(parser)
    options.add_plan_options(parser)
    options.add_strip(parser, default=("lrn", "dropout"))
    parser.add_argument("--no-verify", action="store_true",
                        help="do not compare with the original (without the LRNs that go)")
    add_budget(parser)
    add_data(parser)
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.frontends.onnx.inserting import StripOptions, strip
    from bnpass.onnx_model.editing import edit_file
    from bnpass.onnx_model.model import OnnxModel

    options.refuse_together(args, ("--no-verify", "--check-budget"), ("--no-verify", "--dims"))
    if args.dropout is not None and "dropout" not in args.strip:
        raise UsageError(f"--dropout with --strip {','.join(args.strip)}",
                         "--strip dropout says that Dropouts are meant")
    path = options.want_output(args, "stripped")
    options.check_patterns((*args.only, *args.skip), args.model)
    wanted = StripOptions(args.strip, args.dropout, tuple(args.only), tuple(args.skip))
    counted = Counted()
    reports: list[VerifyReport] = []

    def prove(done: Stripped, after: Any) -> None:
        if not args.no_verify and done.plan.does_something:
            reports.append(_prove(done.plan, after, args, ui))

    if path is None:
        plan = strip(OnnxModel.of(args.model, data=False), wanted).plan
    else:
        with ui.status(f"reading {args.model}") as counted.says:
            plan = edit_file(args.model, path, counted.around(lambda m: strip(m, wanted)),
                             force=args.force, check=prove).plan
        ui.document["output"] = path
    ui.document.update(ok=True, plan=plan.to_dict())
    if args.explain:
        ui.table(strip_table(plan))
    if not plan.does_something:
        why = f"no {' and no '.join(args.strip)} in the model"
        say_unchanged(ui, why, path)
        return options.unchanged(args, why, ui)
    ui.say(strip_summary(plan))
    if path is None:
        ui.say("nothing was written (no -o, or --dry-run)")
        return 0
    say_result(ui, counted, args.model, path,
               reports[-1] if reports else "not verified: --no-verify",
               f"bnpass insert {path} -o {options.sibling(path, 'bn')}")
    return 0


def _prove(plan: StripPlan, after: Any, args: argparse.Namespace, ui: Ui) -> VerifyReport:
    """Compare what is about to be written with the original at inference, but for its LRNs."""
    from bnpass.files import load_model
    from bnpass.frontends.onnx.inserting import without_norms
    from bnpass.verdict.judge import Edits

    original = without_norms(load_model(args.model, data=False), plan)
    if plan.norms:
        ui.log(f"compared with the original without its {many(len(plan.norms), 'LRN')}, with which "
               "it computes something else")
    edits = Edits(plan.edits.correspondences, original)
    return check(args.model, after, ui, edits=edits, budget=args.check_budget, dims=args.dims,
                 data=samples(after, args, ui))
