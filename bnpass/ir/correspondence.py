"""Which value of the new graph stands for which value of the old one, and through which map.

A fold moves numbers: behind a convolution that has taken a BatchNorm in, the value is not the old
one but a map of it, and behind an operator that is gone it has another name. A correspondence says
both, exactly, so that each edit can be checked on the smallest part of the graph around it.

The relation has a map on either side, ``old_map(old) = new_map(new)``, since neither side
determines the other where a scale is 0: a map sent backward gives new = m(old), one sent forward
old = m(new).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Graph, Op

Sides = tuple[Map | None, Map | None]
"""The maps on the old and on the new side; None is the identity."""


@dataclass(frozen=True, eq=False)
class Correspondence:
    """``old_map`` of the value ``old`` equals ``new_map`` of the value ``new``.

    Attributes:
        old: name of a value in the graph before the edits.
        new: name of the value that stands for it afterwards; of the same shape.
        old_map: a map on the old value, of its rank; None: the identity.
        new_map: a map on the new value, of its rank; None: the identity.
    """

    old: str
    new: str
    old_map: Map | None = None
    new_map: Map | None = None

    def of_old(self, array: np.ndarray) -> np.ndarray:
        """The old side of the relation, for the old value's numbers."""
        return array if self.old_map is None else self.old_map.of(array)

    def of_new(self, array: np.ndarray) -> np.ndarray:
        """The new side of the relation, for the new value's numbers."""
        return array if self.new_map is None else self.new_map.of(array)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the relation varies; empty where it is uniform."""
        maps = [m for m in (self.old_map, self.new_map) if m is not None]
        return tuple(sorted({axis for m in maps for axis in m.axes}))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the names, and which sides have a map."""
        sides = {"old_map": self.old_map, "new_map": self.new_map}
        return {
            "old": self.old,
            "new": self.new,
            "axes": list(self.axes),
            "maps": [name for name, m in sides.items() if m is not None],
        }

    def __str__(self) -> str:
        left = self.old if self.old_map is None else f"m({self.old})"
        right = self.new if self.new_map is None else f"m({self.new})"
        return f"{left} = {right}"


@dataclass(frozen=True, eq=False)
class Correspondences:
    """The correspondences of all values of one graph.

    Attributes:
        moved: those that are not "the same numbers under the same name", by old name.
        gone: old values that nothing stands for (between two Transposes that are both gone).
    """

    moved: Mapping[str, Correspondence] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    def of(self, old: str) -> Correspondence | None:
        """What stands for an old value; None where nothing does."""
        if old in self.gone:
            return None
        return self.moved.get(old) or Correspondence(old, old)

    @property
    def changed(self) -> frozenset[str]:
        """Old values whose name is gone or stands for other numbers."""
        return self.gone.union(self.moved)

    def then(self, later: Correspondences) -> Correspondences:
        """Those of two edits, one behind the other."""
        moved: dict[str, Correspondence] = {}
        gone = set(self.gone)
        for name in dict.fromkeys((*self.moved, *later.moved, *later.gone)):
            first = self.of(name)
            second = None if first is None else later.of(first.new)
            if first is None or second is None:
                gone.add(name)
                continue
            sides = composed((first.old_map, first.new_map), (second.old_map, second.new_map))
            if second.new != name or sides != (None, None):
                moved[name] = Correspondence(name, second.new, *sides)
        return Correspondences(moved, frozenset(gone))


def composed(first: Sides, second: Sides) -> Sides:
    """A(old) = B(mid) and C(mid) = D(new), with mid taken out.

    Nothing is divided, so that a scale of 0 does no harm: with scales a, b, c, d and shifts
    s, t, u, v, both times the other's scale, ``c*a*old + c*s = b*d*new + b*(v - u) + c*t``.
    """
    (a, b), (c, d) = first, second
    if b is None:
        return _after(c, a), d
    if c is None:
        return a, _after(b, d)
    a, d = a or Map.identity(b.rank), d or Map.identity(b.rank)
    return (
        Map(c.scale * a.scale, c.scale * a.shift),
        Map(b.scale * d.scale, b.scale * (d.shift - c.shift) + c.scale * b.shift),
    )


def _after(outer: Map | None, inner: Map | None) -> Map | None:
    if outer is None or inner is None:
        return inner if outer is None else outer
    return outer.after(inner)


class Relations:
    """How the value at every place of a graph relates to the original's while edits pile up.

    A place is a value's name in the graph as it was. Where the operator that makes it is gone, its
    place is taken by what that operator had read.
    """

    def __init__(self) -> None:
        self._sides: dict[str, Sides] = {}
        self.gone: set[str] = set()

    def move(self, value: str, now: Map | None = None, later: Map | None = None) -> None:
        """Another edit: ``now`` of what is there equals ``later`` of what will be there."""
        now, later = _none_if_identity(now), _none_if_identity(later)
        if now is None and later is None:
            return
        sides = self._sides.get(value)
        self._sides[value] = (now, later) if sides is None else composed(sides, (now, later))

    def correspondences(self, graph: Graph, removed: Iterable[tuple[Op, int]]) -> Correspondences:
        """The same with the names that values have once the operators named are gone."""
        names = names_after(graph, removed)
        moved = {
            value: Correspondence(
                value, names.get(value, value), *self._sides.get(value, (None, None))
            )
            for value in dict.fromkeys((*self._sides, *names))
            if value not in self.gone
        }
        return Correspondences(moved, frozenset(self.gone))


def _none_if_identity(m: Map | None) -> Map | None:
    return None if m is None or m.is_identity else m


def names_after(graph: Graph, removed: Iterable[tuple[Op, int]]) -> dict[str, str]:
    """The names of values once operators are gone, where they are not what they were.

    What an operator made is then what it read (input ``data``). A graph's output keeps its name:
    what it is then made of is called like it, but where that is an input, a constant or another
    output; an Identity stays in the operator's place there.
    """
    alias: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for op, data in sorted(removed, key=lambda pair: graph.order[pair[0].name]):
        source, result = alias.get(op.inputs[data], op.inputs[data]), op.outputs[0]
        if not graph.is_output(result):
            alias[result] = source
        elif may_rename(graph, source, renamed):
            renamed[source] = result
    final = {old: renamed.get(now, now) for old, now in alias.items()}
    return {**final, **renamed}


def may_rename(graph: Graph, value: str, renamed: Mapping[str, str]) -> bool:
    """Whether a value may take the name of an output that is the same from now on."""
    produced = graph.producer(value) is not None
    return produced and not graph.is_output(value) and value not in renamed
