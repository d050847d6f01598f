from __future__ import annotations

import sys

import pytest

from bnpass.errors import MissingDependencyError
from bnpass.training import TrainConfig, train
from bnpass.training.tensorboard import TensorBoard
from tests.training.nets import blobs, mlp


def test_rows_become_events(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = train(mlp(), blobs(), blobs(50, seed=1), TrainConfig(steps=6, device="cpu"),
                    progress=TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [event.value for event in events.Scalars("loss/training")]
    assert losses == pytest.approx([row.loss for row in history.rows])


def test_without_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match="TensorBoard is not installed"):
        TensorBoard(tmp_path)
