"""The benchmark of the paper's experiments: its parts, and a row from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from benchmarks.paper import arms, nets
from benchmarks.paper.__main__ import main, rows
from benchmarks.paper.context import MODELS, Context
from benchmarks.paper.jobs import Job, run_row
from benchmarks.paper.results import Line, Result, markdown, times
from benchmarks.paper.rows import (
    binary_mnist,
    binary_mnist_best,
    cost,
    ensemble,
    figure1,
    inception,
)
from bnpass.errors import InputError
from bnpass.training import History, Row, TrainConfig


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(tmp_path, scale=1e-4, seeds=1, images=300, rates=1)


def outcome(accuracies: list[float], steps: int = 100) -> arms.Outcome:
    every = steps // len(accuracies)
    history = History([Row(every * (i + 1), 0, 0.1, 1.0, validation_loss=1.0,
                           validation={"accuracy": a}) for i, a in enumerate(accuracies)])
    return arms.Outcome("x", 0, 0.1, steps, accuracies[-1], accuracies[-1], (), history, 1.0, None)


def test_every_experiment_of_the_issue_has_a_row_with_its_time():
    found = rows()
    assert list(found) == ["binary-mnist", "binary-mnist-best", "deep-sigmoid",
                           "sigmoid-inception", "inception", "robustness", "figure1", "ensemble",
                           "cost"]
    assert sum(m.MINUTES for m in found.values()) <= 90


def test_first_step_with_an_accuracy():
    run = outcome([0.2, 0.5, 0.4, 0.9])
    assert [arms.steps_to(run, a) for a in (0.2, 0.45, 0.9, 0.95)] == [25, 50, 100, None]


def test_shortest_schedule_stops_at_the_first_success(ctx, monkeypatch):
    tried = []

    def fake(*_args, steps, **_options):
        tried.append(steps)
        return [outcome([min(0.9, steps / 1000)])]

    monkeypatch.setattr(arms, "train_seeds", fake)
    ratio, _ = arms.shortest(ctx, None, None, "row", full=10_000, target=0.5, lr=0.1,
                             ratios=(2, 40, 10, 20))
    assert ratio == 20
    assert tried == [250, 500]
    ratio, runs = arms.shortest(ctx, None, None, "row", full=10_000, target=0.99, lr=0.1,
                                ratios=(2, 10))
    assert ratio is None and len(runs) == 2


def test_grid_is_thinned_for_all_arms_alike(ctx):
    assert ctx.grid((1, 2, 3, 4, 5)) == (1,)
    ctx.rates = 2
    assert ctx.grid((1, 2, 3, 4, 5)) == (1, 5)
    ctx.rates = 0
    assert ctx.grid((1, 2, 3)) == (1, 2, 3)


def test_data_is_split_and_made_black_and_white(ctx):
    split = ctx.open("mnist", MODELS / "mnist_mlp.onnx", binary=True)
    assert [len(s) for s in (split.train, split.validation, split.test)] == [270, 30, 50]
    x, _ = split.train.take(np.arange(20))
    assert set(np.unique(x)) == {0, 1} and x.shape == (20, 1, 28, 28)
    with pytest.raises(InputError, match="fashion-mnist"):
        ctx.open("fashion-mnist", MODELS / "inception.onnx")


def test_sigmoids_instead_of_relus():
    path = MODELS / "inception.onnx"
    before, after = (onnx.load(path), nets.with_sigmoids(path))
    relus = [n.name for n in before.graph.node if n.op_type == "Relu"]
    assert relus == [n.name for n in after.graph.node if n.op_type == "Sigmoid"]


def test_an_arm_ends_as_a_folded_file(ctx):
    model = MODELS / "mnist_mlp.onnx"
    split = ctx.open("mnist", model)
    arm = arms.Arm("BN", model, True, TrainConfig(momentum=0.9), binary_mnist.SMALL)
    found = arms.train(ctx, arm, split, "row", steps=60, grid=(0.1,))
    assert found.test > 0.4
    assert [t[0] for t in found.trials] == [0.1]
    saved = onnx.load(ctx.out / "row" / "bn-60-seed0.onnx")
    assert not any(n.op_type == "BatchNormalization" for n in saved.graph.node)
    assert (ctx.out / "row" / "bn-60-seed0.csv").read_text().startswith("step,")


def test_a_diverged_arm_counts_as_nothing(ctx):
    model = MODELS / "mnist_mlp.onnx"
    split = ctx.open("mnist", model)
    arm = arms.Arm("plain", model, False, TrainConfig(momentum=0.9, loss="mse"))
    labels = split.train.y.astype(np.float32)[:, None] * np.full((1, 10), 1e18, np.float32)
    bad = replace(split, train=replace(split.train, y=labels), validation=replace(
        split.validation, y=labels))
    found = arms.train(ctx, arm, bad, "row", steps=30, lr=1e6)
    assert found.test == 0.0 and found.deploy is None


def test_figure_1_from_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--only", "figure1", "--quick", "--scale", "0.004", "-o", str(out)]) == 0
    assert "Trained 0.004 of the steps on 6000 training images: a" in capsys.readouterr().out
    document = json.loads((out / "table.json").read_text())
    lines = document["rows"][0]["lines"]
    assert len(lines) == len(figure1.STARTS)
    assert all(line["numbers"]["plain"][0] >= 0 and line["ok"] is None for line in lines)
    header, *lines = (out / "figure1" / "percentiles-bn-n-0-0-01.csv").read_text().splitlines()
    assert header == "step,value,p15,p50,p85"
    assert {row.split(",")[1] for row in lines} == {f"{figure1.VALUE}[{u}]" for u in range(10)}
    for name in ("figure1bc-n-0-0-01.png", "figure1bc-4-x-glorot.png"):
        assert (out / "figure1" / name).stat().st_size > 10_000


def test_rows_without_their_data_are_named_and_left_out(tmp_path, capsys):
    assert main(["--only", "ensemble", "--quick", "-o", str(tmp_path)]) == 0
    assert "left out: no folder with the IDX files of fashion-mnist" in capsys.readouterr().out
    assert main(["--only", "ensembel", "-o", str(tmp_path)]) == 2
    assert "no row ensembel" in capsys.readouterr().err


def test_a_smoke_test_judges_nothing(ctx, monkeypatch):
    monkeypatch.setattr(cost, "run", lambda _: [Line("a", "", "", "x", "2x", ok=True)])
    job = Job("cost", cost.__name__)
    assert run_row(ctx, job).lines[0].ok is None
    ctx.scale = 1.0
    assert run_row(ctx, job).lines[0].ok is True


def test_cost_measures_both_networks_in_turn(ctx, monkeypatch):
    monkeypatch.setattr(cost, "ROUNDS", 3)
    monkeypatch.setattr(cost, "NETS", {"mnist_mlp": 3})
    (line,) = cost.run(ctx)
    plain, bn = line.numbers["plain"], line.numbers["bn"]
    assert len(plain) == len(bn) == 3 and min(plain + bn) > 0
    ratios = [b / p for p, b in zip(plain, bn, strict=True)]
    assert line.numbers["ratio"] == sorted(ratios)[1]
    assert "1 threads" in line.experiment and "median of 3 pairs" in line.reached


def test_a_start_under_which_only_the_long_run_is_as_good(ctx, monkeypatch):
    """The plain network ends at 0.9; BN is at 0.91 after all steps, below 0.9 after fewer."""

    def fake(_ctx, arm, _split, _row, *, steps, **_options):
        return replace(outcome([0.91 if steps == 50_000 else 0.5], steps), label=arm.label)

    monkeypatch.setattr(binary_mnist, "train", fake)
    monkeypatch.setattr(arms, "train", fake)
    monkeypatch.setattr(binary_mnist, "train_seeds", lambda *_a, steps, **_o: [
        replace(outcome([0.9], steps), label="plain")])
    monkeypatch.setattr(Context, "open", lambda *_args, **_options: None)
    ctx.scale = 1.0
    (line,) = binary_mnist_best.run(ctx)
    assert line.numbers["ratio"] == 1.0 and line.ok is None
    assert [r[0]["steps"] for r in line.numbers["shorter"]] == [16667, 25000]
    assert (ctx.out / "binary-mnist-best" / "bn-4-x-glorot-in-both-arms.png").exists()


def test_table():
    lines = [Line("a", "1 %", "2 %", times(3.0), "2x", ok=True),
             Line("b", "1 %", "2 %", times(None), "2x", ok=False)]
    text = markdown([Result("r", lines, 7.0), Result("s", note="left out")], "Data: d.")
    assert "| a | 1 % | 2 % | 3.0x fewer steps | 2x (reached) |" in text
    assert "| b | 1 % | 2 % | not reached | 2x (not reached) |" in text
    assert "* r: 7 s" in text and "left out" in text
    assert times(39.9, 40.0).startswith(">= ")


def test_inception_compares_the_recipe_with_every_other_arm(ctx, monkeypatch):
    ends = {"LRN and Dropout": 0.70, "stripped": 0.78, "BN alone": 0.85, "BN and recipe": 0.88}
    lengths = []

    def fake(_ctx, arm, _split, _row, *, steps, lr=None, **_options):
        if lr is not None:
            lengths.append(steps)
        accuracy = ends[arm.label] - (0.0 if lr is None else 40 / steps)
        return replace(outcome([accuracy], steps), label=arm.label)

    monkeypatch.setattr(inception, "train", fake)
    monkeypatch.setattr(Context, "open", lambda *_args, **_options: None)
    ctx.scale = 1.0
    lines = inception.run(ctx)
    # 0.88 - 40 / steps reaches 0.70 at 300 steps, 0.78 at 400, and 0.85 not below 1,200.
    assert [line.numbers["ratio"] for line in lines] == [4.0, 3.0, 1.0]
    assert [line.ok for line in lines] == [True, True, None]
    assert lengths == [200, 300, 400, 600]
    assert (ctx.out / "inception" / "curves.png").exists()


def test_probabilities_of_large_logits():
    found = ensemble.probabilities(np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]]))
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.25, 0.75]])
