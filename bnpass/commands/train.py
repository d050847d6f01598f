"""Train an ONNX model in PyTorch on labelled data and write its parameters back, by name.

A file that ends in Softmax, LogSoftmax or Sigmoid is trained on the value in front of it. Beside
the output a folder NAME.run holds metrics.csv, curves.png and the checkpoints.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.commands.datasets import add_data_options, add_mask_option, data_options
from bnpass.commands.training import add_training_options, train_config
from bnpass.errors import MissingDependencyError, OutputError, RefusedError, UsageError
from bnpass.files import make_folder
from bnpass.report.tables import measure, size
from bnpass.report.ui import Ui, is_first_process, restarted

if TYPE_CHECKING:
    from torch import fx

    from bnpass.training import History, TrainConfig


log = logging.getLogger("bnpass.commands")


_LOOKED_AT = 64  # samples


EXAMPLES = (
    "bnpass train out/lenet.bn.onnx --data models/data --steps 60 -o out/lenet.trained.onnx",
    "bnpass train out/lenet.bn.onnx --data models/data --epochs 1 -o out/lenet.long.onnx",
)
COMMON = ("-o", "--force", "--run-dir", "--resume", "--data", "--steps", "--epochs", "--lr",
          "--batch-size", "--optimizer", "--loss", "--precision", "--device", "--seed",
          "--validation", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    options.add_written(parser)
    parser.add_argument("--run-dir", metavar="DIR", help="where metrics, curves and checkpoints go "
                        "(default: NAME.run beside the output)")
    parser.add_argument("--resume", action="store_true",
                        help="go on from the last checkpoint in the run's folder")
    parser.add_argument("--reinit", choices=("glorot", "glorot_normal", "gaussian"),
                        help="draw the weights anew (biases 0) instead of starting with the file's")
    add_data_options(parser)
    add_mask_option(parser)
    add_training_options(parser)
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    import bnpass
    from bnpass.data.recorded import record_recipe, record_statistics
    from bnpass.files import check_output, load_model, save_model
    from bnpass.pipeline.arms import note
    from bnpass.pipeline.datasets import open_for
    from bnpass.pipeline.summary import count_norms, curve_of
    from bnpass.report.curves import draw_curves
    from bnpass.report.percentiles import draw_percentiles
    from bnpass.training import train
    from bnpass.training.tensorboard import also_to_tensorboard

    if not args.output:
        raise UsageError("no output given", "add -o FILE.onnx")
    # The other processes that torchrun started find what the first one writes.
    path = check_output(args.output, force=args.force or not is_first_process(),
                        source=args.model)
    args.resume = args.resume or restarted()
    folder = _run_dir(args, path)
    model = load_model(args.model)
    config = train_config(args, epochs=5)
    data = open_for(model, args.data, **data_options(args))
    gm = bnpass.to_torch(model)
    part, held_out = _parts(data, args)
    _start(gm, part, args, ui)
    if args.lr == "auto":
        config = _chosen_rate(gm, part, config, folder, ui)
    board = folder / "tensorboard" if args.tensorboard and is_first_process() else None
    with (ui.progress("train", _steps(part, config)) as bar,
          also_to_tensorboard(lambda p: bar.update(p.step, note(p)), board) as shown):
        history = train(gm, part, held_out, config, out=folder, resume=args.resume,
                        progress=shown)
    if history.stopped == "diverged":
        raise RefusedError(f"the loss diverged at learning rate {config.lr:g}; nothing was written",
                           "give a smaller --lr")
    if not is_first_process():
        return 0
    trained = record_recipe(bnpass.write_back(gm, model), data.recipe)
    if count_norms(trained) and not config.freeze_bn:
        record_statistics(trained, "sample" if history.restored else "ema")
    save_model(trained, path, force=args.force, source=args.model)
    _drawn(lambda: draw_curves([curve_of("training", history)], folder / "curves.png"), ui)
    if history.percentiles:
        _drawn(lambda: draw_percentiles({"training": history.percentiles},
                                        folder / "percentiles.png"), ui)
    ui.document.update(ok=True, output=path, run_dir=folder, data=data.recipe,
                       history=history.to_dict())
    ui.say(_result(history))
    ui.say(f"wrote {path} ({size(path.stat().st_size)}), {folder}/metrics.csv")
    if count_norms(trained):
        ui.say(f"next: bnpass calibrate {path} --data {args.data} -o "
               f"{options.sibling(path, 'ready')}")
    return 0


def _start(gm: fx.GraphModule, data: Any, args: argparse.Namespace, ui: Ui) -> None:
    """New weights if they are asked for; else a warning where the file's let nothing through."""
    import numpy as np

    from bnpass.data import Data
    from bnpass.training.health import stuck_nonlinearities
    from bnpass.training.initialize import initialize

    if args.reinit:
        initialize(gm, args.reinit, seed=args.seed)
        ui.document["reinit"] = args.reinit
        return
    if args.resume or not isinstance(data, Data) or not len(data):
        return
    inputs, _ = data.take(np.arange(min(_LOOKED_AT, len(data))))
    stuck, seen = stuck_nonlinearities(gm, inputs)
    if stuck:
        ui.warn(f"{len(stuck)} of {seen} nonlinearities are saturated or dead with the file's "
                "weights: --reinit glorot draws them anew")


def _parts(data: Any, args: argparse.Namespace) -> tuple[Any, Any]:
    """What is trained on, and what it is judged on; None where nothing can be held out."""
    from bnpass.data import Stream, open_inputs
    from bnpass.data.callables import load_callable, takes_split
    from bnpass.files import load_model
    from bnpass.pipeline.datasets import input_specs

    if not isinstance(data, Stream):
        kept, held_out = data.split(args.validation, args.seed)
        return kept, held_out
    if takes_split(load_callable(args.data)):
        specs = input_specs(load_model(args.model, data=False))
        return data, open_inputs(args.data, specs, split="test", mask=args.mask)
    log.warning("%s gives batches, of which none can be held out: nothing is validated; let it "
                "take split='train' and 'test'", args.data)
    return data, None


def _steps(data: Any, config: TrainConfig) -> int | None:
    """Steps of the run, where they are known before it starts."""
    if hasattr(data, "__len__"):
        return config.total_steps(len(data))
    return config.steps or (max(1, round(config.epochs * data.length)) if data.length else None)


def _result(history: History) -> str:
    """One line: how long it was trained, and how good it is."""
    judged = history.validations[-1] if history.validations else None
    row = judged or history.rows[-1]
    where, loss = ("validation ", row.validation_loss) if judged else ("training ", row.loss)
    values = judged.validation if judged else row.metrics
    parts = [f"{where}{name} {measure(name, value)}" for name, value in values.items()]
    return ", ".join([f"{history.steps} steps", *(parts or [f"{where}loss {loss:.4g}"])])


def _chosen_rate(
    gm: fx.GraphModule, data: Any, config: TrainConfig, folder: Path, ui: Ui
) -> TrainConfig:
    """The settings with the rate that a range test suggests, which is shown as a picture."""
    from bnpass.report.curves import draw_range
    from bnpass.training import lr_range_test

    found = lr_range_test(gm, data, config)
    ui.log(f"learning rate {found.suggestion:.3g}: a third of where the loss was lowest in "
           f"{len(found.lrs)} steps of a rising rate")
    ui.document["lr_range"] = found.to_dict()
    if is_first_process():
        make_folder(folder)
        _drawn(lambda: draw_range(found, folder / "lr_range.png"), ui)
    return replace(config, lr=found.suggestion)


def _run_dir(args: argparse.Namespace, path: Path) -> Path:
    folder = Path(args.run_dir) if args.run_dir else path.with_suffix(".run")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the run's folder is a file: {folder}", "name another with --run-dir")
    used = (folder / "metrics.csv").exists()
    if used and not (args.force or args.resume) and is_first_process():
        raise OutputError(f"the run's folder holds an earlier run: {folder}",
                          "pass --force to replace it, --resume to go on, or name another with "
                          "--run-dir")
    return folder


def _drawn(draw: Callable[[], object], ui: Ui) -> None:
    """Draw a picture; a missing matplotlib is no reason to fail after a training."""
    try:
        draw()
    except MissingDependencyError as error:
        ui.warn(f"no picture: {error.message} ({error.hint})")
