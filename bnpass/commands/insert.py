"""Insert a BatchNorm in front of every nonlinearity of an ONNX model and drop redundant biases.

A BatchNorm goes only where it can be folded back again, whatever training makes of it. --explain
lists every nonlinearity with its site, or with the reason why it has none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.commands.checking import add_budget, add_split, add_trust, check, samples
from bnpass.errors import UsageError, close_matches
from bnpass.report.box import Counted, say_result, say_unchanged
from bnpass.report.plans import insert_summary, site_table, skipped_table, strip_summary
from bnpass.report.ui import Ui
from bnpass.report.words import many

if TYPE_CHECKING:
    import onnx

    from bnpass.frontends.onnx.inserting import Inserted, Measure
    from bnpass.onnx_model.model import OnnxModel
    from bnpass.passes.sites import InsertPlan, Policy
    from bnpass.runtime.verification import VerifyReport
    from bnpass.verdict.judge import Edits


_BATCH = 1000


EXAMPLES = (
    "bnpass insert models/lenet.onnx --dry-run --explain",
    "bnpass insert models/lenet.onnx -o out/lenet.bn.onnx",
)
COMMON = ("-o", "--force", "--explain", "--dry-run", "--require-change", "--only", "--skip",
          "--before", "--gates", "--last", "--clone", "--sums", "--init", "--data",
          "--freeze-inputs", "--max-growth", "--dims", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    options.add_written(parser)
    options.add_plan_options(parser)
    group = parser.add_argument_group("which nonlinearities")
    group.add_argument("--before", type=options.names, default=(), metavar="relu,sigmoid",
                       help="only in front of these operators")
    group.add_argument("--gates", action="store_true",
                       help="also in front of gates, whose result only multiplies another path")
    group.add_argument("--last", action="store_true",
                       help="also in front of the last nonlinearity before an output")
    group.add_argument("--clone", action="store_true",
                       help="duplicate a layer whose output is also read elsewhere")
    group.add_argument("--norms", action="store_true",
                       help="also behind a LayerNorm, InstanceNorm or GroupNorm")
    group.add_argument("--sums", choices=("branches", "value"), default="branches",
                       help="where a sum of several layers is normalised: each of them (default), "
                       "or the sum")
    group.add_argument("--linear", action="store_true",
                       help="also behind layers that no nonlinearity follows")
    group.add_argument("--allow-unfoldable", action="store_true",
                       help="also where the BatchNorm could not be folded back")
    options.add_constants(group)
    options.add_strip(parser.add_argument_group("layers that BatchNorm makes unnecessary"))
    group = parser.add_argument_group("the BatchNorm")
    group.add_argument("--init", choices=("fresh", "preserve", "calibrated"), default="fresh",
                       help="gamma 1, beta 0, for training from scratch (default); the function "
                       "unchanged, without data; unchanged, with the statistics of --data")
    group.add_argument("--zero-gamma", action="store_true",
                       help="gamma 0 at the end of residual branches, with --init fresh")
    group.add_argument("--data", metavar="DATA",
                       help="samples for --init calibrated, and for the check")
    group.add_argument("--branches", choices=("repvgg", "acnet"), default="",
                       help="beside every convolution with a wider kernel also a 1x1 and the "
                       "identity (repvgg), or a row and a column (acnet), each with a BatchNorm "
                       "of its own; fold makes one convolution of them")
    group.add_argument("--seed", type=int, default=0, metavar="N",
                       help="of the branches' weights (default 0)")
    group.add_argument("--eps", type=options.positive, default=1e-5, metavar="N",
                       help="added to the variance (default 1e-5)")
    group.add_argument("--momentum", type=options.fraction, default=0.1, metavar="N",
                       help="weight of a batch in the running statistics, as in PyTorch "
                       "(default 0.1)")
    group.add_argument("--no-verify", action="store_true",
                       help="do not compare with the original (not done for fresh anyway)")
    add_trust(group)
    add_budget(group)
    add_split(group)
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    path = options.want_output(args, "bn")
    if args.init == "calibrated" and not args.data and path is not None:
        raise UsageError("--init calibrated needs samples", "add --data DATA, or use --init "
                         "preserve")
    if args.zero_gamma and args.init != "fresh":
        raise UsageError(f"--zero-gamma changes the function, --init {args.init} keeps it",
                         "leave one of them out")
    options.check_patterns((*args.only, *args.skip), args.model)
    _check_before(args)
    job = _Insertion(args, ui)
    plan = job.planned() if path is None else job.written(path)
    if path is not None:
        ui.document["output"] = path
    _show(plan, args, ui)
    if not plan.sites and not job.stripped:
        why = plan.skipped[0].reason if plan.skipped else "the model has no nonlinearity"
        say_unchanged(ui, why, path)
        return options.unchanged(args, why, ui)
    if path is None:
        ui.say("nothing was written (no -o, or --dry-run)")
    else:
        say_result(ui, job.counted, args.model, path, job.proof(),
                   f"bnpass train {path} --data DATA -o {options.sibling(path, 'trained')}")
    return 0


def _check_before(args: argparse.Namespace) -> None:
    """Refuse a type in ``--before`` that no nonlinearity has.

    Raises:
        UsageError: with close matches as the hint.
    """
    from bnpass.passes.nonlinear import NONLINEARITIES

    known = {kind.lower(): kind for kind in NONLINEARITIES}
    for name in args.before:
        if name.lower() not in known:
            hint = close_matches(name, [*known.values(), *known])
            raise UsageError(f"--before: no nonlinearity is called {name!r}",
                             hint or "types as ONNX calls them: Relu, Sigmoid, Tanh")


class _Insertion:
    """What the command does with a model.

    Attributes:
        reference: computes what the written model must compute.
        counted: the model before and after.
        report: what the verdict found; None: it was not asked.
        stripped: how many layers were taken out or reduced.
    """

    def __init__(self, args: argparse.Namespace, ui: Ui) -> None:
        self.args, self.ui = args, ui
        self.counted, self.stripped = Counted(), 0
        self.report: VerifyReport | None = None
        self.proves = args.init != "fresh" and not args.no_verify
        self.strips = bool(args.strip) or args.dropout is not None
        self.reference: Any = args.model

    def planned(self) -> InsertPlan:
        """The plan alone."""
        from bnpass.onnx_model.model import OnnxModel

        return self.edit(OnnxModel.of(self.args.model, data=False), plan_only=True).plan

    def written(self, path: Path) -> InsertPlan:
        """The plan, carried out: the result is at ``path``."""
        from bnpass.onnx_model.editing import edit_file

        runs = self.args.init == "calibrated" or (self.proves and self.strips)
        with self.ui.status(f"reading {self.args.model}") as self.counted.says:
            done = edit_file(self.args.model, path, self.counted.around(self.edit),
                             check=self.prove, force=self.args.force, whole=runs)
        return done.plan

    def edit(self, model: OnnxModel, plan_only: bool = False) -> Inserted:
        """Strip and insert, in place."""
        from bnpass.frontends.onnx.inserting import InsertOptions, insert

        args = self.args
        if self.strips:
            self._strip(model)
            if self.proves and not plan_only:
                self.reference = model.copy().proto
        wanted = InsertOptions(_policy(args), args.init, args.eps, args.momentum,
                               args.max_growth, args.freeze_inputs, args.branches, args.seed)
        return insert(model, wanted, plan_only=plan_only, moments=_moments(model.proto, args))

    def _strip(self, model: OnnxModel) -> None:
        from bnpass.frontends.onnx.inserting import StripOptions, strip

        kinds = self.args.strip or ("dropout",)
        plan = strip(model, StripOptions(kinds, self.args.dropout)).plan
        self.ui.document["strip"] = plan.to_dict()
        self.stripped = len(plan.removed) + len(plan.reduced)
        self.ui.say(f"strip: {strip_summary(plan)}")

    def prove(self, done: Inserted, result: Any) -> None:
        """Compare what is about to be written with what was given."""
        if self.proves and done.plan.sites:
            self.report = check(self.reference, result, self.ui, budget=self.args.check_budget,
                                dims=self.args.dims, edits=self._edits(done.plan),
                                data=samples(result, self.args, self.ui))

    def _edits(self, plan: InsertPlan) -> Edits:
        """What the check is told: what stands for what, and which shapes are only declared."""
        from bnpass.verdict.judge import Edits

        declared = tuple(site.name for site in plan.sites if site.declared)
        return Edits(plan.edits.correspondences, declared=declared,
                     trust_shapes=self.args.trust_shapes)

    def proof(self) -> VerifyReport | str:
        """What the verdict found, or why it was not asked."""
        if self.report is not None:
            return self.report
        return "not verified: --no-verify" if self.args.init != "fresh" else \
            "not compared: fresh BatchNorms are there to be trained (--init preserve keeps outputs)"


def _policy(args: argparse.Namespace) -> Policy:
    from bnpass.passes.sites import Policy

    return Policy(args.gates, args.last, tuple(args.only), tuple(args.skip), args.before,
                  args.norms, args.allow_unfoldable, args.clone, args.sums, args.linear,
                  args.zero_gamma)


def _moments(model: onnx.ModelProto, args: argparse.Namespace) -> Measure | None:
    if args.init != "calibrated" or not args.data:
        return None
    from bnpass.pipeline.datasets import open_for
    from bnpass.statistics.onnx_engine import batch_moments

    data = open_for(model, args.data, labels=False)
    return lambda ready, sites: batch_moments(
        ready, [(s.value, s.axis) for s in sites], data, batch_size=_BATCH
    )


def _show(plan: InsertPlan, args: argparse.Namespace, ui: Ui) -> None:
    ui.document.update(ok=True, plan=plan.to_dict(), inserted=len(plan.sites),
                       skipped=len(plan.skipped), biases_dropped=plan.dropped)
    if args.explain:
        for table in (site_table(plan), skipped_table(plan)):
            if table.rows:
                ui.table(table)
    if plan.sites:
        ui.say(insert_summary(plan))
    resting = sum(site.declared for site in plan.sites)
    if resting:
        ui.say(f"{resting:,} of them rest on shapes that only the file declares")
    if plan.per_branch:
        branched = many(len(plan.per_branch), "nonlinearity")
        ui.say(f"normalised per branch: the sums that {branched} read")
    if args.branches:
        count = sum(bool(site.branches) for site in plan.sites)
        ui.say(f"{many(count, 'convolution')} with branches beside them ({args.branches})")
    if plan.skipped and plan.sites and not args.explain:
        ui.say(f"{many(len(plan.skipped), 'nonlinearity')} without one: --explain gives the "
               "reasons")
    options.say_overridable([e.reason for e in plan.skipped], ui)
