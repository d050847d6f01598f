"""Small networks of the common families, and how to export and run them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = Callable[[int], Tensor]


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class SqueezeExcite(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.bn = nn.BatchNorm2d(c)
        self.down, self.up = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn(self.depthwise(x)))
        gate = torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return x + y * gate


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        near = F.interpolate(b, scale_factor=2.0, mode="nearest")[:, :8]
        return self.out(torch.cat([a, self.up(b) + near], 1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(16, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 4, 3, padding=1))
            for c in (4, 8, 12)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.head = nn.Embedding(50, 8), nn.Conv1d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(self.table(x).transpose(1, 2))).amax(2))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(5, 7, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8)
        self.tokens, self.head = nn.Linear(4, 4), nn.Linear(8, 3)
        self.channels = nn.Sequential(
            nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(x)).mean(1))


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.depthwise, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))) * self.scale
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.position = nn.Parameter(torch.randn(1, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weight = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        return self.out((weight @ v).transpose(1, 2).reshape(n, t, c))


class VisionTransformer(nn.Module):
    """A class token in front of the patches, fused attention, a head on the token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + y.transpose(1, 2).reshape(n, t, c))[:, 0])


class Transformer(nn.Module):
    """torch's own encoder layer, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.mask)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(50, 8), nn.LSTM(8, 6, bidirectional=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lstm(self.table(x).transpose(0, 1))[0]
        return self.head(y).transpose(0, 1).log_softmax(2)


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8)


def vectors(n: int) -> Tensor:
    return torch.randn(n, 10)


def steps(n: int) -> Tensor:
    return torch.randn(n, 4, 5)


def _sequential(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


NETS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "vgg": (
        _sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(),
            nn.Dropout(), nn.Linear(16, 5),
        ), images),
    "resnet": (
        _sequential(
            nn.Conv2d(3, 8, 3), Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 5),
        ), images),
    "mobilenet": (
        _sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Hardswish(),
            nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 6, 1),
            nn.Hardsigmoid(), nn.Flatten(), nn.Linear(6, 4),
        ), images),
    "densenet": (Dense, images),
    "efficientnet": (
        _sequential(nn.Conv2d(3, 8, 3), SqueezeExcite(8), nn.Flatten(), nn.Linear(288, 4)), images),
    "unet": (UNet, images),
    "conv3d": (
        _sequential(
            nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ELU(), nn.MaxPool3d(2),
            nn.ConvTranspose3d(4, 2, 2), nn.PReLU(2),
        ), lambda n: torch.randn(n, 2, 6, 6, 6)),
    "text": (Text, lambda n: torch.randint(0, 50, (n, 9))),
    "lstm": (lambda: Recurrent("LSTM"), steps),
    "gru": (lambda: Recurrent("GRU"), steps),
    "rnn": (lambda: Recurrent("RNN"), steps),
    "mixer": (Mixer, images),
    "convnext": (ConvNext, images),
    "attention": (Attention, lambda n: torch.randn(n, 6, 8)),
    "vit": (VisionTransformer, images),
    "transformer": (Transformer, lambda n: torch.randn(n, 6, 8)),
    "tagger": (Tagger, lambda n: torch.randint(0, 50, (n, 9))),
    "mlp": (
        _sequential(
            nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Sigmoid(), nn.Linear(20, 20, bias=False),
            nn.Softplus(), nn.GroupNorm(4, 20), nn.Linear(20, 3),
        ), vectors),
    "activations": (
        _sequential(
            nn.Linear(10, 10), nn.SELU(), nn.CELU(0.7), nn.Mish(), nn.Softsign(),
            nn.LeakyReLU(0.2), nn.Hardtanh(), nn.Tanh(), nn.LogSoftmax(1),
        ), vectors),
    "style": (
        _sequential(
            nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReflectionPad2d(1),
            nn.Upsample(scale_factor=2), nn.PixelShuffle(2), nn.LocalResponseNorm(3),
            nn.AvgPool2d(3, 2, 1),
        ), images),
}  # fmt: skip


def net(name: str) -> tuple[nn.Module, Inputs]:
    """A network in eval mode with random statistics, and a maker of inputs."""
    torch.manual_seed(0)
    make, inputs = NETS[name]
    module = make().eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module, inputs


def export(module: nn.Module, x: Tensor, opset: int, *, dynamo: bool, free: bool) -> Any:
    """An ONNX model by one of torch's two exporters, with a free batch or a fixed one."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("N", min=2)},) if free else None
            program = torch.onnx.export(
                module, (x,), dynamo=True, opset_version=opset, dynamic_shapes=shapes,
                optimize=False, verbose=False,
            )  # fmt: skip
            assert program is not None
            return program.model_proto
        file = io.BytesIO()
        axes = {"in": {0: "N"}} if free else None
        torch.onnx.export(
            module, (x,), file, dynamo=False, opset_version=opset, input_names=["in"],
            dynamic_axes=axes, training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def ort_run(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """What onnxruntime computes with its optimizations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    outputs: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
    return outputs


def relative(a: Tensor, b: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(a.detach().numpy() - b).max() / (np.abs(b).max() + 1e-9))


def take_one_step(gm: torch.fx.GraphModule, x: Tensor, *, freeze: bool = False) -> None:
    """One step of SGD; every parameter whose gradient is not zero has to move.

    Args:
        freeze: the statistics stay as they are (eval mode), for a batch of one.
    """
    before = {path: p.detach().clone() for path, p in gm.named_parameters()}
    y = gm.train(not freeze)(x)
    (y * torch.randn_like(y)).sum().backward()
    grads = {path: p.grad for path, p in gm.named_parameters()}
    assert all(g is not None for g in grads.values())
    largest = max(float(g.abs().max()) for g in grads.values())
    rate = 0.05 / max(1.0, largest)
    torch.optim.SGD(gm.parameters(), lr=rate).step()
    for path, p in gm.named_parameters():
        seen = rate * grads[path].abs() > 1e-6 * before[path].abs()  # what rounding does not hide
        noise = grads[path].abs().max() < 1e-6 * largest  # a bias in front of a normalisation
        assert noise or not seen.any() or not torch.equal(before[path], p), path
