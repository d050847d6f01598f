"""The table of operators: importing this package fills it."""

from bnpass.importer.ops import (
    activation,
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
