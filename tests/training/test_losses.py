from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from bnpass.errors import InputError
from bnpass.training.losses import objective


def identity(ending: nn.Module | None = None) -> fx.GraphModule:
    return fx.symbolic_trace(nn.Sequential(*( [ending] if ending else [nn.Identity()])))


def test_cross_entropy_of_tokens_and_of_images() -> None:
    y = torch.randint(0, 5, (2, 7))
    tokens, image = torch.randn(2, 7, 5), torch.randn(2, 5, 7)
    last = objective(identity(), y.numpy(), tokens)
    first = objective(identity(), y.numpy(), image)
    assert last.name == first.name == "cross_entropy"
    torch.testing.assert_close(last.loss(tokens, y), F.cross_entropy(tokens.movedim(2, 1), y))
    torch.testing.assert_close(first.loss(image, y), F.cross_entropy(image, y))
    judge = last.metric(True)
    judge.add(tokens, y)
    assert judge.values() == {"accuracy": float((tokens.argmax(2) == y).double().mean())}


def test_label_smoothing() -> None:
    x, y = torch.randn(6, 5), torch.randint(0, 5, (6,))
    goal = objective(identity(), y.numpy(), x, label_smoothing=0.1)
    p = -F.log_softmax(x, 1)
    wanted = 0.9 * p[torch.arange(6), y] + 0.1 * p.mean(1)
    torch.testing.assert_close(goal.loss(x, y), wanted.mean())


def test_what_auto_takes() -> None:
    x = torch.rand(4, 3)
    share = np.random.default_rng(0).random((4, 3)).astype(np.float32)
    assert objective(identity(), np.arange(3), x).name == "cross_entropy"
    assert objective(identity(), np.array([0, 1, 1]), x[:, :1]).name == "bce"
    assert objective(identity(), share, x).name == "mse"
    many = objective(identity(nn.Sigmoid()), share, x)
    assert many.name == "bce"
    torch.testing.assert_close(
        many.loss(many.module(x), torch.from_numpy(share)),
        F.binary_cross_entropy(torch.sigmoid(x), torch.from_numpy(share)))


def test_mse_keeps_the_ending() -> None:
    x, y = torch.rand(4, 3), np.zeros((4, 3), np.float32)
    goal = objective(identity(nn.Sigmoid()), y, x, loss="mse")
    torch.testing.assert_close(goal.module(x), torch.sigmoid(x))
    assert goal.names == ("rmse", "r2")


def test_labels_that_do_not_fit() -> None:
    x = torch.rand(4, 3)
    with pytest.raises(InputError, match="from 1 to 3 do not fit 3 outputs"):
        objective(identity(), np.array([1, 2, 3]), x)
    with pytest.raises(InputError, match="yes-or-no"):
        objective(identity(), np.array([0, 2]), x[:, :1], loss="bce")
    with pytest.raises(InputError, match="not class numbers"):
        objective(identity(), np.array([0.5, 0.2], np.float32), x, loss="cross_entropy")


def test_a_class_without_samples_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    x, y = torch.randn(6, 4), np.array([0, 1, 3, 3, 1, 0])
    objective(identity(), y, x, where="training data")
    assert "training data: no sample of class 2" in caplog.text
