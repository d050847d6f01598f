"""Question 2: does the whole compute the same in float32? Judged by the network's own noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnpass.errors import InputError
from bnpass.onnx_model.signature import is_float
from bnpass.runtime.compare import Comparison, compare, merge
from bnpass.runtime.tolerance import Tolerance
from bnpass.verdict.scale import DEVIATIONS, FACTOR, FLOOR, SPARE, STEPPED

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]

BLIND = 1e-3
"""Noise by magnitude from which on this question sees no error that matters."""


@dataclass
class Noise:
    """How far each output moves by itself.

    Attributes:
        largest: by output, the largest |change| / max|a| of all draws.
        steps: by output, the largest share of entries that came to be another step.
        draws: how many were taken.
    """

    largest: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    draws: int = 0

    def add(self, plain: Outputs, moved: Outputs, stepped: Collection[str]) -> None:
        """Another draw: the outputs as they are, and with moved numbers."""
        self.draws += 1
        for name, a in plain.items():
            b = moved[name]
            if a.shape != b.shape:
                continue
            if is_float(a.dtype):
                found = compare(a, b, _EXACT)
                if np.isfinite(found.max_rel) and name not in stepped:
                    self.largest[name] = max(self.largest.get(name, 0.0), found.max_rel)
            share = float(np.mean(_apart(a, b, _floor(a)))) if a.size else 0.0
            self.steps[name] = max(self.steps.get(name, 0.0), share)


_EXACT = Tolerance(0.0, 0.0)


@dataclass
class Judge:
    """Compares outputs case by case.

    Attributes:
        pairs: the candidate's output for each of the reference's.
        rule: the tolerance of the models' coarsest type, or the caller's.
        own: judge by the noise; False: by the rule.
        stepped: outputs behind a rounding or a comparison.
        noise: what is known of it so far.
        proven: every edit was proven for itself.
    """

    pairs: Mapping[str, str]
    rule: Tolerance
    own: bool
    stepped: Collection[str] = ()
    noise: Noise = field(default_factory=Noise)
    proven: bool = False

    def compared(self, expected: Outputs, actual: Outputs) -> dict[str, Comparison]:
        """One case: the comparison of every output, judged by what is known by now."""
        found = {}
        for name, other in self.pairs.items():
            a, b = expected[name], actual[other]
            if a.shape != b.shape:
                raise InputError(
                    f"output {name!r} has shape {a.shape} in the reference and {b.shape} in the "
                    "candidate", "the two models do not compute the same thing",
                )  # fmt: skip
            found[name] = self._judged(name, a, b)
        return found

    def _judged(self, name: str, a: Array, b: Array) -> Comparison:
        found = compare(a, b, self.rule)
        if not self.own:
            return found
        if is_float(a.dtype):
            found.noise = self.noise.largest.get(name, 0.0) * found.scale
            found.limit = max(_floor(a), FACTOR * found.noise)
            found.ratio = found.max_abs / found.noise if found.noise else None
            found.passed = not found.nonfinite and found.max_abs <= found.limit
        if not found.passed and not found.nonfinite and name in self.stepped:
            apart = _apart(a, b, found.limit)
            found.steps = int(np.sum(apart))
            found.passed = found.steps <= self._allowed(name, max(a.size, 1))
        return found

    def _allowed(self, name: str, entries: int) -> float:
        """Entries that may be another step: what is expected, and by how much chance exceeds it."""
        expected = max(STEPPED, FACTOR * self.noise.steps.get(name, 0.0)) * entries
        return expected + DEVIATIONS * math.sqrt(expected) + (SPARE if self.proven else 0)


def _floor(a: Array) -> float:
    """What any difference may be: some units in the last place at the largest magnitude."""
    if not is_float(a.dtype) or a.dtype.name not in ("float16", "float32", "float64"):
        return 0.0
    wide = np.abs(a[np.isfinite(a)])
    return FLOOR * float(np.finfo(a.dtype).eps) * float(np.max(wide, initial=0.0))


def _apart(a: Array, b: Array, limit: float) -> Array:
    """The entries that differ by more than a limit; of what is no number, those that differ."""
    if a.dtype.kind in "OUS" or a.dtype.kind == "b":
        return np.asarray(a != b)
    with np.errstate(all="ignore"):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.asarray(gap > limit)


def joined(worst: dict[str, Comparison], found: Mapping[str, Comparison]) -> None:
    """Keep the worse of each output's comparisons."""
    for name, other in found.items():
        worst[name] = merge(worst[name], other) if name in worst else other


def excess(found: Mapping[str, Comparison], rule: Tolerance) -> tuple[float, str]:
    """The largest difference in units of what is allowed, and its output.

    Here a difference may also be what the type's tolerance says: kernels are other ones.
    """
    worst, place = 0.0, ""
    for name, c in found.items():
        allowed = max(c.limit, rule.atol + rule.rtol * c.scale)
        size = c.max_abs / allowed if allowed else (0.0 if c.max_abs == 0 else np.inf)
        size = np.inf if c.nonfinite else (min(size, 1.0) if c.passed else size)
        if size > worst:
            worst, place = float(size), name
    return worst, place
