"""Bring the values of a pruned, rounded, merged or averaged network back to its original's.

BatchNorms are inserted into the REFERENCE and calibrated, the weights of the DAMAGED file put in,
the BatchNorms calibrated on them and folded away: no labels, no gradient, the same operators
afterwards. Weights that are zero stay zero; codes with one scale a tensor have one a channel
afterwards; a network that has BatchNorms of its own is only calibrated anew.
"""

from __future__ import annotations

import argparse

from bnpass.commands import options
from bnpass.commands.checking import add_budget, check
from bnpass.commands.datasets import add_data_options, data_options
from bnpass.errors import UsageError
from bnpass.report.tables import size
from bnpass.report.ui import Ui
from bnpass.report.words import many

EXAMPLES = (
    "bnpass repair out/lenet.ready.onnx out/lenet.trained.onnx --data models/data -o r.onnx",
    "bnpass repair models/lenet.onnx models/lenet.onnx --data models/data -o out/same.onnx",
)
COMMON = ("-o", "--force", "--data", "--split", "--batch-size", "--no-verify", "--provider",
          "--seed", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("reference", metavar="REFERENCE.onnx", help="the network as it was")
    parser.add_argument("damaged", metavar="DAMAGED.onnx", help="the same with other weights")
    options.add_written(parser)
    add_data_options(parser)
    group = parser.add_argument_group("statistics")
    group.add_argument("--split", default="train", help="split of the data (default train)")
    group.add_argument("--batch-size", type=options.at_least_one, default=1000,
                       help="most samples that are normalised together (default 1000)")
    parser.add_argument("--no-verify", action="store_true",
                        help="do not compare the fold with what was folded before writing")
    add_budget(parser)
    options.add_seed(parser)
    options.add_provider(parser)
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.deploy.repair import repair_model
    from bnpass.files import check_output, load_model, save_model
    from bnpass.pipeline.datasets import open_for

    if not args.output:
        raise UsageError("no output given", "add -o FILE.onnx")
    path = check_output(args.output, force=args.force, source=args.damaged)
    reference, damaged = load_model(args.reference), load_model(args.damaged)
    data = open_for(reference, args.data, split=args.split, labels=False, **data_options(args))
    done = repair_model(reference, damaged, data, batch_size=args.batch_size, seed=args.seed,
                        provider=args.provider)
    if not args.no_verify and done.folded.does_something:
        check(done.ready, done.model, ui, edits=done.edits, provider=args.provider,
              seed=args.seed, budget=args.check_budget, dims=args.dims)
    save_model(done.model, path, force=args.force, source=args.damaged)
    left = len(done.folded.plan.refused)
    ui.document.update(ok=True, output=path, norms=done.norms, inserted=done.inserted, left=left)
    how = "inserted" if done.inserted else "its own, calibrated"
    ui.say(f"statistics carried over by {many(done.norms, 'BatchNorm')} ({how}), {left:,} stay")
    ui.say(f"wrote {path} ({size(path.stat().st_size)})")
    ui.say(f"next: bnpass bench {args.damaged} {path}")
    return 0
