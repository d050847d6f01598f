"""Which parameters are weights: what decays, and what is drawn anew."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_OWNERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.Bilinear,
           nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_WEIGHT_SECOND = {F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d,
                  torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
                  F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_PRODUCTS = {torch.matmul, operator.matmul, torch.mm, torch.bmm, torch.addmm, torch.einsum,
             F.embedding}


def weights_of(module: nn.Module) -> set[int]:
    """Identities of the parameters that are weights.

    The owner decides: the weight of a layer is one, whatever its sizes ((1, 5) of a single unit);
    so is what a traced network multiplies with as a matrix or a kernel. Elsewhere a parameter with
    two axes or more that are longer than 1 is one, and a vector, whatever its layout, is none.
    """
    found: set[int] = set()
    owned: set[int] = set()
    for part in module.modules():
        parameters = list(part.named_parameters(recurse=False))
        if isinstance(part, _OWNERS):
            found |= {id(p) for name, p in parameters if "bias" not in name}
            owned |= {id(p) for _, p in parameters}
    if isinstance(module, fx.GraphModule):
        found |= {id(p) for p in _multiplied(module)}
    found |= {id(p) for p in module.parameters()
              if id(p) not in owned and sum(size > 1 for size in p.shape) > 1}
    return found


def _multiplied(gm: fx.GraphModule) -> list[Tensor]:
    """Parameters that calls of functions take as a matrix or a kernel."""
    found = []
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        operands: list[object] = []
        if node.target in _WEIGHT_SECOND:
            operands = [node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)]
        elif node.target in _PRODUCTS:
            operands = [a for a in node.args if isinstance(a, fx.Node)]
            operands = operands[1:] if node.target is torch.addmm else operands
        for operand in operands:
            if isinstance(operand, fx.Node) and operand.op == "get_attr":
                value = attribute(gm, str(operand.target))
                found += [value] if value.ndim > 1 else []
    return found


def attribute(gm: nn.Module, path: str) -> Tensor:
    """A parameter or buffer by its path."""
    owner, _, name = path.rpartition(".")
    found = getattr(gm.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found
