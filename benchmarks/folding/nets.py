"""Models that are timed: the chain whose length grows, and a few nets people deploy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from benchmarks.net import Net


def chain(blocks: int) -> onnx.ModelProto:
    """``blocks`` times Conv (8 channels, 3x3) - BN - Relu: 2.7 kB a block."""
    n = Net(("N", 8, 8, 8))
    value = "x"
    for _ in range(blocks):
        value = n.op("Relu", n.bn(n.conv(value, 8, 8), 8))
    return n.model(value)


def resnet() -> onnx.ModelProto:
    """A residual net: Conv - BN, added to its skip, as ResNet-18 in small."""
    n = Net(("N", 3, 32, 32))
    y = n.op("Relu", n.bn(n.conv("x", 3, 32), 32))
    for width, last, stride in ((32, 32, 1), (64, 32, 2), (128, 64, 2)):
        for block in range(2):
            start, step = (last, stride) if block == 0 else (width, 1)
            z = n.op("Relu", n.bn(n.conv(y, start, width, strides=[step] * 2), width))
            z = n.bn(n.conv(z, width, width), width)
            if start != width:
                y = n.bn(n.conv(y, start, width, kernel=1, strides=[step] * 2), width)
            y = n.op("Relu", n.op("Add", y, z))
    return n.model(_head(n, y, 128))


def resnet50(size: int = 224) -> onnx.ModelProto:
    """ResNet-50 at full width, 102 MB: bottlenecks of Conv - BN, ``size`` pixels a side."""
    n = Net(("N", 3, size, size))
    y = n.op("Relu", n.bn(n.conv("x", 3, 64, kernel=7, strides=[2, 2]), 64))
    y, last = n.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = [stride if block == 0 else 1] * 2
            z = n.op("Relu", n.bn(n.conv(y, last, width, kernel=1), width))
            z = n.op("Relu", n.bn(n.conv(z, width, width, strides=step), width))
            z = n.bn(n.conv(z, width, 4 * width, kernel=1), 4 * width)
            if block == 0:
                y = n.bn(n.conv(y, last, 4 * width, kernel=1, strides=step), 4 * width)
            y, last = n.op("Relu", n.op("Add", y, z)), 4 * width
    y = n.op("Flatten", n.op("GlobalAveragePool", y))
    return n.model(n.gemm(y, last, 1000))


def mobilenet() -> onnx.ModelProto:
    """Inverted residuals: 1x1, depthwise 3x3, 1x1, each with BN, as MobileNetV2 in small."""
    n = Net(("N", 3, 32, 32))
    y = n.op("Clip", n.bn(n.conv("x", 3, 16), 16), n.const(0.0), n.const(6.0))
    for last, width in ((16, 16), (16, 24), (24, 24), (24, 32)):
        z = n.op("Clip", n.bn(n.conv(y, last, 6 * last, kernel=1), 6 * last), n.const(0.0),
                 n.const(6.0))
        z = n.op("Clip", n.bn(n.conv(z, 6 * last, 6 * last, group=6 * last), 6 * last),
                 n.const(0.0), n.const(6.0))
        z = n.bn(n.conv(z, 6 * last, width, kernel=1), width)
        y = n.op("Add", y, z) if last == width else z
    return n.model(_head(n, y, 32))


def densenet() -> onnx.ModelProto:
    """Pre-activation blocks (BN - Relu - Conv) whose outputs are concatenated, gammas positive."""
    n = Net(("N", 3, 32, 32))
    y, width = n.conv("x", 3, 24), 24
    for _ in range(6):
        z = n.op("Relu", n.bn(y, width, positive=True))
        z = n.op("Relu", n.bn(n.conv(z, width, 48, kernel=1, bias=False), 48, positive=True))
        y, width = n.op("Concat", y, n.conv(z, 48, 12, bias=False), axis=1), width + 12
    y = n.op("Relu", n.bn(y, width, positive=True))
    return n.model(_head(n, y, width))


def mlp() -> onnx.ModelProto:
    """MatMul - Add - BN - Relu, as Keras and older exporters write dense layers."""
    n = Net(("N", 256))
    y, last = "x", 256
    for width in (512, 512, 512, 256):
        y = n.op("Add", n.matmul(y, last, width), n.const(n.channels(width)))
        y, last = n.op("Relu", n.bn(y, width)), width
    return n.model(n.gemm(y, last, 10))


def generator() -> onnx.ModelProto:
    """A GAN's generator: Gemm - Reshape - BN, then ConvTranspose - BN, as DCGAN in small."""
    n = Net(("N", 64))
    y = n.op("Relu", n.bn(n.reshape(n.gemm("x", 64, 128 * 16), -1, 128, 4, 4), 128))
    for last, width in ((128, 64), (64, 32), (32, 16)):
        y = n.conv(y, last, width, kernel=4, kind="ConvTranspose", strides=[2, 2], pads=[1] * 4)
        y = n.op("Relu", n.bn(y, width))
    return n.model(n.op("Tanh", n.conv(y, 16, 3)))


def branched() -> onnx.ModelProto:
    """Blocks of three branches, 3x3, 1x1 and the identity, each with BN, as RepVGG has them."""
    n = Net(("N", 3, 32, 32))
    y = n.op("Relu", n.bn(n.conv("x", 3, 48), 48))
    for _ in range(6):
        wide = n.bn(n.conv(y, 48, 48, bias=False), 48)
        point = n.bn(n.conv(y, 48, 48, kernel=1, bias=False), 48)
        y = n.op("Relu", n.op("Add", n.op("Add", wide, point), n.bn(y, 48)))
    return n.model(_head(n, y, 48))


def quantised() -> onnx.ModelProto:
    """Eight layers as quantisation-aware training exports them: QDQ, Conv, BN, Relu."""
    n = Net(("N", 64, 28, 28))
    y = "x"
    for layer in range(8):
        middle = 0 if layer else 128  # behind a Relu nothing is negative
        step, zero = n.const(np.array(0.03)), n.const(np.array(middle, np.uint8))
        y = n.op("DequantizeLinear", n.op("QuantizeLinear", y, step, zero), step, zero)
        codes = n.const(n.rng.integers(-127, 128, (64, 64, 3, 3)).astype(np.int8))
        w = n.op("DequantizeLinear", codes, n.const(n.rng.uniform(3e-4, 8e-4, 64)),
                 n.const(np.zeros(64, np.int8)), axis=0)
        conv = n.op("Conv", y, w, kernel_shape=(3, 3), pads=[1] * 4)
        y = n.op("Relu", n.bn(conv, 64))
    step, zero = n.const(np.array(0.03)), n.const(np.array(0, np.uint8))
    return n.model(n.op("DequantizeLinear", n.op("QuantizeLinear", y, step, zero), step, zero))


def _head(n: Net, y: str, width: int) -> str:
    return n.gemm(n.op("Flatten", n.op("GlobalAveragePool", y)), width, 10)


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet": resnet, "mobilenet": mobilenet, "densenet (pre-activation)": densenet,
    "mlp (MatMul+Add)": mlp, "gan generator": generator,
    "branches (RepVGG)": branched, "quantisation-aware": quantised,
}
