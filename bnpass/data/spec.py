"""What a model asks of its input: the shape (batch first) and the element type."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class InputSpec:
    """The first input of a model.

    Attributes:
        shape: sizes with the batch in front; a symbol's name or ``None`` where any size goes.
        dtype: numpy's name of the element type.
    """

    shape: tuple[int | str | None, ...]
    dtype: str = "float32"

    @property
    def sample(self) -> tuple[int | None, ...]:
        """The shape of one sample: everything behind the batch, ``None`` where any size goes."""
        return tuple(d if isinstance(d, int) and d > 0 else None for d in self.shape[1:])

    @property
    def count(self) -> int | None:
        """Elements in one sample, or ``None`` where a size is open."""
        sizes = [d for d in self.sample if d is not None]
        return math.prod(sizes) if len(sizes) == len(self.sample) else None

    @property
    def floating(self) -> bool:
        """Whether the model takes floating point numbers."""
        return self.dtype == "bfloat16" or bool(np.issubdtype(np.dtype(self.dtype), np.floating))

    @property
    def kind(self) -> str:
        """Type and shape for messages: ``"float32[N,3]"``."""
        return f"{self.dtype}[" + ",".join("?" if d is None else str(d) for d in self.shape) + "]"

    def accepts(self, sample: tuple[int, ...]) -> bool:
        """Whether a sample of this shape can be fed as it is."""
        pairs = zip(self.sample, sample, strict=False)
        return len(sample) == len(self.sample) and all(w is None or w == h for w, h in pairs)

    def __str__(self) -> str:
        return "(" + ", ".join("?" if d is None else str(d) for d in self.shape) + ")"
