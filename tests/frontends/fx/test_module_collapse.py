"""A fold of a user's module collapses trained branches where their block joins them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import bnpass


def randomised(net: nn.Module) -> nn.Module:
    """With statistics and parameters as after training, in eval mode and float64."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    return net.double().eval()


def fused(n: int, m: int, k: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n, m, k, stride, k // 2, bias=False), nn.BatchNorm2d(m))


class Block(nn.Module):
    """Three branches, as RepVGG has them."""

    def __init__(self, n: int, stride: int = 1) -> None:
        super().__init__()
        self.wide, self.point = fused(n, n, 3, stride), fused(n, n, 1, stride)
        self.identity = nn.BatchNorm2d(n) if stride == 1 else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + self.point(x)
        if self.identity is not None:
            y = y + self.identity(x)
        return self.act(y)


class Net(nn.Module):
    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(4, s) for s in strides)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


X = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def convolutions(net: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in net.modules())


def assert_equal(net: nn.Module, other: nn.Module, x: Tensor = X) -> None:
    torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)


def test_blocks_become_one_convolution_each():
    net = randomised(Net(1, 2, 1))
    given = copy.deepcopy(net)
    folded = bnpass.fold(net, (X,))
    assert (norms(folded), convolutions(folded)) == (0, 3)
    assert type(folded) is Net
    assert_equal(net, folded)
    assert_equal(net, folded, torch.randn(2, 4, 5, 9, dtype=torch.float64))
    assert_equal(given, net)
    assert norms(net) == norms(given)


def test_the_result_pickles():
    folded = bnpass.fold(randomised(Net(1)), (X,))
    assert_equal(folded, pickle.loads(pickle.dumps(folded)))
    assert_equal(folded, copy.deepcopy(folded))


def test_none_leaves_branches():
    net = randomised(Net(1))
    folded = bnpass.fold(net, (X,), collapse="none")
    assert convolutions(folded) == 2
    assert_equal(net, folded)


def test_the_plan_says_collapsed():
    plan = bnpass.fold(randomised(Net(1)), (X,), plan_only=True)
    assert [e.how for e in plan.entries] == ["collapsed"] * 3
    assert {e.node for e in plan.entries} == {"blocks.0.wide.1", "blocks.0.point.1",
                                              "blocks.0.identity"}  # fmt: skip


def test_only_and_skip():
    net = randomised(Net(1, 1))
    folded = bnpass.fold(net, (X,), skip=("blocks.1.identity",))
    assert norms(folded) == 1
    assert_equal(net, folded)


def test_a_region_that_is_the_whole_module():
    net = randomised(Block(4))
    folded = bnpass.fold(net, (X,))
    assert (norms(folded), convolutions(folded)) == (0, 1)
    assert_equal(net, folded)


class Nested(nn.Module):
    """Branches of branches: the outer module's argument is that of an inner one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = fused(4, 4, 3), Inner()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x) + self.second(x=x))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = fused(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def test_nested_branches_go_in_the_outermost_forward():
    net = randomised(Nested())
    folded = bnpass.fold(net, (X,))
    assert (norms(folded), convolutions(folded)) == (0, 1)
    assert_equal(net, folded)


def test_a_hook_on_a_branch_keeps_it():
    net = randomised(Net(1))
    seen: list[torch.Size] = []
    net.blocks[0].point.register_forward_hook(lambda m, a, y: seen.append(y.shape))
    folded = bnpass.fold(net, (X,))
    assert_equal(net, folded)
    seen.clear()
    folded(X)
    assert seen == [(3, 4, 8, 8)]


class Twice(nn.Module):
    """One block called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


def test_a_block_that_is_called_twice_stays_right():
    net = randomised(Twice())
    assert_equal(net, bnpass.fold(net, (X,)))


class Watched(Block):
    """Its training mode does something else: no graph can hold both."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + self.point(x) + self.identity(x)
        return self.act(y + torch.randn_like(y) if self.training else y)


def test_a_forward_that_cannot_be_a_graph_keeps_its_branches():
    net = randomised(Watched(4))
    folded = bnpass.fold(net, (X,))
    assert type(folded) is Watched
    assert convolutions(folded) == 2
    assert_equal(net, folded)


class Split(nn.Module):
    """A chain: 1x1 in front of 3x3, in a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), fused(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)) + x)


def test_a_chain_inside_of_a_sum():
    net = randomised(Split())
    folded = bnpass.fold(net, (X,))
    assert (norms(folded), convolutions(folded)) == (0, 1)
    assert_equal(net, folded)


@pytest.mark.parametrize("mode", ["bn", "none"])
def test_a_graph_module_collapses_as_well(mode):
    net = torch.fx.symbolic_trace(randomised(Net(1, 1)))
    folded = bnpass.fold(net, (X,), collapse=mode)
    assert convolutions(folded) == (2 if mode == "bn" else 4)
    assert_equal(net, folded)
