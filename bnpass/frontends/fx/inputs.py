"""Example inputs: what ``forward`` takes, as positional and keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnpass.errors import InputError
from bnpass.frontends.fx.structure import map_tensors, tensors_in
from bnpass.nn.calls import REMEMBERED, notes_of


@dataclass(frozen=True)
class Example:
    """Arguments of one call of ``forward``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def changed(self, change: Any) -> Example:
        """The same with every tensor replaced."""
        kwargs = {k: map_tensors(v, change) for k, v in self.kwargs.items()}
        return Example(tuple(map_tensors(v, change) for v in self.args), kwargs)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in order."""
        return list(tensors_in((*self.args, *self.kwargs.values())))

    def one_more(self) -> tuple[Example | None, int]:
        """The inputs with one sample more, and the batch size; None where they share none."""
        sizes = {x.shape[0] for x in self.tensors if x.dim()}
        if len(sizes) != 1 or 0 in sizes:
            return None, 0
        grown = self.changed(lambda x: torch.cat([x, x[:1]]) if x.dim() else x)
        return grown, sizes.pop()

    def other_sizes(self) -> list[tuple[str, Example]]:
        """The inputs with other sizes of single axes, of which a forward may or may not take each.

        One sample, more samples, and every other axis twice as long, alike in all tensors.
        """
        if sum(t.numel() for t in self.tensors) > _MOST:
            return []
        rank = max((t.dim() for t in self.tensors), default=0)
        found = [("a batch of 1", self.changed(lambda t: t[:1] if t.dim() else t))]
        found.append(("a batch 3 times as large", self._repeated(0, 3)))
        found += [(f"axis {i} twice as long", self._repeated(i, 2)) for i in range(1, rank)]
        return found

    def _repeated(self, axis: int, times: int) -> Example:
        return self.changed(lambda t: torch.cat([t] * times, axis) if t.dim() > axis else t)


_MOST = 1 << 20  # entries of all inputs together up to which other sizes are run


def example_of(inputs: Any) -> Example:
    """A tensor alone is the only input; a mapping holds keyword arguments."""
    if isinstance(inputs, Example):
        return inputs
    if isinstance(inputs, Mapping):
        return Example((), dict(inputs))
    if isinstance(inputs, tuple | list):
        return Example(tuple(inputs), {})
    return Example((inputs,), {})


def remember(module: nn.Module, example: Example) -> None:
    """Note the example inputs, of floating tensors the shape alone; it pickles without bnpass."""
    args = tuple(_noted(value) for value in example.args)
    notes_of(module)[REMEMBERED] = args, {k: _noted(v) for k, v in example.kwargs.items()}


def _noted(value: Any) -> tuple[str, Any]:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return "zeros", (tuple(value.shape), value.dtype, value.device)
    return "as it is", map_tensors(value, lambda t: t.detach().clone())


def is_remembered(module: nn.Module) -> bool:
    """Whether example inputs are noted."""
    return REMEMBERED in notes_of(module)


def recalled(module: nn.Module) -> Example:
    """The example inputs noted, with zeros for floating tensors.

    Raises:
        InputError: nothing is noted.
    """
    held = notes_of(module).get(REMEMBERED)
    if held is None:
        raise InputError(
            "the shapes of the inputs are not known",
            "pass example_inputs, a tuple of tensors as forward takes them",
        )
    args, kwargs = held
    return Example(tuple(map(_made, args)), {k: _made(v) for k, v in kwargs.items()})


def _made(noted: tuple[str, Any]) -> Any:
    how, value = noted
    if how != "zeros":
        return value
    shape, dtype, device = value
    return torch.zeros(shape, dtype=dtype, device=device)
