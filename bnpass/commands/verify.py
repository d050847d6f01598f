"""Compare two models on the same inputs.

The reference runs on the CPU with onnxruntime's graph optimizations disabled, the candidate as it
will be deployed. The last line is PASSED or FAILED; on failure the first tensor that differs is
named.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.report.tables import Table
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.runtime.verify import VerifyReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("reference", metavar="REFERENCE.onnx", help="what is right")
    parser.add_argument("candidate", metavar="CANDIDATE.onnx", help="what is to be proved")
    parser.add_argument("--data", metavar="DATA", help="use these samples, not random ones")
    parser.add_argument("--split", default="test", help="split of the data (default test)")
    parser.add_argument("--draws", type=options.at_least_one, default=3,
                        help="random draws (default 3)")
    parser.add_argument("--batches", type=_batches, default=(2, 5), metavar="N,N",
                        help="batch sizes of each draw (default 2,5)")
    parser.add_argument("--rtol", type=options.non_negative,
                        help="relative tolerance (default: from the models' coarsest type)")
    parser.add_argument("--atol", type=options.non_negative, help="absolute tolerance")
    options.add_seed(parser)
    options.add_provider(parser)
    options.add_output_options(parser)


def _batches(text: str) -> tuple[int, ...]:
    return tuple(int(options.at_least_one(part)) for part in text.split(","))


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command; 0 when the models agree, 1 when they do not."""
    from bnpass.files import check_input
    from bnpass.runtime.verify import verify

    for path in (args.reference, args.candidate):
        check_input(path)
    report = verify(
        args.reference, args.candidate, data=_data(args, ui), provider=args.provider,
        seed=args.seed, draws=args.draws, batches=args.batches, rtol=args.rtol, atol=args.atol,
    )
    ui.document.update(ok=report.passed, **report.to_dict())
    ui.table(verify_table(report))
    for note in report.notes:
        ui.warn(note)
    ui.say(verdict(report))
    return 0 if report.passed else 1


def _data(args: argparse.Namespace, ui: Ui) -> Any:
    if args.data is None:
        return None
    from bnpass.pipeline.datasets import open_for

    data = open_for(args.reference, args.data, labels=False, split=args.split)
    ui.document["data"] = data.recipe
    return [x for x, _ in data.batches(max(args.batches))][: 4 * args.draws]


def verify_table(report: VerifyReport) -> Table:
    """The worst comparison of every output."""
    columns = ["output", "max abs", "max rel", "cosine", "ULPs", "top-1", "would pass at rtol",
               "verdict"]
    table = Table(f"{report.reference_engine} (reference) against {report.candidate_engine} on "
                  f"{report.provider}", columns, right=frozenset(range(1, 7)))
    for name, found in report.outputs.items():
        table.add(name, found.max_abs, found.max_rel, found.cosine, found.ulps, found.top1,
                  found.tolerance, "passed" if found.passed else "FAILED")
    return table


def verdict(report: VerifyReport) -> str:
    """The last line: PASSED or FAILED, the rule, the cost, and where the first difference is."""
    rule = f"|a-b| <= {report.rule.atol:g} + {report.rule.rtol:g} max|a|"
    line = f"{'PASSED' if report.passed else 'FAILED'} ({rule}; {report.seconds:.1f} s)"
    first = report.first_difference
    if first is None:
        return line
    where = f"{first.value!r} of {first.kind} {first.node!r}"
    return f"first difference: {where}, max relative error {first.max_rel:.2g}\n{line}"
