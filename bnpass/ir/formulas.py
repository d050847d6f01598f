"""What elementwise operators compute, in numpy: a function of (attributes, inputs...)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Formula = Callable[..., np.ndarray]
"""(attributes, one array an input) -> the result; a missing input at the end is left out."""

Attributes = Mapping[str, Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


def plain(function: Callable[..., Any]) -> Formula:
    """The formula of an operator without attributes that matter."""

    def formula(attributes: Attributes, *inputs: np.ndarray) -> np.ndarray:
        del attributes
        return np.asarray(function(*inputs))

    return formula


def _clip(
    x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> np.ndarray:
    return x if low is high is None else np.clip(x, low, high)


def hard_sigmoid(attributes: Attributes, x: np.ndarray) -> np.ndarray:
    """ONNX HardSigmoid: clip(alpha x + beta, 0, 1)."""
    alpha, beta = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    return np.clip(alpha * x + beta, 0, 1)


ERF = plain(_erf)
SIGMOID = plain(sigmoid)
CLIP = plain(_clip)
SAME = plain(lambda x: x)
SOFTPLUS = plain(lambda x: np.logaddexp(x, 0.0))
RELU = plain(lambda x: np.maximum(x, 0))
MAX = plain(lambda *values: np.maximum.reduce(values))
MIN = plain(lambda *values: np.minimum.reduce(values))
