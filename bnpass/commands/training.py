"""Options of training, shared by ``train`` and ``run``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.errors import UsageError

if TYPE_CHECKING:
    from bnpass.training import TrainConfig

def _rate(text: str) -> float | str:
    return text if text == "auto" else options.positive(text)


_VALUES: tuple[tuple[str, Any, str], ...] = (
    ("--lr", _rate, "highest learning rate (default 0.1), or auto: a short test finds it"),
    ("--steps", options.at_least_one, "length of the run in steps"),
    ("--epochs", options.positive, "length of the run in passes over the data"),
    ("--batch-size", options.at_least_one, "samples a step (default 60)"),
    ("--momentum", options.non_negative, "of SGD, or beta1 of AdamW (default 0.9)"),
    ("--weight-decay", options.non_negative, "L2 factor on weights, not on gamma, beta and biases"),
    ("--warmup", options.count, "steps over which the rate rises"),
    ("--decay-every", options.at_least_one, "steps between two decays of the step schedule"),
    ("--decay-factor", options.positive, "what each of them multiplies the rate with"),
    ("--label-smoothing", options.non_negative, "share that goes to all classes alike"),
    ("--clip-norm", options.positive, "largest norm of the gradient"),
    ("--accumulate", options.at_least_one, "micro-batches a step"),
    ("--virtual-batch", options.at_least_one, "samples over which a BN normalises"),
    ("--crop", options.count, "pixels by which images are shifted at random"),
    ("--eval-every", options.at_least_one, "steps between validations (default: ten in the run)"),
    ("--checkpoint-every", options.at_least_one, "steps between checkpoints (default: as those)"),
    ("--log-every", options.at_least_one, "steps between rows of metrics.csv (default: 100 rows)"),
    ("--patience", options.at_least_one, "validations without a better one until it stops"),
)
_FLAGS = (
    ("--nesterov", "Nesterov's momentum"),
    ("--flip", "mirror training images at random"),
    ("--freeze-bn", "keep statistics, gamma and beta of every BN"),
    ("--restore-best", "end with the weights of the best validation"),
    ("--channels-last", "torch's channels_last memory format"),
    ("--compile", "run through torch.compile"),
)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`train_config` reads."""
    group = parser.add_argument_group("training")
    for name, kind, text in _VALUES:
        group.add_argument(name, type=kind, metavar="N", help=text)
    for name, text in _FLAGS:
        group.add_argument(name, action="store_true", default=None, help=text)
    group.add_argument("--norm", choices=("batch", "renorm"), help="how BN normalises in training: "
                       "by the batch (default), or batch renormalisation, for small batches")
    group.add_argument("--ema", type=options.fraction, metavar="DECAY",
                       help="also average the weights (0.999, say); the average is validated and "
                       "written, with statistics taken anew for it")
    group.add_argument("--optimizer", choices=("sgd", "adamw"), help="default sgd")
    group.add_argument("--schedule", choices=("constant", "step", "cosine", "onecycle"),
                       help="default cosine")
    group.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default fp32")
    group.add_argument("--loss", metavar="LOSS", help="auto (default), cross_entropy, bce, mse; "
                       "for several outputs OUTPUT=LOSS,OUTPUT=0.5*LOSS; or "
                       "package.module:function, called with (outputs, targets): one tensor each, "
                       "or dicts by the names of the outputs and of the targets' arrays; it "
                       "returns the mean over the batch")
    group.add_argument("--metric", metavar="METRIC", help="auto (default): accuracy, rmse and r2, "
                       "f1 and map, or miou, as the task is; or package.module:function, called "
                       "like a loss, or a class with update and compute (torchmetrics)")
    group.add_argument("--ignore-index", type=int, metavar="N",
                       help="class label that is left out of loss and metrics (default -100)")
    group.add_argument("--recipe", choices=("paper",),
                       help="section 4.2.1 of the paper: 5 times the learning rate, faster decay, "
                       "L2 / 5, no Dropout")
    group.add_argument("--watch", action="append", default=[], metavar="VALUE[UNIT]",
                       help="record the 15th, 50th and 85th percentiles of a value, as in the "
                       "paper's Figure 1: a node or value of the model, 'before:NODE' for what "
                       "it reads, '[3]' behind it for one unit (again for several)")
    group.add_argument("--tensorboard", action="store_true",
                       help="also write the metrics as TensorBoard events")
    group.add_argument("--validation", type=options.fraction, default=0.1, metavar="SHARE",
                       help="share of the training data that is held out (default 0.1)")
    options.add_seed(group)
    options.add_device(group)


def train_config(args: argparse.Namespace, *, epochs: float) -> TrainConfig:
    """The settings that the options ask for; ``epochs`` is the length where none is given."""
    from bnpass.training import TrainConfig, paper_recipe

    names = [name for name, *_ in (*_VALUES, *_FLAGS)]
    names += ["--optimizer", "--schedule", "--precision", "--loss", "--metric", "--ignore-index",
              "--norm", "--ema"]
    fields = {name: getattr(args, name) for name in (n[2:].replace("-", "_") for n in names)}
    given = {name: value for name, value in fields.items() if value is not None}
    if given.get("lr") == "auto":
        del given["lr"]
    if "steps" in given and "epochs" in given:
        raise UsageError("--steps and --epochs both say how long to train", "give one of them")
    if "steps" not in given:
        given.setdefault("epochs", epochs)
    config = TrainConfig(**given, seed=args.seed, device=args.device, watch=tuple(args.watch))
    if args.recipe != "paper":
        return config
    paper = paper_recipe(config)
    # What was asked for by name wins over the recipe.
    return replace(paper, **{k: v for k, v in given.items() if k in ("lr", "schedule")})
