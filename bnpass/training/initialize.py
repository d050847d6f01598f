"""New random weights for a network, fixed by a seed: what a comparison of initialisations needs."""

from __future__ import annotations

import math
import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from bnpass.errors import UsageError, close_matches
from bnpass.nn.norms import batch_norms
from bnpass.training.weights import attribute, weights_of

SCHEMES = ("glorot", "glorot_normal", "gaussian")
_WITH_BIAS = {F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d,
              torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
              F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_PRODUCTS = {torch.matmul, operator.matmul, torch.mm, torch.bmm}
_ADDITIONS = {torch.add, operator.add}


def initialize(
    gm: fx.GraphModule, scheme: str = "glorot", *, gain: float = 1.0, std: float = 0.01,
    seed: int = 0,
) -> fx.GraphModule:
    """Draw the weights anew, set biases to 0 and every BN back to the start; returns ``gm``.

    What a weight is :func:`bnpass.training.weights.weights_of` says; each has its own stream of
    random numbers, named by its path, so that a network with BN and one without start alike.

    Args:
        gm: the network, changed in place.
        scheme: ``"glorot"`` (uniform; Glorot & Bengio 2010), ``"glorot_normal"``, or ``"gaussian"``
            (normal with :attr:`std`: the small Gaussian of the paper's section 4.1).
        gain: factor on Glorot's weights (4 for a sigmoid).
        std: standard deviation of ``"gaussian"``.
        seed: of the draw.

    Raises:
        UsageError: an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"unknown initialisation {scheme!r}",
                         close_matches(scheme, SCHEMES) or f"choose {', '.join(SCHEMES)}")
    for norm in batch_norms(gm).values():
        norm.reset_parameters()  # type: ignore[operator]
    weights = weights_of(gm)
    with torch.no_grad():
        for name, parameter in gm.named_parameters():
            if id(parameter) in weights:
                _draw(parameter, scheme, gain, std, _generator(seed, name))
        for bias in _biases(gm):
            bias.zero_()
    return gm


def _generator(seed: int, name: str) -> torch.Generator:
    mixed = int.from_bytes(name.encode(), "little") % (2**61 - 1)
    return torch.Generator().manual_seed((mixed * 1_000_003 + seed) % 2**63)


def _draw(
    weight: nn.Parameter, scheme: str, gain: float, std: float, generator: torch.Generator
) -> None:
    drawn = torch.empty(weight.shape)
    field = math.prod(weight.shape[2:])
    # The sum of fan-in and fan-out is the same for either layout of a weight.
    scale = gain * math.sqrt(2 / (field * (weight.shape[0] + weight.shape[1])))
    if scheme == "glorot":
        drawn.uniform_(-math.sqrt(3) * scale, math.sqrt(3) * scale, generator=generator)
    else:
        drawn.normal_(0.0, std if scheme == "gaussian" else scale, generator=generator)
    weight.copy_(drawn)


def _biases(gm: fx.GraphModule) -> list[torch.Tensor]:
    """The biases of linear layers and convolutions, as modules or as function calls."""
    found: list[torch.Tensor] = []
    for node in gm.graph.nodes:
        if node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.bias is not None:
                found.append(module.bias)
        bias = _bias_of_call(node)
        if isinstance(bias, fx.Node) and bias.op == "get_attr":
            found.append(attribute(gm, str(bias.target)))
    return [bias for bias in found if sum(size > 1 for size in bias.shape) <= 1]


def _bias_of_call(node: fx.Node) -> object:
    """What a function call adds to a matrix product or a convolution, or ``None``."""
    if node.op != "call_function":
        return None
    if node.target in _WITH_BIAS:
        return node.kwargs.get("bias", node.args[2] if len(node.args) > 2 else None)
    if node.target is torch.addmm:
        return node.args[0]
    if node.target in _ADDITIONS and len(node.args) == 2:
        products = [isinstance(a, fx.Node) and a.target in _PRODUCTS for a in node.args]
        if sum(products) == 1:
            return node.args[products.index(False)]
    return None
