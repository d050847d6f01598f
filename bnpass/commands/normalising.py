"""``bnpass fold --mean ... --std ...``: the normalisation of the input goes into the weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.commands import options
from bnpass.commands.datasets import numbers
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.data.normalisation import Normalisation
    from bnpass.deploy import Deployed


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


def normalisation(args: argparse.Namespace, ui: Ui) -> Normalisation | None:
    """The normalisation of the input that the written model shall do itself, or None.

    Raises:
        UsageError: numbers that contradict each other.
    """
    given = {name: value for name in ("scale", "mean", "std")
             if (value := getattr(args, name)) is not None}
    if not given and not args.fold_normalisation:
        return None
    from dataclasses import replace

    from bnpass.data.normalisation import Normalisation
    from bnpass.data.recorded import recorded_recipe
    from bnpass.onnx_model.model import OnnxModel

    recipe = recorded_recipe(OnnxModel.of(args.model, data=False).proto)
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
    return wanted


def show(done: Deployed, ui: Ui) -> None:
    """Say what became of the normalisation, where there was one."""
    if done.front is None:
        return
    nodes, plan = set(done.front.nodes), done.folded.plan
    into = {name for e in plan.folded if nodes & set(e.nodes) for name in e.into}
    stay = {name: e.reason for e in plan.refused for name in e.nodes if name in nodes}
    left = [n.op_type for n in done.model.graph.node if n.name in stay]
    reason = next(iter(stay.values()), "").partition("forward: ")[2]  # nothing is behind an input
    ui.document["normalisation"].update(into=sorted(into), left=left, reason=reason)
    said = [f"folded into {', '.join(sorted(into))}"] if into else []
    if left:
        said.append(f"{' and '.join(left)} {'stay' if len(left) > 1 else 'stays'} in front "
                    f"({reason})")
    ui.say(f"normalisation of the input: {'; '.join(said)}")
