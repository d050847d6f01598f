"""Nonlinearities in torch: one row each, read by the importer and by the torch frontend alike.

What a row says is enough for both ways: which function an imported node calls, and which modules
and functions of torch are the ONNX operator. That it is a nonlinearity says the table of
operators (``bnpass.ir.operators``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bnpass.importer.functions import activation

Function = Callable[..., Any]


@dataclass(frozen=True)
class Activation:
    """One nonlinearity of a single value.

    Attributes:
        kind: the ONNX operator.
        modules: the torch modules that compute it.
        names: the torch functions and methods that compute it, without a trailing underscore.
        function: what an imported node calls, with its value and the attributes; None: that takes
            a choice, which a function in ``bnpass.importer.ops.activation`` makes.
        attributes: ONNX attributes in the order of the function's parameters, with their defaults.
        own: functions of ``bnpass.importer.functions`` that an imported node may call besides.
    """

    kind: str
    modules: tuple[type[nn.Module], ...] = ()
    names: tuple[str, ...] = ()
    function: Function | None = None
    attributes: tuple[tuple[str, float], ...] = ()
    own: tuple[Function, ...] = ()

    @property
    def calls(self) -> tuple[Function, ...]:
        """Every function of our own that stands for it in an imported module."""
        ours = self.function is not None and self.function.__module__ == activation.__name__
        return (*self.own, self.function) if ours and self.function else self.own


ACTIVATIONS = (
    Activation("Relu", (nn.ReLU,), ("relu",), F.relu),
    Activation("LeakyRelu", (nn.LeakyReLU,), ("leaky_relu",), F.leaky_relu, (("alpha", 0.01),)),
    Activation("Elu", (nn.ELU,), ("elu",), F.elu, (("alpha", 1.0),)),
    Activation("Selu", (nn.SELU,), ("selu",), own=(activation.selu,)),
    Activation("Celu", (nn.CELU,), ("celu",), F.celu, (("alpha", 1.0),)),
    Activation("Sigmoid", (nn.Sigmoid,), ("sigmoid",), torch.sigmoid),
    Activation("Tanh", (nn.Tanh,), ("tanh",), torch.tanh),
    Activation("HardSigmoid", (nn.Hardsigmoid,), ("hardsigmoid",), own=(activation.hard_sigmoid,)),
    Activation("HardSwish", (nn.Hardswish,), ("hardswish",), F.hardswish),
    Activation("Softplus", (nn.Softplus,), ("softplus",), F.softplus),
    Activation("Softsign", (nn.Softsign,), ("softsign",), F.softsign),
    Activation("Gelu", (nn.GELU,), ("gelu",)),
    Activation("Mish", (nn.Mish,), ("mish",), F.mish),
    Activation("Swish", (nn.SiLU,), ("silu",), own=(activation.swish,)),
    Activation(
        "Shrink",
        (nn.Hardshrink, nn.Softshrink),
        ("hardshrink", "softshrink"),
        activation.shrink,
        (("lambd", 0.5), ("bias", 0.0)),
    ),
)
