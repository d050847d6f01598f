"""The verdict that stands before every writing, asked for and said."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.errors import MissingDependencyError
from bnpass.report.ui import Ui
from bnpass.report.verdicts import answers

if TYPE_CHECKING:
    from bnpass.runtime.inputs import Feeds
    from bnpass.runtime.tolerance import Tolerance
    from bnpass.runtime.verification import VerifyReport
    from bnpass.verdict.judge import Edits



def add_budget(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--check-budget`` and ``--dims``."""
    parser.add_argument("--check-budget", type=options.non_negative, default=20.0,
                        metavar="SECONDS",
                        help="what running the whole network may take beyond the proof of each "
                        "edit (default 20; 0: not run at all); what does not fit is left out and "
                        "said")
    parser.add_argument("--dims", type=options.sizes, default={}, metavar="NAME=N,...",
                        help="sizes of free dimensions for the check (INPUT:AXIS where they have "
                        "no name), and values of inputs that are counts")


def add_data(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--data`` and ``--split`` of commands that need samples for nothing but the check."""
    group.add_argument("--data", metavar="DATA",
                       help="check on these samples, not on random ones; see bnpass train --help")
    add_split(group)


def add_split(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--split`` of the samples that a check runs on."""
    group.add_argument("--split", default="test", help="split of the data for the check (default "
                       "test)")


def add_trust(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--trust-shapes``."""
    group.add_argument("--trust-shapes", action="store_true",
                       help="also where a shape is only what the file declares behind an operator "
                       "that nobody knows, and the check cannot run the network")


def samples(
    model: Any, args: argparse.Namespace, ui: Ui, *, size: int = 5, count: int = 12
) -> list[Any] | None:
    """Batches of ``--data`` as a model takes them; None where none was given.

    Args:
        model: a path or a ModelProto.
        args: with ``data`` and ``split``.
        ui: gets what was read.
        size, count: of a batch, and how many batches at most.
    """
    if args.data is None:
        return None
    from itertools import islice

    from bnpass.data import Stream
    from bnpass.pipeline.datasets import open_for

    data = open_for(model, args.data, labels=False, split=args.split)
    ui.document["data"] = data.recipe
    if isinstance(data, Stream):
        return list(islice(data, count))
    return [x for x, _ in islice(data.batches(size), count)]


def check(
    before: Any, after: Any, ui: Ui, *, edits: Edits | None = None, provider: str = "cpu",
    seed: int = 0, rule: Tolerance | None = None, budget: float | None = 20.0,
    prepare: Callable[[Feeds], Feeds] | None = None, dims: Mapping[str, int] | None = None,
    data: Iterable[Any] | None = None,
) -> VerifyReport:
    """Judge a rewritten model; the three answers are printed.

    Args:
        before: the original, a path or a ModelProto.
        after: what would be written, likewise.
        ui: gets the result.
        edits: what is known of how it was made.
        provider: on which the rewritten model runs.
        seed: of the random inputs.
        rule: a tolerance instead of the network's noise, where the types differ.
        budget: seconds for running the whole network.
        prepare: brings random inputs into the range that the models are meant for.
        dims: sizes of free dimensions, and values of inputs that are counts.
        data: batches to run both on, instead of random inputs.

    Raises:
        VerificationError: an answer is no.
        RefusedError: edits rest on shapes that only the file declares, and nothing was run.
        MissingDependencyError: onnxruntime is missing; the hint names ``--no-verify`` too.
    """
    from bnpass.verdict.judge import Edits, judge

    try:
        with ui.status("verifying") as says:
            report = judge(before, after, edits or Edits(), provider=provider, seed=seed,
                           rule=rule, prepare=prepare, budget=budget, says=says, dims=dims,
                           data=data)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"cannot verify before writing: {error.message}", f"{error.hint} (or pass --no-verify)"
        ) from error
    ui.document["verify"] = report.to_dict()
    for note in report.notes:
        ui.warn(note)
    report.raise_if_failed()
    for line in answers(report):
        ui.say(line)
    return report
