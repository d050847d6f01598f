"""``bnpass fold --mean ... --std ...``: the normalisation of the input goes into the weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.commands.datasets import numbers
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.data.normalisation import Normalisation
    from bnpass.frontends.onnx.folding import Folded, FoldOptions
    from bnpass.frontends.onnx.preprocessing import InFront
    from bnpass.runtime.inputs import Feeds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--fold-normalisation``, ``--scale``, ``--mean``, ``--std``."""
    group = parser.add_argument_group(
        "normalisation of the input",
        "The written file takes x where MODEL takes (scale * x - mean) / std. Scale and shift\n  "
        "go into first layers without padding; with padding the scale, and one Sub stays.",
    )
    add_flag(group)
    group.add_argument("--scale", type=options.ratio, metavar="S", help="1/255 for bytes")
    group.add_argument("--mean", type=numbers, metavar="M[,M..]",
                       help="one number or one a channel")
    group.add_argument("--std", type=options.positive_list, metavar="S[,S..]", help="likewise")


def add_flag(group: argparse._ArgumentGroup) -> None:
    """``--fold-normalisation``."""
    group.add_argument("--fold-normalisation", action="store_true",
                       help="scale, mean and std as training recorded them in the file")


@dataclass(frozen=True)
class Normalised:
    """A model with the normalisation in front, and what it is."""

    front: InFront
    wanted: Normalisation

    def fold(self, _: Any, wanted: FoldOptions) -> Folded:
        """Fold; the recorded conversion of the data is brought up to date."""
        from bnpass.frontends.onnx.preprocessing import fold_in_front
        from bnpass.pipeline.datasets import record_recipe, recorded_recipe

        done = fold_in_front(self.front, wanted)
        recipe = recorded_recipe(done.model)
        if recipe is not None:
            record_recipe(done.model, self.wanted.left_of(recipe).to_dict())
        return done

    @property
    def prepare(self) -> Callable[[Feeds], Feeds]:
        """Makes of random inputs of the model such as stored samples are."""
        from bnpass.data.normalisation import preparation

        return preparation(self.wanted, self.front.port.name)


def normalised(args: argparse.Namespace, ui: Ui) -> Normalised | None:
    """The model with what was asked for in front of it, or None.

    Raises:
        InputError: its input is no float tensor, or has no such channels.
        UsageError: numbers that contradict each other.
    """
    from dataclasses import replace

    from bnpass.data.normalisation import Normalisation
    from bnpass.files import load_model
    from bnpass.pipeline.datasets import recorded_recipe

    given = {name: value for name in ("scale", "mean", "std")
             if (value := getattr(args, name)) is not None}
    if not given and not args.fold_normalisation:
        return None
    model = load_model(args.model)
    recipe = recorded_recipe(model)
    wanted = Normalisation()
    if args.fold_normalisation and recipe is not None:
        wanted = Normalisation.of(recipe)
    wanted = replace(wanted, **given)
    if wanted.is_identity:
        ui.warn(f"no normalisation is recorded in {Path(args.model).name}: "
                "give it with --scale, --mean and --std")
        return None
    rest = None if recipe is None else wanted.left_of(recipe)
    if rest is not None and (rest.mean or rest.std):
        ui.warn("training recorded another normalisation in the file; the samples still need: "
                f"{rest.describe()}")
    ui.document["normalisation"] = {"scale": wanted.scale, "mean": list(wanted.mean),
                                    "std": list(wanted.std)}
    return Normalised(wanted.in_front_of(model), wanted)


def show(done: Folded, chosen: Normalised, ui: Ui) -> None:
    """Say what became of the normalisation."""
    nodes = set(chosen.front.nodes)
    into = {name for e in done.plan.folded if nodes & set(e.nodes) for name in e.into}
    stay = {name: e.reason for e in done.plan.refused for name in e.nodes if name in nodes}
    left = [n.op_type for n in done.model.graph.node if n.name in stay]
    reason = next(iter(stay.values()), "").partition("forward: ")[2]  # nothing is behind an input
    ui.document["normalisation"].update(into=sorted(into), left=left, reason=reason)
    said = [f"folded into {', '.join(sorted(into))}"] if into else []
    if left:
        said.append(f"{' and '.join(left)} {'stay' if len(left) > 1 else 'stays'} in front "
                    f"({reason})")
    ui.say(f"normalisation of the input: {'; '.join(said)}")
