"""Small architectures for 14x14 images, with Batch Normalization where their authors put it.

Each is a function of ``norm``: channels and dimensions -> module. With ``nothing`` it is the same
network without BN, and with the same weights for the same seed, as BN draws no random numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[..., nn.Module]

CLASSES = 10
STAGES = ((12, 1), (12, 1), (12, 1), (24, 2), (24, 1), (24, 1), (48, 2), (48, 1), (48, 1))
"""Width and stride of a residual network's blocks."""


def published(channels: int, dims: int = 2) -> nn.Module:
    """Batch Normalization."""
    return {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dims](channels)


def nothing(*_: int) -> nn.Module:
    """No normalisation."""
    return nn.Identity()


def conv(n: int, m: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, but for its stride."""
    return nn.Conv2d(n, m, k, stride, k // 2, groups=groups)


def head(n: int) -> nn.Sequential:
    """Global average and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, CLASSES))


def vgg(norm: Norm) -> nn.Module:
    """VGG-like (arXiv:1409.1556): six convolutions."""
    layers: list[nn.Module] = []
    n = 1
    for width in (12, 12, 24, 24, 48, 48):
        layers += [conv(n, width), norm(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if len(layers) in (6, 13) else []
        n = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * n, 48), nn.ReLU(),
                         nn.Linear(48, CLASSES))  # fmt: skip


def mlp(norm: Norm) -> nn.Module:
    """Six layers of 64 sigmoids."""
    layers: list[nn.Module] = [nn.Flatten()]
    n = 196
    for _ in range(6):
        layers += [nn.Linear(n, 64), norm(64, 1), nn.Sigmoid()]
        n = 64
    return nn.Sequential(*layers, nn.Linear(n, CLASSES))


class Residual(nn.Module):
    """A basic block (arXiv:1512.03385); with ``project`` its skip is a convolution, too."""

    def __init__(self, n: int, m: int, stride: int, norm: Norm, *, project: bool) -> None:
        super().__init__()
        self.main = nn.Sequential(conv(n, m, 3, stride), norm(m), nn.ReLU(), conv(m, m), norm(m))
        self.skip = nn.Sequential(conv(n, m, 1, stride), norm(m)) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.skip(x))


def _resnet(norm: Norm, *, all_projected: bool) -> nn.Module:
    blocks: list[nn.Module] = [conv(1, 12), norm(12), nn.ReLU()]
    n = 12
    for m, stride in STAGES:
        blocks.append(Residual(n, m, stride, norm, project=all_projected or n != m))
        n = m
    return nn.Sequential(*blocks, head(n))


def resnet(norm: Norm) -> nn.Module:
    """ResNet-like: identity skips where the widths agree."""
    return _resnet(norm, all_projected=False)


def resnet_projected(norm: Norm) -> nn.Module:
    """The same with a projection in every block (option C of the paper)."""
    return _resnet(norm, all_projected=True)


class PreActivation(nn.Module):
    """BN, ReLU, convolution, twice (arXiv:1603.05027)."""

    def __init__(self, n: int, m: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.start = nn.Sequential(norm(n), nn.ReLU())
        self.main = nn.Sequential(conv(n, m, 3, stride), norm(m), nn.ReLU(), conv(m, m))
        self.skip = conv(n, m, 1, stride) if n != m else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.start(x)
        return self.main(y) + (x if self.skip is None else self.skip(y))


def preactivation(norm: Norm) -> nn.Module:
    """Pre-activation ResNet-like."""
    blocks: list[nn.Module] = [conv(1, 12)]
    n = 12
    for m, stride in STAGES:
        blocks.append(PreActivation(n, m, stride, norm))
        n = m
    return nn.Sequential(*blocks, norm(n), nn.ReLU(), head(n))


class Inverted(nn.Module):
    """An inverted bottleneck with a linear end (arXiv:1801.04381)."""

    def __init__(self, n: int, m: int, stride: int, norm: Norm) -> None:
        super().__init__()
        wide = 4 * n
        self.main = nn.Sequential(
            conv(n, wide, 1), norm(wide), nn.ReLU6(), conv(wide, wide, 3, stride, groups=wide),
            norm(wide), nn.ReLU6(), conv(wide, m, 1), norm(m),
        )  # fmt: skip
        self.adds = stride == 1 and n == m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x) if self.adds else self.main(x)


def mobilenet_v2(norm: Norm) -> nn.Module:
    """MobileNetV2-like."""
    sizes = ((8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 16, 2), (16, 16, 1), (16, 16, 1))
    blocks = [Inverted(*size, norm) for size in sizes]
    return nn.Sequential(conv(1, 8), norm(8), nn.ReLU6(), *blocks, conv(16, 48, 1), norm(48),
                         nn.ReLU6(), head(48))  # fmt: skip


class Branches(nn.Module):
    """A block of Inception (arXiv:1409.4842): 1x1, 3x3, double 3x3, pool."""

    def __init__(self, n: int, norm: Norm) -> None:
        super().__init__()

        def layer(a: int, b: int, k: int) -> nn.Sequential:
            return nn.Sequential(conv(a, b, k), norm(b), nn.ReLU())

        self.ways = nn.ModuleList([
            layer(n, 8, 1),
            nn.Sequential(layer(n, 8, 1), layer(8, 12, 3)),
            nn.Sequential(layer(n, 8, 1), layer(8, 12, 3), layer(12, 12, 3)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), layer(n, 8, 1)),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([way(x) for way in self.ways], 1)


def inception(norm: Norm) -> nn.Module:
    """Inception-like: three blocks."""
    return nn.Sequential(conv(1, 16), norm(16), nn.ReLU(), Branches(16, norm), Branches(40, norm),
                         nn.MaxPool2d(2), Branches(40, norm), head(40))  # fmt: skip


class Dense(nn.Module):
    """Layers that each read all before them (arXiv:1608.06993)."""

    def __init__(self, n: int, count: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(norm(n + i * growth), nn.ReLU(), conv(n + i * growth, growth))
            for i in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet(norm: Norm) -> nn.Module:
    """DenseNet-like: two blocks and a transition."""
    return nn.Sequential(conv(1, 12), Dense(12, 4, 8, norm), norm(44), nn.ReLU(), conv(44, 24, 1),
                         nn.AvgPool2d(2), Dense(24, 4, 8, norm), norm(56), nn.ReLU(),
                         head(56))  # fmt: skip


class Squeeze(nn.Module):
    """Squeeze and excite (arXiv:1709.01507) behind a residual branch."""

    def __init__(self, n: int, norm: Norm) -> None:
        super().__init__()
        self.main = nn.Sequential(conv(n, n), norm(n), nn.SiLU(), conv(n, n), norm(n))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, n // 4, 1), nn.ReLU(),
                                  nn.Conv2d(n // 4, n, 1), nn.Sigmoid())  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        return F.silu(x + y * self.gate(y))


def squeeze_excite(norm: Norm) -> nn.Module:
    """SE-ResNet-like with SiLU."""
    return nn.Sequential(conv(1, 16), norm(16), nn.SiLU(), Squeeze(16, norm), nn.MaxPool2d(2),
                         Squeeze(16, norm), conv(16, 32), norm(32), nn.SiLU(), Squeeze(32, norm),
                         head(32))  # fmt: skip


class UNet(nn.Module):
    """U-Net-like (arXiv:1505.04597) with a classifier behind it."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()

        def double(n: int, m: int) -> nn.Sequential:
            return nn.Sequential(conv(n, m), norm(m), nn.ReLU(), conv(m, m), norm(m), nn.ReLU())

        self.down, self.bottom, self.up = double(1, 12), double(12, 24), double(24, 12)
        self.rise = nn.ConvTranspose2d(24, 12, 2, 2)
        self.head = head(12)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x)
        b = self.bottom(F.max_pool2d(a, 2))
        return self.head(self.up(torch.cat([a, self.rise(b)], 1)))


def discriminator(norm: Norm) -> nn.Module:
    """DCGAN's discriminator (arXiv:1511.06434) as a classifier; no BN behind its first layer."""
    return nn.Sequential(
        conv(1, 16, 3, 2), nn.LeakyReLU(0.2), conv(16, 32, 3, 2), norm(32), nn.LeakyReLU(0.2),
        conv(32, 64, 3, 2), norm(64), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64 * 4, CLASSES),
    )  # fmt: skip


class Channels(nn.Module):
    """LayerNorm over the channels of (N, C, H, W)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NextBlock(nn.Module):
    """A block of ConvNeXt (arXiv:2201.03545), which keeps its LayerNorm."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.main = nn.Sequential(conv(n, n, 7, groups=n), Channels(n), conv(n, 4 * n, 1),
                                  nn.GELU(), conv(4 * n, n, 1))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


def convnext(_: Norm) -> nn.Module:
    """ConvNeXt-like: published without BN."""
    return nn.Sequential(nn.Conv2d(1, 16, 2, 2), Channels(16), *(NextBlock(16) for _ in range(6)),
                         head(16))  # fmt: skip


class Attention(nn.Module):
    """A pre-norm block of a vision transformer (arXiv:2010.11929), which keeps its LayerNorm."""

    def __init__(self, n: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.one, self.two = nn.LayerNorm(n), nn.LayerNorm(n)
        self.qkv, self.out = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.wide, self.back = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, n = x.shape
        parts = self.qkv(self.one(x)).reshape(batch, tokens, 3, self.heads, n // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, n)
        x = x + self.out(mixed)
        return x + self.back(F.gelu(self.wide(self.two(x))))


class ViT(nn.Module):
    """A vision transformer on 2x2 patches: published without BN."""

    def __init__(self, n: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, n, 2, 2)
        self.place = nn.Parameter(torch.randn(1, 49, n) * 0.02)
        self.blocks = nn.Sequential(*(Attention(n) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(n), nn.Linear(n, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def vit(_: Norm) -> nn.Module:
    """ViT-like."""
    return ViT()


NETS: dict[str, Callable[[Norm], nn.Module]] = {
    "VGG-like": vgg, "MLP, sigmoid": mlp, "ResNet-like": resnet,
    "ResNet-like, all projected": resnet_projected, "pre-activation ResNet": preactivation,
    "MobileNetV2-like": mobilenet_v2, "Inception-like": inception, "DenseNet-like": densenet,
    "SE-ResNet-like, SiLU": squeeze_excite, "U-Net": UNet, "discriminator": discriminator,
    "ConvNeXt-like (LayerNorm)": convnext, "ViT-like (LayerNorm)": vit,
}  # fmt: skip
"""All of them by name; those with LayerNorm have no published BN."""
