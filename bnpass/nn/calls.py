"""How a torch module is called with a batch: what it takes, on which device, in which types."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from bnpass.data.protocol import Arguments, Slot, Takes, kind_of
from bnpass.data.trees import mapped

log = logging.getLogger("bnpass.training")

Tensor = torch.Tensor
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


REMEMBERED = "bnpass_example"
"""Attribute of a module that bnpass has edited, or key of a graph's meta: its example inputs."""


def notes_of(module: nn.Module) -> dict[str, Any]:
    """Where a module's copies keep what bnpass notes."""
    return module.meta if isinstance(module, fx.GraphModule) else vars(module)


def _example(module: nn.Module) -> tuple[Any, ...]:
    """The kinds of the example's positional arguments; floating tensors are noted by shape."""
    args, _ = notes_of(module).get(REMEMBERED, ((), {}))
    return tuple((len(v[0]), True) if how == "zeros" else kind_of(v) for how, v in args)


def takes_of(module: nn.Module) -> Takes:
    """What a module takes: the arguments of its ``forward``, or a graph's placeholders.

    A module that was imported from an ONNX model knows its inputs by their ONNX names, too.
    """
    if isinstance(module, fx.GraphModule):
        return _takes_of_graph(module)
    slots, more, any_name = [], False, False
    for name, found in inspect.signature(module.forward).parameters.items():
        more = more or found.kind is found.VAR_POSITIONAL
        any_name = any_name or found.kind is found.VAR_KEYWORD
        if found.kind in (*_POSITIONAL, found.KEYWORD_ONLY):
            keyword = found.kind is not found.POSITIONAL_ONLY
            slots.append(Slot(name, found.default is found.empty, keyword))
    return Takes(tuple(slots), more, any_name, _example(module))


def _takes_of_graph(gm: fx.GraphModule) -> Takes:
    known = gm.meta.get("bnpass", {}).get("inputs", ())
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
    names = list(known) if len(known) == len(nodes) else [str(n.target) for n in nodes]
    plain = [(n, str(n.target).lstrip("*"), also) for n, also in zip(nodes, names, strict=True)
             if not str(n.target).startswith("*")]
    return Takes(
        tuple(Slot(name, not node.args, also=(also,) if also != name else ())
              for node, name, also in plain),
        any(str(n.target).startswith("*") and not str(n.target).startswith("**") for n in nodes),
        any(str(n.target).startswith("**") for n in nodes),
        _example(gm),
    )


class Feeder:
    """Turns the inputs of batches into tensors that a network takes.

    Floating point numbers get the network's own type where it has one, and numpy's arrays become
    tensors; integers stay what they are unless :meth:`settle` finds that they have to be floats.

    Args:
        module: the network.
        device: where the tensors go.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device, self.dtype = device, float_type(module)
        self.floats_only = False
        self._said: set[torch.dtype] = set()

    def __call__(self, call: Arguments) -> Arguments:
        """The inputs as tensors on the device, in the network's types."""
        mask = None if call.mask is None else as_tensor(call.mask).to(self.device) != 0
        return Arguments(mapped(call.args, self.tensor), mapped(call.kwargs, self.tensor), mask)

    def tensor(self, value: Any) -> Tensor:
        """One array as such a tensor."""
        found = as_tensor(value).to(self.device, non_blocking=True)
        if self.dtype is None or found.dtype == self.dtype or found.is_complex():
            return found
        if not found.is_floating_point() and not self.floats_only:
            return found
        if found.dtype not in self._said:
            self._said.add(found.dtype)
            log.info("inputs of %s are cast to the network's %s", _plain(found.dtype),
                     _plain(self.dtype))
        return found.to(self.dtype)

    def settle(self, run: Callable[[Arguments], object], example: Arguments) -> None:
        """Find out, by running the network once, whether it wants integers as floats."""
        try:
            run(self(example))
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            tensors = [t for t in _tensors(self(example)) if not t.is_floating_point()]
            if not tensors or self.dtype is None:
                raise
            self.floats_only = True
            try:
                run(self(example))
                return
            except (RuntimeError, ValueError, TypeError, NotImplementedError):
                self.floats_only = False
            raise


def as_tensor(value: Any) -> Tensor:
    """An array as a tensor that shares its memory where it may be written to."""
    if isinstance(value, Tensor):
        return value
    found = np.asarray(value)
    if found.dtype.name == "bfloat16":
        return torch.from_numpy(found.astype(np.float32)).bfloat16()
    if found.dtype.byteorder == ">":
        found = found.astype(found.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(found) if found.flags.writeable else found.copy())


def float_type(module: nn.Module) -> torch.dtype | None:
    """The floating type of a network's parameters (or buffers), or None where there are several."""
    held: Iterator[Tensor] = module.parameters()
    found = {p.dtype for p in held if p.is_floating_point()}
    found = found or {b.dtype for b in module.buffers() if b.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def device_of(module: nn.Module) -> torch.device:
    """Where a network's parameters (or buffers) are."""
    held: Tensor | None = next(module.parameters(), None)
    held = held if held is not None else next(module.buffers(), None)
    return held.device if held is not None else torch.device("cpu")


def _tensors(call: Arguments) -> list[Tensor]:
    found: list[Tensor] = []
    mapped((call.args, call.kwargs), found.append)
    return found


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
