"""Reading and writing the arguments of a node by the names of the called function's parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from bnpass.frontends.fx.call import TensorSlot
from bnpass.frontends.fx.targets import function_handler, parameters


def _place(node: fx.Node, name: str) -> tuple[int | None, str]:
    """(position, keyword) of a parameter."""
    if name.startswith("*"):
        return int(name[1:]), ""
    keyword = name
    if name == "x":  # the rows' name for torch's first parameter
        keyword = "self" if "self" in node.kwargs else "input"
    if keyword in node.kwargs:
        return None, keyword
    handler = function_handler(node)
    names = parameters(handler) if handler is not None else ()
    return (names.index(name) if name in names else None), keyword


def argument(node: fx.Node, name: str) -> Any:
    """What a node passes for a parameter; None where it is left out."""
    if ":" in name:
        held, _, number = name.partition(":")
        return argument(node, held)[int(number)]
    position, keyword = _place(node, name)
    if keyword in node.kwargs:
        return node.kwargs[keyword]
    if position is not None and position < len(node.args):
        return node.args[position]
    return None


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Let a node pass another value for a parameter."""
    if ":" in name:  # one element of a list
        held, _, number = name.partition(":")
        items = list(argument(node, held))
        items[int(number)] = value
        set_argument(node, held, items)
        return
    position, keyword = _place(node, name)
    if position is not None and position < len(node.args):
        node.update_arg(position, value)
    elif position is not None and position == len(node.args):
        node.args = (*node.args, value)
    else:
        node.update_kwarg(keyword, value)


def data_argument(node: fx.Node, slot: TensorSlot | None) -> fx.Node:
    """The node that an operator passes on when it is removed."""
    value = None
    if slot is not None and not slot.module:
        value = argument(node, slot.name)
    if not isinstance(value, fx.Node):
        value = node.args[0] if node.args else next(iter(node.kwargs.values()))
    assert isinstance(value, fx.Node)
    return value


def as_tensor(array: Any, like: torch.Tensor) -> torch.Tensor:
    """An array in the type and on the device of another tensor, rounded once."""
    own = np.array(array) if isinstance(array, np.ndarray) else array  # torch wants it writable
    return torch.as_tensor(own).to(dtype=like.dtype, device=like.device)
