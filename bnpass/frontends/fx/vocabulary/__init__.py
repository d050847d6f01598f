"""The rows of the vocabulary: what torch's modules and functions are called in ONNX.

Each file holds a family. A row is a function with the parameters of the torch function that it
stands for; importing this package fills the tables of ``bnpass.frontends.fx.targets``.
"""

from __future__ import annotations

from bnpass.frontends.fx.vocabulary import (
    activations,
    arithmetic,
    imported,
    layers,
    norms,
    padding,
    pools,
    recurrent,
    reductions,
    slices,
    structure,
)

__all__ = [
    "activations",
    "arithmetic",
    "imported",
    "layers",
    "norms",
    "padding",
    "pools",
    "recurrent",
    "reductions",
    "slices",
    "structure",
]
