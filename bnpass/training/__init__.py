"""Training in PyTorch: the loop, its settings, population statistics, checkpoints."""

from __future__ import annotations

from bnpass.nn.norms import freeze
from bnpass.statistics.torch_engine import calibrate
from bnpass.training.checkpoints import Checkpoint, load_checkpoint, restore
from bnpass.training.config import TrainConfig, paper_recipe
from bnpass.training.evaluate import Score, evaluate
from bnpass.training.history import History, Row
from bnpass.training.initialize import initialize
from bnpass.training.loop import Progress, train
from bnpass.training.lr_range import LrRange, lr_range_test
from bnpass.training.outputs import logits_module, value_module

__all__ = [
    "Checkpoint",
    "History",
    "LrRange",
    "Progress",
    "Row",
    "Score",
    "TrainConfig",
    "calibrate",
    "evaluate",
    "freeze",
    "initialize",
    "load_checkpoint",
    "logits_module",
    "lr_range_test",
    "paper_recipe",
    "restore",
    "train",
    "value_module",
]
