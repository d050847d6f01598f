"""Give every BatchNorm of an ONNX file the population statistics of a data set.

It runs on onnxruntime, needs neither torch nor labels, and also adapts a trained file to a new
domain: calibrate on samples from there, then fold.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bnpass.commands import options
from bnpass.commands.datasets import add_data_options, add_mask_option, data_options
from bnpass.errors import UsageError
from bnpass.report.tables import size
from bnpass.report.ui import Ui, is_first_process, process_count
from bnpass.report.words import many

if TYPE_CHECKING:
    from bnpass.statistics.onnx_engine import Team

EXAMPLES = (
    "bnpass calibrate out/lenet.trained.onnx --data models/data -o out/lenet.ready.onnx",
    "bnpass calibrate out/lenet.trained.onnx --data models/data --split test -o out/b.onnx",
)
COMMON = ("-o", "--force", "--data", "--split", "--method", "--batch-size", "--only",
          "--provider", "--seed", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    options.add_written(parser)
    add_data_options(parser)
    add_mask_option(parser)
    group = parser.add_argument_group("statistics")
    group.add_argument("--split", default="train", help="split of the data (default train)")
    group.add_argument("--method", choices=("pooled", "paper", "ema", "exact"),
                       default="pooled", help="pooled over everything (default); the paper's "
                       "Algorithm 2; a moving average; or layer by layer, a pass for each BN, "
                       "which no choice of batches can put off")
    group.add_argument("--batch-size", type=options.at_least_one, default=1000,
                       help="most samples that are normalised together (default 1000)")
    for name, what in (("--only", "calibrate only"), ("--frozen", "leave as they are")):
        group.add_argument(name, action="append", default=[], metavar="GLOB",
                           help=f"{what} the BatchNorms whose name matches")
    options.add_seed(parser)
    options.add_provider(parser)
    parser.add_argument("--require-change", action="store_true",
                        help="exit with 1 when there is no BatchNorm")
    options.add_output_options(parser)


def _team() -> Team | None:
    """The processes that torchrun started; they share the batches."""
    if process_count() == 1:
        return None
    from bnpass.nn import distributed

    distributed.join("cpu")
    return distributed


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.data.recorded import record_recipe, record_statistics
    from bnpass.files import check_output, load_model, save_model
    from bnpass.pipeline.datasets import open_for
    from bnpass.pipeline.summary import count_norms
    from bnpass.statistics.onnx_engine import calibrate_onnx

    if not args.output:
        raise UsageError("no output given", "add -o FILE.onnx")
    path = check_output(args.output, force=args.force or not is_first_process(),
                        source=args.model)
    model = load_model(args.model)
    norms = count_norms(model)
    data = open_for(model, args.data, split=args.split, labels=False, **data_options(args))
    seen, team = 0, _team()
    with ui.progress("calibrate", len(data) if hasattr(data, "__len__") else None) as bar:

        def advance(samples: int) -> None:
            nonlocal seen
            seen += samples
            bar.update(seen)

        done = calibrate_onnx(
            model, data, method=args.method, batch_size=args.batch_size, seed=args.seed,
            provider=args.provider, only=args.only, frozen=args.frozen, progress=advance,
            team=team,
        )
    seen = seen if team is None else sum(team.gather(seen))
    if not is_first_process():
        return 0
    if norms and not (args.only or args.frozen):
        record_statistics(done, args.method)
    save_model(record_recipe(done, data.recipe), path, force=args.force, source=args.model)
    ui.document.update(ok=True, output=path, norms=norms, samples=seen, method=args.method,
                       data=data.recipe)
    if not norms:
        ui.say(f"nothing to do: no BatchNorm in the model; wrote a copy to {path}")
        return 1 if args.require_change else 0
    ui.say(f"statistics of {many(norms, 'BatchNorm')} over {many(seen, 'sample')} ({args.method})")
    ui.say(f"wrote {path} ({size(path.stat().st_size)})")
    ui.say(f"next: bnpass fold {path} -o {options.sibling(path, 'folded')}")
    return 0
