"""What became of each region, and the answer to question 1 that they make together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FACTOR = 6.0
"""How many times the rounding of the new weights an entry may be off."""

MEASURED_FACTOR = 24.0
"""The same where the rounding is not bounded but measured by moving the weights at random."""


@dataclass(frozen=True)
class Proof:
    """What became of one region.

    Attributes:
        nodes: the original's nodes in it.
        into: the result's nodes in it.
        value: the original's value that it makes.
        ratio: the largest difference, in units of what rounding explains.
        difference: that difference.
        channel: the place along the second axis where it is; None for a vector.
        limit: what the ratio may be.
        reason: why the region could not be evaluated; empty if it was.
    """

    nodes: tuple[str, ...]
    into: tuple[str, ...]
    value: str
    ratio: float = 0.0
    difference: float = 0.0
    channel: int | None = None
    limit: float = FACTOR
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was evaluated, and is right."""
        return not self.reason and self.ratio <= self.limit

    @property
    def node(self) -> str:
        """The node to name: the last that both have, else of the result's, else the original's."""
        both = [name for name in self.into if name in self.nodes]
        return (both or self.into or self.nodes or (self.value,))[-1]


@dataclass
class ProofReport:
    """The answer to question 1.

    Attributes:
        passed: no region is wrong.
        proven: how many regions were found right.
        failures: those that are wrong.
        open: those that could not be evaluated: they fall to question 2.
        worst: the largest ratio among the right ones.
        seconds: wall clock.
    """

    passed: bool = True
    proven: int = 0
    failures: list[Proof] = field(default_factory=list)
    open: list[Proof] = field(default_factory=list)
    worst: float = 0.0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found = asdict(self)
        found["seconds"] = round(self.seconds, 3)
        return found

    def enter(self, found: Proof) -> None:
        """Count one region in."""
        if found.reason:
            self.open.append(found)
        elif found.passed:
            self.proven += 1
            self.worst = max(self.worst, found.ratio / found.limit)
        else:
            self.failures.append(found)
            self.passed = False
