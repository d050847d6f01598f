"""Fold every BatchNorm, and every other per-channel scale and shift, into the weights around it.

Each goes backward, or else forward, or is split between both, where that is exact. The result is
compared with the original before it is written. --explain lists every fold, and the reason of
everything that stays. With --scale, --mean and --std the normalisation of the input is folded, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.commands import half, normalising, options
from bnpass.commands import many as many_files
from bnpass.commands.checking import add_budget, add_data, add_trust, check, samples
from bnpass.commands.reporting import add_report, wanted_report, write_fold_report
from bnpass.errors import UsageError
from bnpass.files import check_output, together
from bnpass.report.box import Counted, say_result, say_unchanged
from bnpass.report.plans import (
    fold_summary,
    fold_table,
    refused_table,
    spared_summary,
    spared_table,
)
from bnpass.report.tables import size
from bnpass.report.ui import Ui
from bnpass.report.words import many

if TYPE_CHECKING:
    from bnpass.deploy import Deployed, Proofs
    from bnpass.runtime.tolerance import Tolerance
    from bnpass.runtime.verification import VerifyReport


EXAMPLES = (
    "bnpass fold out/lenet.ready.onnx -o out/lenet.deploy.onnx",
    "bnpass fold out/lenet.ready.onnx --dry-run --explain",
    "bnpass fold out/lenet.ready.onnx models/lenet.onnx -o out/folded --jobs 2",
)
COMMON = ("-o", "--force", "--jobs", "--explain", "--dry-run", "--check", "--only", "--skip",
          "--collapse", "--fold-normalisation", "--to", "--sidecar", "--report", "--no-verify",
          "--dims", "--json", "-q")


_IDLE = {
    "--no-verify": ("--check-budget", "--dims", "--data"),
    "--dry-run": ("--sidecar", "--report", "--force"),
    "--check": ("--sidecar", "--report", "--force"),
}
"""Options that leave others without work."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL.onnx", nargs="+",
                        help="the models to read, or folders of them; never written")
    options.add_written(parser)
    parser.add_argument("--jobs", type=options.at_least_one, default=1, metavar="N",
                        help="so many files at a time, where several are given (default 1)")
    options.add_plan_options(parser)
    parser.add_argument("--check", action="store_true",
                        help="exit with 1 if anything would fold, and write nothing")
    group = parser.add_argument_group("folding")
    group.add_argument("--leftover", choices=("bn", "affine"), default="bn",
                       help="what a chain becomes that cannot fold: one BatchNorm (default), or "
                       "Mul and Add")
    group.add_argument("--training-mode", choices=("refuse", "inference"), default="refuse",
                       help="a BatchNorm in training mode stays (default), or its running "
                       "statistics are meant")
    options.add_constants(group)
    group.add_argument("--collapse", choices=("bn", "all", "none"), default="bn",
                       help="linear branches become one operator first: those with a BatchNorm in "
                       "them (default), all, or none")
    group.add_argument("--fold-norms", action="store_true",
                       help="also fold gamma and beta of norms that are spelt out: for runtimes "
                       "that do not fuse them")
    group.add_argument("--sidecar", metavar="FILE",
                       help="also write what bnpass unfold needs to undo the fold exactly")
    add_report(group)
    half.add_arguments(group)
    normalising.add_arguments(parser)
    group.add_argument("--no-verify", action="store_true",
                       help="do not compare with the original before writing")
    add_trust(group)
    add_budget(group)
    add_data(group)
    options.add_seed(parser)
    options.add_provider(parser)
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command on one file or on many."""
    if args.check and (args.output or args.require_change):
        other = "-o" if args.output else "--require-change"
        raise UsageError(f"--check with {other}", "leave one of them out: --check writes nothing, "
                         "and a fold that it finds is its failure")
    options.refuse_together(args, *(
        (one, other) for one, others in _IDLE.items() for other in others
    ))  # fmt: skip
    args.dry_run |= args.check
    if many_files.is_many(args):
        return many_files.fold_many(args, ui, add_arguments)
    (args.model,) = args.model
    return _fold(args, ui)


def _fold(args: argparse.Namespace, ui: Ui) -> int:
    """Fold one file."""
    from bnpass.deploy import DeployOptions, deploy_file, plan_deployment
    from bnpass.frontends.onnx.folding import FoldOptions
    from bnpass.onnx_model.model import OnnxModel

    path = options.want_output(args, "folded")
    sidecar = _wanted_sidecar(args)
    page = None if path is None else wanted_report(args)
    counted = Counted()
    reports: list[VerifyReport] = []
    half.check_arguments(args)
    options.check_patterns((*args.only, *args.skip), args.model)
    wanted = DeployOptions(
        FoldOptions(tuple(args.only), tuple(args.skip), args.leftover, args.training_mode,
                    args.freeze_inputs, args.max_growth, args.fold_norms, args.collapse),
        normalising.normalisation(args, ui), args.to, args.to_io, args.trust_shapes,
    )  # fmt: skip
    if path is None:
        done = plan_deployment(OnnxModel.of(args.model, data=wanted.whole), wanted)
    else:
        proofs = None if args.no_verify else _proofs(args, ui, reports)
        with together(), ui.status(f"reading {args.model}") as counted.says:
            done = deploy_file(Path(args.model), path, wanted, proofs, force=args.force,
                               shown=counted)
            if sidecar is not None:
                _write_sidecar(args.model, path, sidecar)
        if done.half is not None:
            half.show(done.half, ui)
        ui.document.update(output=path, left=counted.found[-1].batch_norms)
    _show(done, args, ui)
    if sidecar is not None:
        ui.document["sidecar"] = sidecar
        ui.say(f"wrote {sidecar} ({size(sidecar.stat().st_size)}): bnpass unfold {path} "
               f"{sidecar} undoes the fold")
    if args.check:
        return _checked(done, args, ui)
    if not done.does_something:
        why = _why_unchanged(done)
        say_unchanged(ui, why, path)
        return options.unchanged(args, why, ui)
    if path is None:
        ui.say("nothing was written (no -o, or --dry-run)")
    else:
        say_result(ui, counted, args.model, path,
                   reports[-1] if reports else "not verified: --no-verify",
                   f"bnpass bench {args.model} {path}")
        if page is not None:
            write_fold_report(page, args, done.folded.plan, reports[-1] if reports else None, ui)
    return 0 if done.folded.plan.folded else options.unchanged(args, _why_unchanged(done), ui)


def _checked(done: Deployed, args: argparse.Namespace, ui: Ui) -> int:
    """The end of ``--check``: 1 if anything would fold."""
    ui.document["check"] = True
    if not done.does_something:
        ui.say(f"nothing would fold: {_why_unchanged(done)}")
        return 0
    ui.document["ok"] = False
    ui.say(f"next: bnpass fold {args.model} -o {options.sibling(Path(args.model), 'folded')}")
    return 1


def _why_unchanged(done: Deployed) -> str:
    refused = len(done.folded.plan.refused)
    return f"{many(refused, 'map')} stay, --explain gives the reasons" if refused else \
        "the model has no BatchNorm and no other per-channel scale or shift to fold"


def _proofs(args: argparse.Namespace, ui: Ui, reports: list[VerifyReport]) -> Proofs:
    """The proofs, which say what they found and keep it in ``reports``."""
    from bnpass.deploy import Proofs

    def prove(done: Deployed, result: Any, rule: Tolerance | None = None) -> None:
        reports.append(check(
            done.reference, result, ui, edits=done.edits, provider=args.provider,
            seed=args.seed, rule=rule, prepare=done.prepare, budget=args.check_budget,
            dims=args.dims, data=samples(done.model, args, ui),
        ))  # fmt: skip

    def prove_half(done: Deployed, result: Any) -> None:
        prove(done, result, half.tolerance(done, args, ui))

    return Proofs(prove, prove_half)


def _warn_of_statistics(done: Deployed, args: argparse.Namespace, ui: Ui) -> None:
    from bnpass.data.recorded import statistics_of

    normed = any(entry.kind == "BatchNormalization" for entry in done.folded.plan.entries)
    if normed and statistics_of(done.model) == "ema":
        ready = options.sibling(Path(args.model), "ready")
        ui.warn("the statistics are training's moving average, which depends on the last steps: "
                f"bnpass calibrate {args.model} --data DATA -o {ready} takes exact ones")


def _wanted_sidecar(args: argparse.Namespace) -> Path | None:
    if not args.sidecar or args.dry_run:
        return None
    if args.to:
        raise UsageError("a narrowed model cannot be unfolded", "leave out --sidecar or --to")
    if args.output and Path(args.sidecar).absolute() == Path(args.output).absolute():
        raise UsageError(f"output and sidecar are one file: {args.output}", "name two files")
    return check_output(args.sidecar, force=args.force, source=args.model)


def _write_sidecar(model: str, folded: Path, sidecar: Path) -> None:
    from bnpass.files import atomic_write, load_model
    from bnpass.frontends.onnx.sidecar import make_sidecar

    with together() as group:  # the folded model has not its name yet
        made = make_sidecar(load_model(model), load_model(group.path_of(folded)))
    atomic_write(sidecar, made)


def _show(done: Deployed, args: argparse.Namespace, ui: Ui) -> None:
    plan = done.folded.plan
    _warn_of_statistics(done, args, ui)
    ui.document.update(ok=True, folded=len(plan.folded), refused=len(plan.refused),
                       spared=len(plan.spared))
    if ui.json:
        ui.document["plan"] = plan.to_dict()
    if args.explain:
        for table in (fold_table(plan), refused_table(plan), spared_table(plan)):
            if table.rows:
                ui.table(table)
    if plan.spared:
        ui.say(f"{many(len(plan.spared), 'constant')} left alone: {spared_summary(plan)}")
    if plan.entries:
        ui.say(fold_summary(plan, done=not args.dry_run))
    if plan.declared:
        ui.say(f"{len(plan.declared)} of them rest on shapes that only the file declares, of "
               f"{', '.join(map(repr, plan.stated[:3]))}{' ...' if plan.stated[3:] else ''}")
    normalising.show(done, ui)
    if plan.refused and plan.folded and not args.explain:
        ui.say(f"{len(plan.refused):,} stay: --explain gives the reasons")
    options.say_overridable([e.reason for e in plan.refused], ui)
