"""The trainer's SGD takes torch's steps, bit by bit, and holds torch's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bnpass.training.sgd import SGD  # noqa: E402

KINDS = {
    "momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True},
    "plain": {"momentum": 0.0},
}  # fmt: skip


def parameters() -> list[Any]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (3,), (2, 3, 3, 3))]


def groups(params: list[Any]) -> list[dict[str, Any]]:
    return [{"params": params[::2], "weight_decay": 0.1}, {"params": params[1:2]}]


def walk(optimizer: Any, params: list[Any], steps: range, skipped: int = -1) -> None:
    for step in steps:
        optimizer.zero_grad()
        for index, p in enumerate(params):
            if step != skipped or index != 1:
                seeded = torch.Generator().manual_seed(step * 9 + index)
                p.grad = torch.randn(p.shape, generator=seeded).to(p.dtype)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skipped", [-1, 0, 2])
def test_steps_are_those_of_torch(kind: str, skipped: int) -> None:
    """Also where a parameter has no gradient in one step, the first one included."""
    ours, theirs = parameters(), parameters()
    first = SGD(groups(ours), lr=0.1, fused=True, **KINDS[kind])
    second = torch.optim.SGD(groups(theirs), lr=0.1, fused=True, **KINDS[kind])
    walk(first, ours, range(6), skipped)
    walk(second, theirs, range(6), skipped)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    held, wanted = first.state_dict(), second.state_dict()
    assert held.keys() == wanted.keys()
    for index, state in wanted["state"].items():
        for name, value in state.items():
            assert torch.equal(held["state"][index][name], value)


def test_parameters_of_two_types_in_one_group() -> None:
    types = (torch.float32, torch.float64, torch.float32)
    ours, theirs = (
        [torch.nn.Parameter(p.detach().to(t)) for p, t in zip(parameters(), types, strict=True)]
        for _ in range(2)
    )
    walk(SGD(ours, lr=0.1, fused=True, momentum=0.9), ours, range(4))
    walk(torch.optim.SGD(theirs, lr=0.1, fused=True, momentum=0.9), theirs, range(4))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_state_that_is_loaded_is_gone_on_from() -> None:
    params = parameters()
    whole = SGD(groups(params), lr=0.1, fused=True, momentum=0.9)
    walk(whole, params, range(3))
    state, values = copy.deepcopy(whole.state_dict()), [p.detach().clone() for p in params]
    walk(whole, params, range(3, 6))
    again = [torch.nn.Parameter(v.clone()) for v in values]
    other = SGD(groups(again), lr=0.1, fused=True, momentum=0.9)
    other.load_state_dict(copy.deepcopy(state))
    walk(other, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    back = SGD(groups(again), lr=0.1, fused=True, momentum=0.9)
    walk(back, again, range(2))  # its own momentum goes with the one that is loaded
    with torch.no_grad():
        for p, v in zip(again, values, strict=True):
            p.copy_(v)
    back.load_state_dict(state)
    walk(back, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


def test_gradients_are_forgotten_or_zeroed() -> None:
    params = parameters()
    optimizer = SGD(params, lr=0.1, fused=True)
    params[0].grad = torch.ones_like(params[0])
    optimizer.zero_grad(set_to_none=False)
    assert not params[0].grad.any()
    optimizer.zero_grad()
    assert params[0].grad is None
