"""The tolerance of a narrowed model: from its type, and from how well each layer is conditioned.

A normalised value is off by about 10 * u * |mean| / sigma of what is normalised, where u is the
type's unit roundoff, folded or not (measured, see :data:`bnpass.runtime.accuracy.ROUNDING`). The
layers' errors are independent, so they add up as their squares do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import onnx

from bnpass.errors import InputError, MissingDependencyError
from bnpass.runtime.accuracy import ROUNDING, Conditioning, conditioning
from bnpass.runtime.cases import RandomPlan
from bnpass.runtime.engines import Loaded, onnx_engine
from bnpass.runtime.tolerance import Tolerance

ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half the distance from 1 to the next larger number of each type."""

HOPELESS = 0.5
"""A relative tolerance above which a verification says nothing."""


@dataclass(frozen=True)
class Precision:
    """How exact a model can be in a type.

    Attributes:
        rule: the tolerance to verify with.
        conditioning: |mean| / sigma and the expected relative error of every layer, worst first.
        notes: what weakens it, in words.
    """

    rule: Tolerance
    conditioning: list[Conditioning]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; JSON-able."""
        return {
            "rtol": self.rule.rtol, "atol": self.rule.atol, "dtype": self.rule.dtype,
            "conditioning": [asdict(c) for c in self.conditioning], "notes": self.notes,
        }  # fmt: skip


def precision(
    model: str | os.PathLike[str] | onnx.ModelProto,
    dtype: str,
    *,
    seed: int = 0,
    draws: int = 3,
    batches: Sequence[int] = (5,),
) -> Precision:
    """Measure a float32 model's layers and derive the tolerance for running it in ``dtype``.

    Args:
        model: the model with its BNs, before narrowing.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        seed, draws, batches: of the inputs, as in :func:`bnpass.runtime.verify.verify`.

    Raises:
        MissingDependencyError: onnxruntime is missing.
    """
    notes = []
    try:
        found = conditioning(model, _feeds(model, seed, draws, batches))
    except MissingDependencyError:
        raise
    except InputError as error:
        found = []
        notes.append(f"the layers could not be measured: {error.message}")
    scale = ROUNDOFF[dtype] / ROUNDOFF["float32"]
    layers = [replace(c, expected=c.expected * scale) for c in found]
    rule = derived(dtype, [c.rms for c in layers])
    if rule.rtol >= HOPELESS:
        worst = f"{layers[0].node!r} (|mean| / sigma {layers[0].ratio:.3g})"
        notes.append(f"layers as badly conditioned as {worst} leave {dtype} no digits: nothing is "
                     "proved")  # fmt: skip
    return Precision(rule, layers, notes)


def derived(dtype: str, ratios: Sequence[float]) -> Tolerance:
    """Return the tolerance for layers of given |mean| / sigma; at least 1 each.

    Args:
        dtype: as in :func:`precision`.
        ratios: one a layer; none counts as one layer of ratio 1.
    """
    each = ROUNDING * ROUNDOFF[dtype] / ROUNDOFF["float32"]
    rtol = each * math.sqrt(sum(max(1.0, r) ** 2 for r in ratios) or 1.0)
    return Tolerance(min(rtol, HOPELESS), each / 10, dtype)


def _feeds(
    model: Any, seed: int, draws: int, batches: Sequence[int]
) -> list[dict[str, Any]]:
    loaded = Loaded.load(model)
    engine = onnx_engine(loaded, optimize=False)
    cases, _ = RandomPlan(loaded.proto, seed, draws, tuple(batches), {}).cases(engine)
    return [case.feeds for case in cases]
