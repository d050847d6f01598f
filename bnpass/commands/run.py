"""The whole job on one file: insert, train, calibrate, fold, verify.

Writes inserted.onnx, trained.onnx (with population statistics), deploy.onnx, report.html,
report.json, curves.png, metrics.csv and checkpoints into the output folder. With --compare-plain
the same file is also trained without BN for as many steps, each arm at its own best learning rate
of the grid, which is chosen on held-out data with short runs.
"""

from __future__ import annotations

import argparse
import os
import shlex

from bnpass.commands import options
from bnpass.commands.datasets import add_data_options, data_options
from bnpass.commands.training import add_training_options, train_config
from bnpass.errors import UsageError
from bnpass.report.ui import Ui, is_first_process, restarted

EXAMPLES = (
    "bnpass run models/deep_sigmoid_conv.onnx --data models/data -o out/run --steps 60",
    "bnpass run models/lenet.onnx --data models/data -o out/both --steps 60 --compare-plain",
)
COMMON = ("-o", "--force", "--resume", "--data", "--steps", "--epochs", "--lr",
          "--batch-size", "--optimizer", "--loss", "--precision", "--device", "--seed",
          "--compare-plain", "--lr-grid", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    parser.add_argument("-o", "--output", metavar="DIR", help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace files of an earlier run")
    parser.add_argument("--resume", action="store_true",
                        help="go on with a run of the same settings that was interrupted")
    add_data_options(parser)
    parser.add_argument("--test-data", metavar="DATA", help="test samples (default: the test split "
                        "of the data, or a held-out part)")
    add_training_options(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument("--compare-plain", action="store_true",
                       help="also train the file without BN")
    group.add_argument("--lr-grid", type=options.positive_list, metavar="A,B,C",
                       help="learning rates, of which each arm takes its best")
    group.add_argument("--grid-steps", type=options.at_least_one, default=0,
                       help="steps of a trial run (default: a tenth of the run)")
    group = parser.add_argument_group("insert and fold")
    group.add_argument("--gates", action="store_true", help="also in front of gates")
    group.add_argument("--last", action="store_true", help="also in front of the last nonlinearity")
    group.add_argument("--clone", action="store_true",
                       help="duplicate a layer whose output is also read elsewhere")
    group.add_argument("--strip", type=options.names, metavar="lrn,dropout",
                       help="take these layers out of the network with BN first (default nothing; "
                       "lrn with --recipe paper)")
    for name, what in (("--only", "only in front of"), ("--skip", "not in front of")):
        group.add_argument(name, action="append", default=[], metavar="GLOB",
                           help=f"BN {what} nodes whose name matches")
    group.add_argument("--fold-normalisation", action="store_true",
                       help="deploy.onnx takes samples as they are stored: scale, mean and std of "
                       "the data go into its weights, too")
    group.add_argument("--no-verify", action="store_true",
                       help="write deploy.onnx even if it differs from trained.onnx")
    options.add_provider(parser)
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.pipeline import LR_GRID, RunConfig, run_pipeline
    from bnpass.report.result import result_table, search_table

    options.refuse_together(args, ("--lr", "--lr-grid"))
    if not args.output:
        raise UsageError("no output folder given", "add -o DIR")
    grid = args.lr_grid
    if grid is None:
        grid = LR_GRID if args.compare_plain and args.lr is None else ()
    config = RunConfig(
        train=train_config(args, epochs=5), lr_grid=grid, lr_auto=args.lr == "auto",
        grid_steps=args.grid_steps,
        compare_plain=args.compare_plain, validation=args.validation, test_data=args.test_data,
        data=data_options(args), insert=_insert_options(args), provider=args.provider,
        verify=not args.no_verify, tensorboard=args.tensorboard,
        fold_normalisation=args.fold_normalisation,
        command=shlex.join(["bnpass", *args.arguments]),
    )
    report = run_pipeline(args.model, args.data, args.output, config, force=args.force,
                          resume=args.resume or restarted(), listener=ui)
    if not is_first_process():
        return 0
    ui.document.update(ok=report["verify"]["passed"], output=args.output, **report)
    search = search_table(report)
    if search is not None:
        ui.table(search)
    ui.table(result_table(report))
    page = os.path.join(args.output, "report.html")  # noqa: PTH118  (as the user wrote it)
    ui.say(f"wrote {args.output}: inserted, trained and deploy.onnx, report.json, curves.png, "
           "metrics.csv")
    ui.say(f"next: open {page}")
    return 0 if report["verify"]["passed"] else 1


def _insert_options(args: argparse.Namespace) -> dict[str, object]:
    strip = args.strip
    if strip is None:
        strip = ("lrn",) if args.recipe == "paper" else ()
    given = {"gates": args.gates, "last": args.last, "clone": args.clone, "strip": strip,
             "only": tuple(args.only), "skip": tuple(args.skip)}
    return {name: value for name, value in given.items() if value}
