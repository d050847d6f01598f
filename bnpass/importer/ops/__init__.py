"""The table of operators: importing this package fills it."""

from bnpass.importer.ops import (
    activation,
    attention,
    conv,
    elementwise,
    indexing,
    linear,
    norm,
    pool,
    recurrent,
    reduce,
    resize,
    shape,
    typing,
)

__all__ = [
    "activation",
    "attention",
    "conv",
    "elementwise",
    "indexing",
    "linear",
    "norm",
    "pool",
    "recurrent",
    "reduce",
    "resize",
    "shape",
    "typing",
]
