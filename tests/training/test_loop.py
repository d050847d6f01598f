from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bnpass.data import InputSpec, from_arrays
from bnpass.errors import InputError, MissingDependencyError, UsageError
from bnpass.nn.norms import batch_norms
from bnpass.training import TrainConfig, calibrate, evaluate, freeze, load_checkpoint, train
from tests.training.nets import blobs, convnet, images, mlp

QUICK = TrainConfig(lr=0.3, batch_size=40, steps=60, device="cpu")


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == j and torch.equal(v, w) for (k, v), (j, w) in pairs)


def test_it_learns_and_says_so() -> None:
    gm = mlp()
    seen = []
    history = train(gm, blobs(800), blobs(200, seed=1), QUICK, progress=seen.append)
    assert history.accuracy is not None and history.accuracy > 0.9
    assert [p.step for p in seen] == list(range(1, 61))
    assert len(history.validations) == 10
    assert history.rows[-1].loss < 0.5 * history.rows[0].loss
    assert history.stopped == "done" and history.steps == 60
    assert not gm.training


def test_validation_is_what_evaluate_finds_after_calibration() -> None:
    gm = mlp()
    data, held = blobs(800), blobs(200, seed=1)
    history = train(gm, data, held, QUICK)
    calibrate(gm, data)
    found = evaluate(gm, held, device="cpu")
    last = history.validations[-1]
    assert found.samples == 200
    assert math.isclose(found.loss, last.validation_loss, rel_tol=1e-5)
    assert found.accuracy == last.validation_accuracy


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_seed_fixes_every_bit(optimizer: str) -> None:
    config = replace(QUICK, steps=25, optimizer=optimizer, lr=0.01, crop=1, flip=True)
    nets = []
    for seed in (3, 3, 4):
        gm = convnet()
        torch.manual_seed(len(nets))  # the caller's random state must not matter
        train(gm, images(), images(30, seed=1), replace(config, seed=seed))
        nets.append(gm)
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


def test_dropout_follows_the_seed_and_can_be_switched_off() -> None:
    def result(**changes) -> nn.Module:
        gm = mlp(dropout=0.5)
        train(gm, blobs(), None, replace(QUICK, steps=10, **changes))
        return gm

    assert same(result(), result())
    assert not same(result(), result(dropout=False))


def test_the_callers_random_state_and_settings_are_left_alone() -> None:
    gm = mlp(dropout=0.5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(gm, blobs(), None, replace(QUICK, steps=2))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_validation_does_not_change_the_run() -> None:
    config = replace(QUICK, steps=20, log_every=20)
    nets = [mlp(), mlp()]
    train(nets[0], blobs(), None, replace(config, eval_every=20))
    train(nets[1], blobs(), blobs(50, seed=1), replace(config, eval_every=3))
    assert same(*nets)


@pytest.mark.parametrize("ending", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()])
def test_a_final_softmax_is_trained_on_its_input(ending: nn.Module) -> None:
    plain, ended = mlp(), mlp(ending)
    for gm in (plain, ended):
        train(gm, blobs(), None, replace(QUICK, steps=15))
    for a, b in zip(plain.parameters(), ended.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(5, 12)
    torch.testing.assert_close(ended(x), ending(plain(x)))


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    # Without BN, whose statistics are those of the micro-batch, the sum is the same.
    nets = [mlp(norm=False), mlp(norm=False)]
    for gm, parts in zip(nets, (1, 3), strict=True):
        train(gm, blobs(), None, replace(QUICK, steps=8, accumulate=parts))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_ghost_batches_normalise_parts() -> None:
    whole, ghost, two = mlp(), mlp(), mlp()
    config = replace(QUICK, steps=5)
    train(whole, blobs(), None, config)
    train(ghost, blobs(), None, replace(config, virtual_batch=20))
    train(two, blobs(), None, replace(config, accumulate=2))
    assert not same(whole, ghost)
    # Each half by itself is what two micro-batches do.
    for a, b in zip(ghost.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(ghost.get_submodule("1"))


def test_frozen_norms_stay_as_they_are() -> None:
    gm = calibrate(mlp(), blobs())
    before = copy.deepcopy(gm)
    train(gm, blobs(), blobs(50, seed=1), replace(QUICK, steps=5, freeze_bn=True))
    for name, norm in batch_norms(gm).items():
        assert same(norm, before.get_submodule(name))
    assert not torch.equal(gm.get_parameter("0.weight"), before.get_parameter("0.weight"))
    one = mlp()
    freeze(one.get_submodule("1"))
    train(one, blobs(), None, replace(QUICK, steps=5))
    assert one.get_parameter("1.weight").eq(1).all()
    assert not one.get_parameter("5.weight").eq(1).all()


def test_early_stopping_restores_the_best() -> None:
    gm = mlp()
    held = blobs(100, seed=1)
    config = replace(QUICK, lr=3.0, schedule="constant", steps=400, eval_every=5, patience=3,
                     restore_best=True)
    history = train(gm, blobs(80), held, config)
    assert history.stopped == "patience"
    assert history.steps == history.best_step + 15
    scores = [row.validation_accuracy for row in history.validations]
    assert max(scores) == history.best_score == scores[history.best_step // 5 - 1]


def test_data_in_the_order_of_its_classes_is_judged_alike() -> None:
    """The statistics of a validation are taken from all over the set, not from its first class."""
    data, held = blobs(6000), blobs(400, seed=1)
    ordered = data.subset(np.argsort(data.labels, kind="stable"))
    config = replace(QUICK, steps=40, eval_every=40)
    found = [train(mlp(), one, held, config).accuracy for one in (data, ordered)]
    assert abs(found[0] - found[1]) < 0.03
    samples = replace(config, watch=("before:2",), steps=2)
    (_, _, *one), (_, _, *other) = (train(mlp(), blobs(60), part, samples).percentiles[0]
                                    for part in (data, ordered))
    assert one == pytest.approx(other, abs=0.15)


def test_ghost_batches_never_leave_one_sample_alone() -> None:
    history = train(mlp(), blobs(63), None, replace(QUICK, batch_size=7, virtual_batch=2, steps=9))
    assert history.steps == 9
    with pytest.raises(UsageError, match="virtual_batch 1"):
        replace(QUICK, virtual_batch=1)


def test_a_network_without_norms_is_trained_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    history = train(mlp(norm=False), blobs(200), blobs(50, seed=1), replace(QUICK, steps=6))
    assert history.validations and "no BatchNorm" not in caplog.text


def test_one_sample_a_step_without_norms() -> None:
    assert train(mlp(norm=False), blobs(20), None, replace(QUICK, batch_size=1)).steps == 60


def bad_from_step(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    """From some step on every batch holds an overflow, which no check of the data sees."""
    from bnpass.training import loop

    whole = loop.take_step

    def step(setup, number, rate, batches, tally):
        if number >= bad:
            batches = [(x * math.inf, y) for x, y in batches]
        whole(setup, number, rate, batches, tally)

    monkeypatch.setattr(loop, "take_step", step)


@pytest.mark.parametrize("bad", [10, 20, 29])
def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(
    tmp_path, monkeypatch, bad: int
) -> None:
    config = replace(QUICK, steps=60, eval_every=10, checkpoint_every=5, log_every=5)
    bad_from_step(monkeypatch, bad)
    history = train(mlp(), blobs(), blobs(50, seed=1), config, out=tmp_path)
    assert history.stopped == "diverged" and bad < history.steps <= bad + 5
    kept = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert bad - 5 < kept.step <= bad
    assert all(torch.isfinite(v).all() for v in kept.model.values())
    assert kept.history.stopped == "done"


def test_weights_beyond_their_range_are_a_divergence() -> None:
    history = train(mlp(), blobs(), blobs(50, seed=1), replace(QUICK, lr=1e30, log_every=1))
    assert history.stopped == "diverged"


def test_divergence_ends_the_run() -> None:
    config = replace(QUICK, lr=1e6, schedule="constant", log_every=1, loss="mse")
    history = train(mlp(norm=False, classes=1), blobs(), blobs(50, seed=1), config)
    assert history.stopped == "diverged"
    assert history.steps < 60


def test_regression_and_binary_and_own_loss(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)).astype(np.float32)
    target = x[:, :2] + 0.5
    gm = mlp(classes=2)
    history = train(gm, from_arrays(x, target), from_arrays(x, target), replace(QUICK, lr=0.05))
    assert history.rows[-1].loss < 0.5 * history.rows[0].loss
    assert history.accuracy is None and history.best_score == -min(
        row.validation["rmse"] for row in history.validations)
    for row in history.validations:
        assert math.isclose(row.validation["rmse"] ** 2, row.validation_loss, rel_tol=1e-5)
        explained = 1 - row.validation_loss / target.var(0).mean()
        assert math.isclose(row.validation["r2"], explained, abs_tol=1e-5)
    yes = from_arrays(x, (x[:, 0] > 0).astype(np.int64))
    for ending in (None, nn.Sigmoid()):
        history = train(mlp(ending, classes=1), yes, yes, QUICK)
        assert history.accuracy > 0.9
    (tmp_path / "my_loss_for_test.py").write_text(
        "def loss(outputs, labels):\n    return (outputs - labels).abs().mean()\n")
    monkeypatch.chdir(tmp_path)
    config = replace(QUICK, lr=0.05, loss="my_loss_for_test:loss")
    history = train(mlp(classes=2), from_arrays(x, target), None, config)
    assert history.rows[-1].loss < history.rows[0].loss
    assert history.rows[0].accuracy is None


def test_metrics_are_written(tmp_path) -> None:
    out = tmp_path / "run"
    config = replace(QUICK, steps=10, eval_every=5, watch=("2",))
    history = train(mlp(), blobs(), blobs(50, seed=1), config, out=out)
    with (out / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(r["step"]) for r in rows] == list(range(1, 11))
    assert [r["validation_accuracy"] != "" for r in rows].count(True) == 2
    assert float(rows[-1]["loss"]) == history.rows[-1].loss
    with (out / "percentiles.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 10
    assert all(float(r["p15"]) < float(r["p50"]) < float(r["p85"]) for r in lines)


def test_formats_of_memory_and_precision() -> None:
    nets = []
    for changes in ({}, {"channels_last": True}, {"precision": "bf16"}):
        gm = convnet()
        history = train(gm, images(), images(60, seed=1), replace(QUICK, lr=0.05, **changes))
        assert history.accuracy > 0.8
        assert gm.get_parameter("0.weight").is_contiguous()
        assert gm.get_parameter("0.weight").dtype == torch.float32
        nets.append(gm)
    assert not same(nets[0], nets[2])


def test_samples_larger_than_memory_are_read_as_they_come(monkeypatch) -> None:
    nets = [mlp(), mlp()]
    train(nets[0], blobs(), None, replace(QUICK, steps=10))
    monkeypatch.setattr("bnpass.data.dataset.Data.cached", lambda self, limit=0: self)
    train(nets[1], blobs(), None, replace(QUICK, steps=10))
    assert same(*nets)


def test_tokens_in_labels_for_each_token_out() -> None:
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 8)
            self.norm = nn.BatchNorm1d(8)
            self.out = nn.Linear(8, 3)

        def forward(self, tokens):
            hidden = self.norm(self.table(tokens).transpose(1, 2)).transpose(1, 2)
            return torch.softmax(self.out(torch.relu(hidden)), -1)

    tokens = np.random.default_rng(0).integers(0, 20, (200, 5))
    data = from_arrays(tokens, tokens % 3, inputs=InputSpec((None, 5), "int64"))
    torch.manual_seed(0)
    history = train(torch.fx.symbolic_trace(Tagger()), data, data, QUICK)
    assert history.accuracy == 1


def test_bad_input() -> None:
    x = np.zeros((60, 12), np.float32)
    cases = [
        (from_arrays(x, np.arange(60) % 5), InputError, "labels from 0 to 4 do not fit 4 outputs"),
        (from_arrays(x), InputError, "has no labels"),
        (from_arrays(x, np.zeros((60, 7), np.float32)), InputError, "7 targets a sample"),
        (from_arrays(x, np.zeros((60, 3, 2), np.int64)), InputError, "targets a sample"),
    ]
    for data, error, message in cases:
        with pytest.raises(error, match=message):
            train(mlp(), data, None, QUICK)
    with pytest.raises(UsageError, match="2 or more for BN"):
        train(mlp(), blobs(), None, replace(QUICK, batch_size=1))
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        train(mlp(), blobs(), None, replace(QUICK, precision="fp16"))
    with pytest.raises(UsageError, match="unknown device"):
        train(mlp(), blobs(), None, replace(QUICK, device="gpu"))
    with pytest.raises(InputError, match="no parameters to train"):
        train(mlp().requires_grad_(False), blobs(), None, QUICK)
    if not torch.cuda.is_available():
        with pytest.raises(MissingDependencyError, match="there are 0 GPUs"):
            train(mlp(), blobs(), None, replace(QUICK, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(precision: str) -> None:
    nets = [convnet(), convnet()]
    config = replace(QUICK, lr=0.05, device="cuda", precision=precision, channels_last=True,
                     clip_norm=1.0)
    for gm in nets:
        history = train(gm, images(), images(60, seed=1), config)
        assert history.accuracy > 0.8
        assert next(gm.parameters()).device.type == "cpu"
    assert same(*nets)
    calibrate(nets[0], images(), device="cuda")
    calibrate(nets[1], images(), device="cpu")
    for a, b in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled_on_a_gpu() -> None:
    plain, compiled = convnet(), convnet()
    config = replace(QUICK, lr=0.05, device="cuda", steps=20)
    train(plain, images(), images(60, seed=1), config)
    history = train(compiled, images(), images(60, seed=1), replace(config, compile=True))
    assert history.stopped == "done"
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
