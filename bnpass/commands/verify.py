"""Compare two models on the same inputs.

Two questions, each with its own answer: do both compute the same on the CPU with onnxruntime's
graph optimizations disabled, judged by the reference's own noise; and does the candidate, as it
will be deployed, keep that? With --sidecar (of bnpass fold) every edit is proven in float64, too.
The last line is PASSED or FAILED; on failure the first tensor that differs is named. --accuracy
computes both in float64 too and says which is nearer; --determinism runs the deployed model (one
model is enough) in different surroundings and compares the bits.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.commands.checking import add_budget, samples
from bnpass.commands.reporting import add_report, wanted_report, write_verify_report
from bnpass.errors import UsageError
from bnpass.report.tables import Table
from bnpass.report.ui import Ui
from bnpass.report.verdicts import (
    accuracy_tables,
    answers,
    determinism_table,
    first_difference,
    nearer,
    verdict,
    verify_table,
)

if TYPE_CHECKING:
    from bnpass.runtime.accuracy import AccuracyReport
    from bnpass.runtime.determinism import DeterminismReport
    from bnpass.runtime.verification import VerifyReport
    from bnpass.verdict.findings import ProofReport


EXAMPLES = (
    "bnpass verify out/lenet.ready.onnx out/lenet.deploy.onnx",
    "bnpass verify out/lenet.ready.onnx out/lenet.deploy.onnx --determinism",
)
COMMON = ("--accuracy", "--determinism", "--data", "--batches", "--rtol", "--atol",
          "--report", "--provider", "--seed", "--dims", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("reference", metavar="REFERENCE.onnx", help="what is right")
    parser.add_argument("candidate", metavar="CANDIDATE.onnx", nargs="?",
                        help="what is to be proved; with --determinism it may be left out")
    parser.add_argument("--accuracy", action="store_true",
                        help="also compute both in float64 (torch): which is nearer the truth, and "
                        "how well each layer is conditioned")
    parser.add_argument("--determinism", action="store_true",
                        help="also: the same bits twice, in other batches, with other threads, in "
                        "a fresh process?")
    parser.add_argument("--data", metavar="DATA", help="use these samples, not random ones")
    parser.add_argument("--split", default="test", help="split of the data (default test)")
    parser.add_argument("--draws", type=options.at_least_one, default=3,
                        help="random draws (default 3)")
    parser.add_argument("--batches", type=_batches, default=(2, 5), metavar="N,N",
                        help="batch sizes of each draw (default 2,5)")
    parser.add_argument("--rtol", type=options.non_negative,
                        help="relative tolerance (default: the network's own noise judges)")
    parser.add_argument("--atol", type=options.non_negative, help="absolute tolerance")
    parser.add_argument("--edits", action="store_true",
                        help="also prove every edit that made the candidate out of the reference, "
                        "in float64; names of nodes and values tell them")
    parser.add_argument("--sidecar", metavar="FILE",
                        help="of bnpass fold: the same, and the reference is what it restores")
    add_budget(parser)
    add_report(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing report")
    options.add_seed(parser)
    options.add_provider(parser)
    options.add_gpu(parser)
    options.add_output_options(parser)


def _batches(text: str) -> tuple[int, ...]:
    return tuple(int(options.at_least_one(part)) for part in text.split(","))


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command; 0 when every question that was asked has the answer yes, 1 otherwise."""
    from bnpass.files import check_input

    if args.candidate is None and (args.accuracy or not args.determinism):
        raise UsageError("no candidate to compare with", "give two models: bnpass verify A B")
    deployed = args.candidate or args.reference
    for path in dict.fromkeys((args.reference, deployed)):
        check_input(path)
    if args.report and args.candidate is None:
        raise UsageError("--report without a candidate", "give two models: bnpass verify A B")
    options.gpu_options(args)
    page, data = wanted_report(args), _data(args, ui)
    passed, last = True, "PASSED"
    pair, more = _Models.of(args, ui), list[Table | str]()
    report = None
    if args.candidate is not None:
        report = _compare(args, pair, data, ui)
        passed, last = report.passed, verdict(report)
    if args.accuracy:
        more += _accuracy(args, pair, data, ui).shown()
    if args.determinism:
        found = _determinism(args, deployed, data, ui)
        more += found.shown()
        last = last if passed and found.passed else f"FAILED{last[6:]}"
        passed = passed and found.passed
    ui.document.update(ok=passed, passed=passed)
    if page is not None and report is not None:
        write_verify_report(page, args, report, more, ui)
    ui.say(last)
    return 0 if passed else 1


@dataclass(frozen=True)
class _Models:
    """What is compared.

    Attributes:
        reference: a path; or a model behind the normalisation that the candidate does itself.
        prepare: then makes of random inputs such as the candidate takes.
    """

    reference: Any
    prepare: Any = None

    @classmethod
    def of(cls, args: argparse.Namespace, ui: Ui) -> _Models:
        """As the conversions of the data say that are recorded in the two models."""
        from bnpass.data.normalisation import Normalisation, preparation
        from bnpass.data.recorded import recorded_recipe
        from bnpass.files import load_model

        paths = [args.reference, args.candidate or args.reference]
        one, other = (recorded_recipe(load_model(path, data=False)) for path in paths)
        if one is None or other is None:
            return cls(args.reference)
        apart = Normalisation.between(one, other)
        if apart.is_identity:
            return cls(args.reference)
        ui.log("the candidate normalises its input itself: the reference gets that in front")
        front = apart.in_front_of(load_model(args.reference))
        return cls(front.model, preparation(apart, front.port.name))


def _compare(args: argparse.Namespace, pair: _Models, data: Any, ui: Ui) -> VerifyReport:
    """Whether the two models agree."""
    from bnpass.runtime.verify import verify

    with ui.status("reading") as says:
        edits = _edits(args, pair)
        says("verifying: running both models")
        report = verify(
            pair.reference, args.candidate, data=data, provider=args.provider,
            prepare=pair.prepare, seed=args.seed, draws=args.draws, batches=args.batches,
            rtol=args.rtol, atol=args.atol, edits=edits,
            budget=None if data is not None else args.check_budget, dims=args.dims, says=says,
            **options.gpu_options(args),
        )  # fmt: skip
    ui.document.update(report.to_dict())
    ui.table(verify_table(report))
    for note in report.notes:
        ui.warn(note)
    for line in answers(report):
        ui.say(line)
    if report.first_difference is not None:
        ui.say(first_difference(report))
    return report


def _edits(args: argparse.Namespace, pair: _Models) -> ProofReport | None:
    """The proof of every edit, where it was asked for."""
    if not args.edits and not args.sidecar:
        return None
    from bnpass.verdict.judge import Edits, proven

    if args.sidecar:
        from bnpass.files import check_input, load_model
        from bnpass.frontends.onnx.sidecar import fingerprint, undo

        restored = undo(load_model(args.candidate), check_input(args.sidecar))
        if fingerprint(restored) != fingerprint(load_model(args.reference)):
            raise UsageError(f"the sidecar restores another model than {args.reference}",
                             "give the model that was folded as the first one")
    return proven(pair.reference, args.candidate, Edits(), args.seed)


def _accuracy(args: argparse.Namespace, pair: _Models, data: Any, ui: Ui) -> AccuracyReport:
    """Which of the two is nearer to float64."""
    from bnpass.runtime.accuracy import measure_accuracy

    report = measure_accuracy(pair.reference, args.candidate, data=data, provider=args.provider,
                     seed=args.seed, draws=args.draws)
    ui.document["accuracy"] = report.to_dict()
    for table in accuracy_tables(report):
        ui.table(table)
    if data is None:
        ui.warn("the conditioning was measured on random inputs: --data gives the one that counts")
    ui.say(nearer(report))
    return report


def _determinism(
    args: argparse.Namespace, model: str, data: Any, ui: Ui
) -> DeterminismReport:
    """Whether the model gives the same bits in other surroundings."""
    from bnpass.runtime.determinism import determinism

    report = determinism(model, None if data is None else data[0], provider=args.provider,
                         seed=args.seed)
    ui.document["determinism"] = report.to_dict()
    if report.checks:
        ui.table(determinism_table(report, model))
    for reason in report.reasons:
        ui.say(f"not deterministic: {reason}")
    return report


def _data(args: argparse.Namespace, ui: Ui) -> list[Any] | None:
    size = max(args.batches) if not args.determinism else max(64, *args.batches)
    return samples(args.candidate or args.reference, args, ui, size=size, count=4 * args.draws)
