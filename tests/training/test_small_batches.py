from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnpass.errors import UsageError
from bnpass.nn.norms import Renormalise, batch_norms, normalising_with
from bnpass.training import TrainConfig, calibrate, evaluate, load_checkpoint, train
from bnpass.training.average import WeightAverage
from tests.training.nets import blobs, mlp

QUICK = TrainConfig(lr=0.1, batch_size=20, steps=20, device="cpu")


def layer() -> tuple[nn.BatchNorm1d, torch.Tensor]:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        norm.running_mean.copy_(torch.tensor([0.5, -0.5, 0.0]))
        norm.running_var.copy_(torch.tensor([2.0, 1.0, 0.5]))
    return norm, torch.randn(6, 3, 4, dtype=torch.float64)


@pytest.mark.parametrize("step", [0, 20, 100])
def test_renorm_is_the_formula_of_its_paper(step: int) -> None:
    norm, x = layer()
    x.requires_grad_()
    renorm = Renormalise(100)
    renorm.step = step
    largest, farthest = renorm.limits
    assert renorm.limits == pytest.approx({0: (1, 0), 20: (13 / 7, 3.75), 100: (3, 5)}[step])
    var, mean = torch.var_mean(x, (0, 2), correction=0)
    sigma = (norm.running_var + norm.eps).sqrt()
    r = ((var + norm.eps).sqrt() / sigma).clamp(1 / largest, largest).detach()
    d = ((mean - norm.running_mean) / sigma).clamp(-farthest, farthest).detach()
    normal = (x - mean[:, None]) / (var + norm.eps).sqrt()[:, None]
    want = (normal * r[:, None] + d[:, None]) * norm.weight[:, None] + norm.bias[:, None]
    other = copy.deepcopy(norm)
    other(x.detach())
    with normalising_with([norm], renorm):
        got = norm(x)
    torch.testing.assert_close(got, want)
    probe = torch.randn_like(want)
    torch.testing.assert_close(torch.autograd.grad((got * probe).sum(), x)[0],
                               torch.autograd.grad((want * probe).sum(), x)[0])
    # The running statistics are those that BN would keep, and so is the eval mode.
    torch.testing.assert_close(norm.running_var, other.running_var)
    assert torch.equal(norm.eval()(x), other.eval()(x))


def test_training_with_renorm_learns_on_batches_of_four() -> None:
    config = replace(QUICK, batch_size=4, steps=300, norm="renorm", lr=0.02)
    gm = mlp()
    history = train(gm, blobs(400), blobs(100, seed=1), config)
    assert history.accuracy > 0.85
    assert "forward" not in vars(gm.get_submodule("1"))
    with pytest.raises(UsageError, match="renorm with virtual batches"):
        replace(config, virtual_batch=2)


def test_few_elements_in_a_step_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    for changes, warned in (({"batch_size": 4}, True), ({"batch_size": 8}, False),
                            ({"virtual_batch": 4}, True), ({"accumulate": 4}, True),
                            ({"batch_size": 4, "norm": "renorm"}, False),
                            ({"batch_size": 4, "freeze_bn": True}, False)):
        caplog.clear()
        train(mlp(), blobs(60), None, replace(QUICK, steps=1, **changes))
        assert ("elements a channel in each step" in caplog.text) is warned, changes


def test_the_average_of_weights_is_left_behind_with_statistics_for_it() -> None:
    data, held = blobs(300), blobs(100, seed=1)
    seen: list[dict[str, torch.Tensor]] = []
    plain, averaged = mlp(), mlp()
    start = {k: v.detach().clone() for k, v in plain.named_parameters()}
    train(plain, data, held, replace(QUICK, log_every=1), progress=lambda _: seen.append(
        {k: v.detach().clone() for k, v in plain.named_parameters()}))
    history = train(averaged, data, held, replace(QUICK, ema=0.9))
    want = start
    for step, weights in enumerate(seen, 1):
        decay = min(0.9, (1 + step) / (10 + step))
        want = {k: decay * want[k] + (1 - decay) * weights[k] for k in want}
    for name, value in averaged.named_parameters():
        torch.testing.assert_close(value, want[name], rtol=1e-4, atol=1e-6)
    assert history.restored
    found = evaluate(averaged, held, device="cpu")
    assert found.loss == pytest.approx(history.validations[-1].validation_loss, rel=1e-4)
    calibrate(other := copy.deepcopy(averaged), data)
    for name, norm in batch_norms(other).items():
        torch.testing.assert_close(averaged.get_submodule(name).running_var, norm.running_var)


def test_a_resumed_average_ends_with_the_same_bits(tmp_path) -> None:
    config = replace(QUICK, ema=0.9, checkpoint_every=5)
    whole, halves = mlp(), mlp()
    train(whole, blobs(), None, config, out=tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.step == 10:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(halves, blobs(), None, replace(config, log_every=10), out=tmp_path / "halves",
              progress=stop)
    halves = mlp()
    train(halves, blobs(), None, replace(config, log_every=10), out=tmp_path / "halves",
          resume=True)
    for a, b in zip(whole.state_dict().values(), halves.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert load_checkpoint(tmp_path / "halves/checkpoints/last.pt").average


def test_an_average_in_place_gives_the_weights_back() -> None:
    net = nn.Linear(3, 2)
    average = WeightAverage(net, 0.5)
    before = average.held["weight"].clone()
    with torch.no_grad():
        net.weight.add_(1)
    now = net.weight.detach().clone()
    with average.in_place():
        assert torch.equal(net.weight, before)
    assert torch.equal(net.weight, now) and torch.equal(average.held["weight"], before)


def test_restored_weights_come_with_the_statistics_that_they_were_judged_with() -> None:
    data, held = blobs(300), blobs(100, seed=1)
    gm = mlp()
    config = replace(QUICK, steps=40, lr=0.5, eval_every=10, restore_best=True)
    history = train(gm, data, held, config)
    found = evaluate(gm, held, device="cpu")
    best = next(row for row in history.validations if row.step == history.best_step)
    assert found.loss == pytest.approx(best.validation_loss, rel=1e-4)
    assert history.restored


def test_an_explosion_is_a_divergence(caplog: pytest.LogCaptureFixture) -> None:
    x = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    from bnpass.data import from_arrays

    data = from_arrays(x, x[:, :2])
    config = replace(QUICK, lr=1.3, momentum=0.0, schedule="constant", steps=40, log_every=2)
    net = nn.Sequential(nn.Linear(12, 2))
    with torch.no_grad():
        net[0].weight.mul_(0.1)
    history = train(net, data, None, replace(config, lr=4.0))
    assert history.stopped == "diverged" and np.isfinite(history.rows[-1].loss)
    assert "the loss is" in caplog.text
    assert F.mse_loss(net(torch.from_numpy(x)), torch.from_numpy(x[:, :2])) > 1
