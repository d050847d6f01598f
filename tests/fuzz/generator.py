"""Random graphs over the whole table of rules, the same for a seed whatever their type."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx

from tests.fuzz import layers, structure
from tests.fuzz.builder import LIMIT, Builder, Value

Maker = Callable[[Builder, Value], Value | None]

LAYERS: list[Maker] = [
    layers.conv, layers.conv, layers.conv_transpose, layers.gemm, layers.gemm, layers.matmul,
    layers.einsum, layers.recurrent,
]  # fmt: skip
MAPS: list[Maker] = [layers.batch_norm, layers.batch_norm, layers.arithmetic, layers.spelt_out]
STRUCTURE: list[Maker] = [
    structure.join, structure.join, structure.concat, structure.transpose, structure.reshape,
    structure.flatten, structure.squeeze, structure.depth, structure.tile, structure.split,
    structure.cut, structure.gather, structure.pool, structure.pool, structure.reduce,
    structure.pad, structure.gate, structure.broadcast_add, structure.resize, layers.identity,
    layers.normalisation,
]  # fmt: skip
NONLINEAR: list[Maker] = [layers.rectifier, layers.rectifier, layers.nonlinearity]

SHAPES = [(2, 4, 6, 6), (2, 4, 6, 6), (2, 3, 5, 4), (2, 8, 4), (2, 6), (2, 4, 3), (2, 4, 3, 3, 3)]


def generate(seed: int, *, dtype: Any = np.float32, steps: int = 14, maps: float = 0.3,
             nonlinear: float = 0.08) -> onnx.ModelProto:  # fmt: skip
    """A valid random model.

    Args:
        seed: decides everything but the type.
        dtype: of all values and weights.
        steps: how many pieces at most.
        maps, nonlinear: the shares of affine maps and of nonlinearities among the pieces.
    """
    rng = np.random.default_rng(seed)
    b = Builder(rng, dtype, symbolic=bool(rng.random() < 0.5))
    for _ in range(b.pick([1, 1, 2])):
        b.input(b.pick(SHAPES))
    current = b.values[0]
    for _ in range(b.between(4, steps)):
        if b.chance(0.15):
            current = b.pick(b.values)
        made = _maker(b, maps, nonlinear)(b, current)
        if made is not None and prod(made.shape) <= LIMIT:
            current = made
    if not b.nodes:
        layers.arithmetic(b, current)
    return b.model()


def _maker(b: Builder, maps: float, nonlinear: float) -> Maker:
    draw = b.rng.random()
    if draw < maps:
        return b.pick(MAPS)
    if draw < maps + nonlinear:
        return b.pick(NONLINEAR)
    return b.pick(LAYERS if b.chance(0.4) else STRUCTURE)
