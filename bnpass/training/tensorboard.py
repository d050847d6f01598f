"""TensorBoard as one more listener to a training run; the package is optional."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnpass.errors import MissingDependencyError
from bnpass.training.loop import Progress

_CURVES = {
    "loss": "loss/training", "validation_loss": "loss/validation",
    "lr": "learning rate", "ms_per_step": "ms per step",
}


@contextmanager
def also_to_tensorboard(
    shown: Callable[[Progress], None], folder: Path | None
) -> Iterator[Callable[[Progress], None]]:
    """A progress callback that calls another one and writes events into a folder (None: not)."""
    if folder is None:
        yield shown
        return
    board = TensorBoard(folder)

    def both(progress: Progress) -> None:
        shown(progress)
        board(progress)

    try:
        yield both
    finally:
        board.close()


class TensorBoard:
    """A progress callback that writes each row of the metrics as TensorBoard events.

    Args:
        folder: where the event file goes.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError("TensorBoard is not installed",
                                         "pip install tensorboard") from error
        self.writer: Any = SummaryWriter(str(folder))

    def __call__(self, progress: Progress) -> None:
        """Write one row."""
        row = progress.row
        curves = {curve: getattr(row, name) for name, curve in _CURVES.items()}
        curves |= {f"{name}/training": value for name, value in row.metrics.items()}
        curves |= {f"{name}/validation": value for name, value in row.validation.items()}
        for curve, value in curves.items():
            if value is not None:
                self.writer.add_scalar(curve, value, progress.step)
        if progress.step == progress.total:
            self.close()

    def close(self) -> None:
        """Write what is still held back; a run that stops early should call this."""
        self.writer.close()
