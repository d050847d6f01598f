"""The tensors in what people hand to ``forward`` and get back: nested, in dicts, in dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

_DEPTH = 8


def tensors_in(value: Any, depth: int = _DEPTH) -> Iterator[torch.Tensor]:
    """The tensors in a structure, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth:
        for one in _children(value):
            yield from tensors_in(one, depth - 1)


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if isinstance(value, type | torch.nn.Module) or not hasattr(value, "__dict__"):
        return []
    if type(value).__module__ == "builtins" or callable(value):
        return []
    return list(vars(value).values())


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any], depth: int = _DEPTH) -> Any:
    """The same structure with every tensor replaced; what holds none is passed on as it is."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if not depth or next(tensors_in(value, depth), None) is None:
        return value

    def inner(one: Any) -> Any:
        return map_tensors(one, change, depth - 1)

    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(inner, value))
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(inner(v) for v in value)
    made = copy.copy(value)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, inner(getattr(value, field.name)))
    if isinstance(value, dict):
        for key, one in value.items():
            made[key] = inner(one)
    elif not dataclasses.is_dataclass(value):
        for key, one in vars(value).items():
            object.__setattr__(made, key, inner(one))
    return made
