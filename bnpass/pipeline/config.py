"""Everything that decides how the whole job runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bnpass.errors import UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bnpass.report.progress import ProgressBar
    from bnpass.training.config import TrainConfig

LR_GRID = (0.03, 0.1, 0.3, 1.0)
"""Learning rates tried for each arm when the arms are compared and none is given."""


@dataclass(frozen=True)
class RunConfig:
    """How :func:`bnpass.pipeline.run_pipeline` runs.

    Attributes:
        train: of both arms; its learning rate is replaced where there is a grid.
        lr_grid: rates of which each arm takes its own best one; empty takes ``train.lr``.
        lr_auto: take the rate that a range test suggests to each arm (no grid).
        grid_steps: steps of a trial run; 0 means a tenth of the run and 20 at least.
        compare_plain: also train the file without BN, for as many steps.
        validation: share of the training data that is held out, on which rates are chosen.
        test_data: where the test images are; None takes the test split of the data, or else the
            held-out part (the report says which).
        data: how data is read, keywords of :func:`bnpass.data.open_data`.
        insert: keywords of :func:`bnpass.insert`.
        fold: keywords of :func:`bnpass.fold`.
        fold_normalisation: let the deployed model take samples as they are stored: scale, mean and
            std of the data go into its weights, too.
        statistics_batch: samples in a batch for the population statistics.
        tensorboard: also write the metrics as TensorBoard events.
        provider: onnxruntime's provider on which the deployed model is measured.
        verify: refuse to write a deployed model that differs from the trained one.
        command: what was typed, for the report; empty: nothing.
    """

    train: TrainConfig
    lr_grid: tuple[float, ...] = ()
    lr_auto: bool = False
    grid_steps: int = 0
    compare_plain: bool = False
    validation: float = 0.1
    test_data: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    insert: dict[str, Any] = field(default_factory=dict)
    fold: dict[str, Any] = field(default_factory=dict)
    fold_normalisation: bool = False
    statistics_batch: int = 1000
    tensorboard: bool = False
    provider: str = "cpu"
    verify: bool = True
    command: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise UsageError(f"validation share {self.validation:g}", "give one between 0 and 1")


class Listener(Protocol):
    """Whoever wants to see how far the job is; :class:`bnpass.report.ui.Ui` is one."""

    def log(self, text: str) -> None:
        """A line about what is being done."""

    def progress(
        self, title: str, total: int | None = None
    ) -> AbstractContextManager[ProgressBar]:
        """A bar or lines for a number of steps."""
