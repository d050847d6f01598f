"""The time that questions 2 and 3 may take; what does not fit is left out, and said."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from bnpass.runtime.child import Limits

DEFAULT = 20.0
"""Seconds."""

_PATIENCE = 600.0  # seconds for one step where there is no budget


@dataclass
class Budget:
    """Seconds from its making on; None: as long as it takes.

    Attributes:
        seconds: the budget.
        left_out: what did not fit, in words.
    """

    seconds: float | None = None
    left_out: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def allows(self, share: float = 1.0, cost: float = 0.0) -> bool:
        """Whether a step of that cost still ends within a share of the budget."""
        return self.seconds is None or self.spent + cost <= share * self.seconds

    def limits(self) -> Limits:
        """What a step of onnxruntime may take: the rest, and a little for the first one."""
        if self.seconds is None:
            return Limits(_PATIENCE)
        return Limits(max(self.seconds - self.spent, 1.0))

    def leave_out(self, what: str) -> None:
        """Note what is not done."""
        self.left_out.append(f"{what} (budget of {self.seconds:g} s: --check-budget)")
