"""Tensors of a torch module that several operators read: what copies of them take, and ties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from bnpass.frontends.fx.read import TracedModel
from bnpass.ir.graph import Op
from bnpass.ir.weights import NewWeights
from bnpass.passes import growth
from bnpass.passes.growth import Room
from bnpass.passes.sites import InsertPlan

_SMALL = 1 << 20  # bytes by which any module may grow

Holders = list[tuple[nn.Module, str]]
"""Modules with the name under which each of them holds one tensor."""


def room_of(module: nn.Module, most: float) -> Room:
    """Of a module that has not grown yet; it may become ``most`` times as large."""
    sizes = {
        (t.device, t.data_ptr() or id(t)): t.numel() * t.element_size()
        for t in (*module.parameters(), *module.buffers())
    }
    return Room(sum(sizes.values()), most, small=_SMALL, option="max_growth=")


def copies(reading: TracedModel, planned: Sequence[tuple[Op, NewWeights]]) -> Counter[str]:
    """Bytes of copies that new weights need, by the operator that wants one of its own.

    One copy for all operators that want the same; where every reader wants another weight, one of
    them takes the place of the old one.
    """
    readers, found = _readers(reading), Counter[str]()
    wanted: dict[Hashable, list[tuple[np.ndarray, str, int]]] = {}
    uses: Counter[Hashable] = Counter()
    for op, new in planned:
        for index, array in new.constants.items():
            held = _stored(reading, op.input(index))
            if held is None or readers[held[0]] < 2:
                continue
            uses[held[0]] += 1
            known = wanted.setdefault(held[0], [])
            if not any(np.array_equal(array, other) for other, _, _ in known):
                known.append((array, op.name, held[1]))
    for key, known in wanted.items():
        free = 1 if uses[key] == readers[key] else 0
        found.update({name: nbytes for _, name, nbytes in known[free:]})
    return found


def without_growth(reading: TracedModel, plan: InsertPlan, room: Room) -> InsertPlan:
    """See :func:`bnpass.passes.growth.without_growth`."""
    return growth.without_growth(
        plan, reading.graph, room, lambda name: _stored(reading, name), _readers(reading)
    )


def _readers(reading: TracedModel) -> Counter[Hashable]:
    """How often each tensor is read, by its identity."""
    held = (
        _stored(reading, name) for op in reading.graph.ops.values() for name in op.inputs if name
    )
    return Counter(pair[0] for pair in held if pair is not None)


def _stored(reading: TracedModel, name: str) -> tuple[Hashable, int] | None:
    """(identity, bytes) of the parameter or buffer that a constant is; None where it is none."""
    if reading.graph.constant(name) is None:
        return None
    held: Any = reading.gm
    for part in name.split("."):
        held = getattr(held, part, None)
    return (id(held), held.numel() * held.element_size()) if torch.is_tensor(held) else None


def ties(module: nn.Module) -> list[Holders]:
    """The parameters that several modules hold."""
    found: dict[int, Holders] = {}
    for one in module.modules():
        for name, tensor in one._parameters.items():
            if tensor is not None:
                found.setdefault(id(tensor), []).append((one, name))
    return [holders for holders in found.values() if len(holders) > 1]


def tie_again(module: nn.Module, tied: Sequence[Holders]) -> None:
    """Let those hold one parameter again that did, where an edit gave each the same numbers."""
    there = set(module.modules())
    for holders in tied:
        kept: list[nn.Parameter] = []
        for one, name in holders:
            tensor = one._parameters.get(name) if one in there else None
            if tensor is None:
                continue
            alike = (k for k in kept if k.dtype == tensor.dtype and torch.equal(k, tensor))
            same = next(alike, None)
            if same is None:
                kept.append(tensor)
            else:
                one._parameters[name] = same

