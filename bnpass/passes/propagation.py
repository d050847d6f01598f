"""What one map would change, and the front of its walk through a graph."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from bnpass.ir.affine import Map
from bnpass.ir.graph import Op, Use
from bnpass.rules import Step


@dataclass
class Propagation:
    """What one map would change; nothing is changed until it is committed.

    Attributes:
        input_maps, output_maps: maps that operators' weights take in.
        constants: maps that single constant inputs take in.
        asked: backward: values that would hold m(what they hold), and m.
        carried: forward: values that hold m(what they would hold), and m.
        lost: values that would differ in another way than by a map along their channels.
        crossed: names of the operators that the map goes through or ends in.
        arrived: forward: the maps that reached a value where the walk was told to stop.
        joined: forward: results of other chains whose maps had to come along.
        adds: operators that the propagation costs.
    """

    input_maps: list[tuple[Op, Map]] = field(default_factory=list)
    output_maps: list[tuple[Op, Map]] = field(default_factory=list)
    constants: list[tuple[Op, int, Map]] = field(default_factory=list)
    asked: dict[str, Map] = field(default_factory=dict)
    carried: dict[str, Map] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    crossed: set[str] = field(default_factory=set)
    arrived: dict[str, Map] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    adds: int = 0

    @property
    def into(self) -> tuple[str, ...]:
        """Names of the operators that take something in."""
        names = [op.name for op, _ in (*self.input_maps, *self.output_maps)]
        names += [op.name for op, _, _ in self.constants]
        return tuple(names if len(names) < 2 else dict.fromkeys(names))

    def copy(self) -> Propagation:
        """An independent copy."""
        return Propagation(
            self.input_maps[:],
            self.output_maps[:],
            self.constants[:],
            dict(self.asked),
            dict(self.carried),
            set(self.lost),
            set(self.crossed),
            dict(self.arrived),
            set(self.joined),
            self.adds,
        )

    def take(self, op: Op, step: Step) -> None:
        """Note what a step changes of its operator."""
        if step.input_map is not None and not step.input_map.is_identity:
            self.input_maps.append((op, step.input_map))
        if step.output_map is not None and not step.output_map.is_identity:
            self.output_maps.append((op, step.output_map))
        for index, m in step.constants.items():
            if not m.is_identity:
                self.constants.append((op, index, m))
        for other, index, m in step.elsewhere:
            if not m.is_identity:
                self.constants.append((other, index, m))
        self.output_maps += [(other, m) for other, m in step.others if not m.is_identity]
        self.asked.update((value, m) for value, m in step.inside.items() if m is not None)
        self.lost.update(value for value, m in step.inside.items() if m is None)
        self.crossed.add(op.name)
        self.adds += step.adds


@dataclass
class Worklist:
    """The front of a walk: what readers ask of values, what values carry, operators to visit."""

    asks: dict[str, dict[Use, Map]] = field(default_factory=dict)
    carried: dict[str, Map] = field(default_factory=dict)
    heap: list[tuple[int, str]] = field(default_factory=list)
    queued: set[str] = field(default_factory=set)
    stops: frozenset[str] = frozenset()

    def copy(self) -> Worklist:
        """An independent copy."""
        asks = {value: dict(readers) for value, readers in self.asks.items()}
        return Worklist(asks, dict(self.carried), self.heap[:], set(self.queued), self.stops)

    def push(self, op: Op, priority: int) -> None:
        """Have an operator visited, once; the lowest priority first."""
        if op.name not in self.queued:
            self.queued.add(op.name)
            heapq.heappush(self.heap, (priority, op.name))

    def pop(self) -> str:
        """The name of the operator to visit next."""
        return heapq.heappop(self.heap)[1]
