"""A bnpass command that kills itself, as kill -9 does, in the middle of something; see test_resume.

``python -m tests.commands.killed PLACE N COMMAND ...``: at the N-th time that PLACE is reached.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bnpass import cli, signals
from bnpass.statistics import torch_engine
from bnpass.training import loop, lr_range, setup

RANK = int(os.environ.get("RANK", "0"))
left = 0


def die_in_time() -> None:
    global left  # noqa: PLW0603
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def die_first(owner: Any, name: str) -> None:
    """Die instead of a call."""
    whole: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        die_in_time()
        return whole(*args, **options)

    setattr(owner, name, call)


def half_written(suffix: str) -> None:
    """Die when half of a file is written."""
    whole = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if suffix in path.name:
            whole(path, content[: len(content) // 2])
            die_in_time()
        return whole(path, content)

    Path.write_bytes = write  # type: ignore[method-assign]


def not_renamed(suffix: str) -> None:
    """Die when a file is written and has not its name yet."""
    whole = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if target.name.endswith(suffix):
            die_in_time()
        return whole(path, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]


PLACES: dict[str, Callable[[], None]] = {
    "step": lambda: die_first(loop, "take_step"),
    "validation": lambda: die_first(setup.Setup, "validate"),
    "half a checkpoint": lambda: half_written("last.pt"),
    "unnamed checkpoint": lambda: not_renamed("last.pt"),
    "best, not last": lambda: half_written("best.pt"),
    "range test": lambda: die_first(lr_range, "take_step"),
    "statistics": lambda: die_first(torch_engine, "_store"),
    "trained": lambda: not_renamed("trained.onnx"),
    "deployed": lambda: not_renamed("deploy.onnx"),
}


def main(place: str, number: str, rank: str, *arguments: str) -> int:
    """Run the command; only the process of this rank dies."""
    global left  # noqa: PLW0603
    torch.set_num_threads(1)
    left = int(number)
    if int(rank) == RANK and place in PLACES:
        PLACES[place]()
    signals.install()
    return cli.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
