"""Small torch modules, one a place where a BatchNorm can fold or must stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

BN1, BN2, BN3 = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
IMAGE = (2, 4, 8, 8)


@dataclass(frozen=True)
class Pattern:
    """One small module.

    Attributes:
        name: what it is, as dataflow.
        make: builds it; random numbers come from torch's generator.
        shape: of the input.
        stays: leaving the BatchNorm is the right answer.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    stays: bool = False


class Fn(nn.Module):
    """A module made of parts and a function of (self, input)."""

    def __init__(self, function: Callable[[Any, torch.Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self._function(self, x)


def conv(n: int = 4, m: int = 6, k: int = 3, **options: Any) -> nn.Module:
    return nn.Conv2d(n, m, k, **options)


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def seq(*makers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Built when it is asked for."""
    return lambda: nn.Sequential(*(make() for make in makers))


def _tied() -> nn.Module:
    a, b = conv(), conv()
    b.weight = a.weight
    return Fn(lambda s, x: s.n(s.a(x)) + torch.tanh(s.b(x)), a=a, b=b, n=BN2(6))


def _frozen_in_part() -> nn.Module:
    made = nn.Sequential(conv(), BN2(6)).eval()
    made[1].train()
    return made


def _functional() -> nn.Module:
    return Fn(
        lambda s, x: F.batch_norm(F.conv2d(x, s.w, s.c), s.n.running_mean, s.n.running_var,
                                  s.n.weight, s.n.bias, s.training),
        w=param(6, 4, 3, 3), c=param(6), n=BN2(6),
    )  # fmt: skip


def _recurrent() -> nn.Module:
    return Fn(lambda s, x: s.l(s.n(x.transpose(1, 2)).transpose(1, 2))[0], n=BN1(5),
              l=nn.LSTM(5, 4, batch_first=True))  # fmt: skip


PATTERNS = [
    # one layer in front
    Pattern("Conv2d, BN", seq(conv, lambda: BN2(6))),
    Pattern("Conv3d, BN", seq(lambda: nn.Conv3d(2, 4, 3), lambda: BN3(4)), (2, 2, 5, 5, 5)),
    Pattern("Conv2d reflect padding, BN",
            seq(lambda: conv(padding=1, padding_mode="reflect"), lambda: BN2(6))),
    Pattern("Conv2d, BN affine=False", seq(conv, lambda: BN2(6, affine=False))),
    Pattern("Conv2d, SyncBN", seq(conv, lambda: nn.SyncBatchNorm(6))),
    Pattern("Conv2d weight_norm, BN",
            seq(lambda: parametrizations.weight_norm(conv()), lambda: BN2(6))),
    Pattern("F.conv2d, F.batch_norm", _functional),
    Pattern("ConvTranspose2d 4 -> 6, BN", seq(lambda: nn.ConvTranspose2d(4, 6, 3), lambda: BN2(6))),
    Pattern("ConvTranspose2d 4 -> 4, BN", seq(lambda: nn.ConvTranspose2d(4, 4, 3), lambda: BN2(4))),
    Pattern("ConvTranspose2d groups=2, BN",
            seq(lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), lambda: BN2(6))),
    Pattern("Linear, BN", seq(lambda: nn.Linear(5, 6), lambda: BN1(6)), (3, 5)),
    Pattern("Linear, BN affine=False",
            seq(lambda: nn.Linear(5, 6), lambda: BN1(6, affine=False)), (3, 5)),
    Pattern("x @ W, BN", lambda: Fn(lambda s, x: s.n(x @ s.w), w=param(5, 6), n=BN1(6)), (3, 5)),
    Pattern("Linear on tokens, transpose, BN",
            lambda: Fn(lambda s, x: s.n(s.a(x).transpose(1, 2)), a=nn.Linear(5, 6), n=BN1(6)),
            (2, 7, 5)),
    Pattern("trap: Linear on (N, C, L), BN over C",
            seq(lambda: nn.Linear(5, 6), lambda: BN1(6)), (2, 6, 5), stays=True),
    # something between them
    Pattern("Conv2d, BN, BN", seq(conv, lambda: BN2(6), lambda: BN2(6))),
    Pattern("Conv2d, Dropout, BN", seq(conv, nn.Dropout, lambda: BN2(6))),
    Pattern("Conv2d, AvgPool2d, BN", seq(conv, lambda: nn.AvgPool2d(2), lambda: BN2(6))),
    Pattern("Conv2d, global pool, flatten, BN",
            seq(conv, lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten, lambda: BN1(6))),
    Pattern("Conv2d, PixelShuffle, BN",
            seq(lambda: conv(m=8), lambda: nn.PixelShuffle(2), lambda: BN2(2))),
    Pattern("Linear, view, BN (DCGAN)",
            lambda: Fn(lambda s, x: s.n(s.a(x).view(-1, 6, 2, 2)), a=nn.Linear(5, 24), n=BN2(6)),
            (3, 5)),
    Pattern("cat(Conv2d, Conv2d), BN",
            lambda: Fn(lambda s, x: s.n(torch.cat([s.a(x), s.b(x)], 1)), a=conv(), b=conv(m=2),
                       n=BN2(8))),
    Pattern("Conv2d + Conv2d, BN",
            lambda: Fn(lambda s, x: s.n(s.a(x) + s.b(x)), a=conv(), b=conv(), n=BN2(6))),
    Pattern("Conv2d, chunk, BN each",
            lambda: Fn(lambda s, x: tuple(n(v) for n, v in zip((s.n, s.m), s.a(x).chunk(2, 1),
                                                                strict=True)),
                       a=conv(), n=BN2(3), m=BN2(3))),
    # a layer behind
    Pattern("BN, Conv2d without padding", seq(lambda: BN2(4), conv)),
    Pattern("BN, Linear", seq(lambda: BN1(5), lambda: nn.Linear(5, 6)), (3, 5)),
    Pattern("BN, LSTM", _recurrent, (3, 6, 5)),
    Pattern("Conv2d, ReLU, BN, Conv2d", seq(conv, nn.ReLU, lambda: BN2(6), lambda: conv(6))),
    # sharing
    Pattern("one Conv2d called twice, two BN",
            lambda: Fn(lambda s, x: s.n(s.a(x)) + s.m(s.a(x + 1)), a=conv(), n=BN2(6), m=BN2(6))),
    Pattern("one Conv2d called twice, one BN",
            lambda: Fn(lambda s, x: s.n(s.a(x)) * torch.tanh(s.a(x + 1)), a=conv(), n=BN2(6))),
    Pattern("one weight in two Conv2d, one BN", _tied),
    Pattern("one BN called behind two Conv2d",
            lambda: Fn(lambda s, x: s.n(s.a(x)) * s.n(s.b(x)), a=conv(), b=conv(), n=BN2(6))),
    Pattern("trap: Conv2d that tanh reads too, BN",
            lambda: Fn(lambda s, x: s.n(y := s.a(x)) * torch.tanh(y), a=conv(), n=BN2(6)),
            stays=True),
    Pattern("trap: Conv2d, BN in train mode", _frozen_in_part, stays=True),
]  # fmt: skip
