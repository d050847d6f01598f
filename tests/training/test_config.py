from __future__ import annotations

import json
import math

import pytest

from bnpass.errors import UsageError
from bnpass.training import TrainConfig, paper_recipe
from bnpass.training.optimizers import make_optimizer, parameter_groups
from bnpass.training.schedules import learning_rate
from tests.training.nets import convnet, mlp


def rates(total: int = 90, **settings) -> list[float]:
    config = TrainConfig(lr=1.0, **settings)
    return [learning_rate(config, step, total) for step in range(total)]


def test_constant_and_step() -> None:
    assert rates(schedule="constant") == [1.0] * 90
    assert rates(schedule="step") == pytest.approx([1.0] * 30 + [0.1] * 30 + [0.01] * 30)
    slow = rates(schedule="step", decay_every=20, decay_factor=0.5)
    assert slow[19:21] == [1.0, 0.5]
    assert slow[-1] == 0.5**4


def test_cosine_falls_from_one_to_almost_nothing() -> None:
    values = rates(schedule="cosine")
    assert values[0] == 1
    assert values[45] == pytest.approx(0.5)
    assert 0 < values[-1] < 0.001
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warmup_rises_linearly(schedule: str) -> None:
    values = rates(schedule=schedule, warmup=10)
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10] == pytest.approx(1.0)


def test_onecycle_goes_up_and_down_once() -> None:
    values = rates(schedule="onecycle")
    top = values.index(max(values))
    assert top == 26
    assert max(values) == pytest.approx(1.0)
    assert values[0] == pytest.approx(0.04)
    assert values[-1] == pytest.approx(4e-6)
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)


def test_paper_recipe() -> None:
    plain = TrainConfig(lr=0.045, weight_decay=1e-4, schedule="step", decay_every=600,
                        decay_factor=0.94, steps=6000)
    recipe = paper_recipe(plain)
    assert recipe.lr == pytest.approx(0.225)
    assert recipe.weight_decay == pytest.approx(2e-5)
    assert recipe.decay_every == 100
    assert recipe.decay_factor == 0.94
    assert not recipe.dropout
    assert recipe.steps == plain.steps


def test_paper_recipe_of_a_run_in_epochs_decays_over_the_run() -> None:
    recipe = paper_recipe(TrainConfig(lr=0.2, epochs=5))
    values = [learning_rate(recipe, step, 6000) for step in range(6000)]
    assert values[0] == pytest.approx(1.0)
    assert values[99] == values[0] > values[100]
    assert values[-1] == pytest.approx(0.94**59)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adm"}, "unknown optimizer"),
        ({"schedule": "cos"}, "unknown schedule"),
        ({"loss": "mso"}, "unknown loss"),
        ({"lr": 0}, "learning rate 0"),
        ({"lr": math.nan}, "learning rate nan"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"steps": -1}, "steps -1"),
        ({"epochs": 0}, "neither steps nor epochs"),
        ({"momentum": 1.0}, "momentum 1.0"),
    ],
)
def test_impossible_settings(settings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**settings)


def test_settings_are_json_and_epochs_become_steps() -> None:
    config = TrainConfig(watch=("a",), epochs=1.5, batch_size=10)
    assert TrainConfig(**json.loads(json.dumps(config.to_dict()))).lr == config.lr
    assert config.total_steps(105) == 15
    assert config.total_steps(3) == 2


def test_no_decay_on_gamma_beta_and_biases() -> None:
    gm = convnet()
    decayed, rest = parameter_groups(gm, TrainConfig(weight_decay=0.1))
    assert [p.ndim for p in decayed["params"]] == [4, 4, 2]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert len(rest["params"]) == 5
    (one,) = parameter_groups(gm, TrainConfig(weight_decay=0.1, decay_all=True))
    assert len(one["params"]) == 8


def test_optimizers() -> None:
    sgd = make_optimizer(mlp(), TrainConfig(nesterov=True, momentum=0.8))
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.8
    adam = make_optimizer(mlp(), TrainConfig(optimizer="adamw", momentum=0.8))
    assert adam.defaults["betas"] == (0.8, 0.999)
