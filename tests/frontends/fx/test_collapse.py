"""Linear branches of torch modules become single layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bnpass
from bnpass.errors import RefusedError


def trained(module: nn.Module) -> nn.Module:
    """The module in eval mode with statistics as after a training."""
    torch.manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module.eval()


class Branches(nn.Module):
    """RepVGG's block: 3x3, 1x1 and the identity, each with its BN."""

    def __init__(self, a: int, b: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.wide = nn.Conv2d(a, b, 3, stride, 1, groups=groups, bias=False)
        self.wide_bn = nn.BatchNorm2d(b)
        self.point = nn.Conv2d(a, b, 1, stride, groups=groups, bias=False)
        self.point_bn = nn.BatchNorm2d(b)
        self.same_bn = nn.BatchNorm2d(a) if a == b and stride == 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.wide_bn(self.wide(x)) + self.point_bn(self.point(x))
        return torch.relu(y if self.same_bn is None else y + self.same_bn(x))


def kinds(module: nn.Module, *types: type[nn.Module]) -> int:
    return sum(isinstance(m, types) for m in module.modules())


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_blocks_become_convolutions():
    net = trained(nn.Sequential(Branches(3, 8, 2), Branches(8, 8), Branches(8, 8, groups=8)))
    x = torch.randn(2, 3, 12, 11)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    done = bnpass.collapse(net, (x,))
    assert kinds(done, nn.Conv2d) == 3 and kinds(done, nn.BatchNorm2d) == 0
    assert [m.groups for m in done.modules() if isinstance(m, nn.Conv2d)] == [1, 1, 8]
    with torch.no_grad():
        close(net(x), done(x))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_uneven_padding_gets_its_zeros_in_front():
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 2)
            self.b = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.a(nn.functional.pad(x, (0, 1, 0, 1))) + self.b(x))

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 2, padding="same")
            self.b = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.a(x) + self.b(x))

    x = torch.randn(2, 4, 6, 7)
    for net in (Uneven().eval(), Same().eval()):
        done = bnpass.collapse(net, (x,))
        with torch.no_grad():
            close(net(x), done(x))


def test_an_adapter_beside_a_linear_layer():
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.down = nn.Linear(16, 12), nn.Linear(16, 2, bias=False)
            self.up = nn.Linear(2, 12, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.base(x) + 0.5 * self.up(self.down(x)))

    net, x = Adapted().eval(), torch.randn(3, 5, 16)
    done = bnpass.collapse(net, (x,))
    assert kinds(done, nn.Linear) == 1
    with torch.no_grad():
        close(net(x), done(x))


def test_what_the_fold_does_then():
    net = trained(nn.Sequential(Branches(3, 8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    x = torch.randn(2, 3, 8, 8)
    done = bnpass.collapse(net, (x,), norms_only=True)
    assert kinds(done, nn.BatchNorm2d) == 1
    with torch.no_grad():
        close(net(x), done(x))


def test_assertions_inside_of_a_region_do_not_keep_it():
    class Checked(Branches):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.point(x)
            torch._assert(y.ndim == 4, "four axes")
            return torch.relu(self.wide_bn(self.wide(x)) + self.point_bn(y))

    net, x = trained(Checked(3, 8)), torch.randn(2, 3, 8, 8)
    done = bnpass.collapse(net, (x,))
    assert kinds(done, nn.Conv2d) == 1
    with torch.no_grad():
        close(net(x), done(x))


class ConvNorm(nn.Module):
    """A convolution, its BN and an activation that is none, as libraries put them together."""

    def __init__(self, a: int, b: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(b)
        self.act = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        torch._assert(y.ndim == 4, f"expected 4 axes, got {y.shape}")
        return self.act(self.bn(y))


class Overparametrised(nn.Module):
    """MobileOne's block: several equal branches, a 1x1 beside a wider kernel, and the identity."""

    def __init__(self, a: int, b: int, kernel: int, stride: int, groups: int, how: str) -> None:
        super().__init__()
        same = a == b and stride == 1
        self.identity = nn.BatchNorm2d(a) if same else None
        self.branches = nn.ModuleList(ConvNorm(a, b, kernel, stride, groups) for _ in range(3))
        self.scale = ConvNorm(a, b, 1, stride, groups) if kernel > 1 else None
        self.drop, self.how = nn.Dropout(0.1), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [m(x) for m in (self.identity, self.scale, *self.branches) if m is not None]
        return torch.relu(self.drop(SUMS[self.how](parts)))


def by_loop(parts: list[torch.Tensor]) -> torch.Tensor:
    total: Any = 0
    for part in parts:
        total += part
    return total


def by_stack(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[-1]
    for part in parts[:-1]:
        total = torch.add(part, total)
    return total


SUMS = {"loop": by_loop, "sum": sum, "add": by_stack}


@pytest.mark.parametrize("how", SUMS)
def test_blocks_of_many_equal_branches(how):
    net = trained(nn.Sequential(
        Overparametrised(3, 8, 3, 2, 1, how),
        Overparametrised(8, 8, 3, 1, 8, how),
        Overparametrised(8, 12, 1, 1, 1, how),
        Overparametrised(12, 12, 3, 2, 12, how),
        Overparametrised(12, 12, 1, 1, 1, how),
    ))  # fmt: skip
    x = torch.randn(2, 3, 17, 16)
    done = bnpass.collapse(net, (x,))
    assert kinds(done, nn.Conv2d) == 5 and kinds(done, nn.BatchNorm2d) == 0
    groups = [m.groups for m in done.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(groups) == [1, 1, 1, 8, 12]
    with torch.no_grad():
        close(net(x), done(x))


def test_a_plan_changes_nothing():
    net = trained(Branches(4, 4))
    plan = bnpass.collapse(net, (torch.randn(2, 4, 8, 8),), plan_only=True)
    (region,) = plan.collapsed
    assert region.into == "wide" and len(region.norms) == 3


def test_train_mode_is_refused():
    with pytest.raises(RefusedError, match="train mode"):
        bnpass.collapse(Branches(4, 4), (torch.randn(2, 4, 8, 8),))
