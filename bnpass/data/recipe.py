"""How stored samples become what the model takes: inferred once, said, recorded, replayed.

The steps, in this order: transpose (channels last to channels first or back), reshape, convert to
the model's element type, multiply by ``scale``, subtract ``mean`` and divide by ``std``.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bnpass.data.spec import InputSpec
from bnpass.errors import InputError, UsageError

log = logging.getLogger("bnpass.data")

Array = npt.NDArray[Any]
_LAYOUTS = {"nhwc": (0, 3, 1, 2), "nchw": (0, 2, 3, 1)}
"""The transposition that leads from the stored layout to the other one."""


class Samples(Protocol):
    """What a format reader gives: samples along the first axis, read when they are indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, ...)``."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class Recipe:
    """The conversion from stored samples to model input; :meth:`to_dict` is JSON.

    Attributes:
        stored_shape: shape of one stored sample.
        stored_dtype: its element type.
        dtype: element type that the model takes.
        shape: shape of one converted sample.
        transpose: permutation of a stored batch's axes, or ``None``.
        scale: factor for every element, or ``None``.
        mean: subtracted after scaling, one number a channel (or one for all), or ``None``.
        std: divisor after that, or ``None``.
        channel_axis: axis of a converted batch along which ``mean`` and ``std`` lie.
        source: what the reader did (format, split, image size); its own to interpret.
    """

    stored_shape: tuple[int, ...]
    stored_dtype: str
    dtype: str
    shape: tuple[int, ...]
    transpose: tuple[int, ...] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_axis: int = 1
    source: dict[str, Any] = field(default_factory=dict)

    def apply(self, stored: Array) -> Array:
        """Convert a batch ``(n, *stored_shape)`` to ``(n, *shape)`` of :attr:`dtype`."""
        if self.transpose is not None:
            stored = stored.transpose(self.transpose)
        batch = stored.reshape(len(stored), *self.shape)
        batch = np.ascontiguousarray(batch, dtype=np.dtype(_numpy_type(self.dtype)))
        if self.scale is not None:
            batch = batch * batch.dtype.type(self.scale)
        if self.mean is not None:
            batch = batch - self._along_channels(self.mean, batch)
        if self.std is not None:
            batch = batch / self._along_channels(self.std, batch)
        return batch

    def check(self, samples: Samples) -> None:
        """Raise :class:`InputError` unless the samples are stored as those it was made for."""
        same_kind = np.dtype(self.stored_dtype).kind == samples.dtype.kind
        if same_kind and tuple(samples.shape[1:]) == self.stored_shape:
            return
        raise InputError(
            f"samples are {samples.dtype}{list(samples.shape[1:])}, the recorded conversion is for "
            f"{self.stored_dtype}{list(self.stored_shape)}",
            "give data stored like the training data, or leave the recorded conversion out",
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> Recipe:
        """The recipe that :meth:`to_dict` wrote."""
        try:
            plain: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in recorded.items()
            }
            return cls(**plain)
        except TypeError as error:
            raise InputError(
                f"not a recorded data conversion: {error}", "take it from a report.json of bnpass"
            ) from error

    def describe(self) -> str:
        """One line for people: what is done to the samples."""
        steps = [f"{self.stored_dtype}{list(self.stored_shape)}"]
        if self.transpose is not None:
            first = self.transpose == _LAYOUTS["nhwc"]
            steps.append("channels first" if first else "channels last")
        steps.append(f"{self.dtype}{list(self.shape)}")
        if self.scale is not None:
            steps.append(f"times {self.scale:.6g}" if self.scale != 1 / 255 else "divided by 255")
        if self.mean is not None or self.std is not None:
            steps.append("normalised")
        return " -> ".join(steps)

    def _along_channels(self, numbers: tuple[float, ...], batch: Array) -> Array:
        values = np.asarray(numbers, dtype=batch.dtype)
        if len(numbers) == 1:
            return values
        shape = [1] * batch.ndim
        shape[self.channel_axis] = len(numbers)
        return values.reshape(shape)


def _numpy_type(dtype: str) -> str:
    # numpy has no bfloat16: samples stay float32 and torch casts them.
    return "float32" if dtype == "bfloat16" else dtype


def infer(
    samples: Samples,
    inputs: InputSpec | None,
    *,
    scale: float | None = None,
    layout: str = "auto",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    source: dict[str, Any] | None = None,
) -> Recipe:
    """Work out the conversion of ``samples`` for the model's first input.

    Args:
        samples: stored samples, first axis the sample.
        inputs: what the model takes; without it the samples keep their shape.
        scale: factor for every element; by default 1/255 from 8-bit integers to floats, else none.
        layout: how images are stored: ``"nhwc"``, ``"nchw"``, ``"auto"`` (by the shapes).
        mean: subtracted after scaling, one number or one a channel.
        std: divisor after that, one number or one a channel.
        source: recorded with the recipe.

    Raises:
        InputError: the shapes cannot be brought together, or only by guessing.
    """
    stored = tuple(int(d) for d in samples.shape[1:])
    dtype = inputs.dtype if inputs else _default_type(samples.dtype)
    floating = inputs.floating if inputs else np.issubdtype(np.dtype(dtype), np.floating)
    transpose, shape = _shapes(stored, inputs, layout)
    if scale is None and floating and samples.dtype == np.uint8:
        scale = 1 / 255
    if not floating and (mean is not None or std is not None or samples.dtype.kind == "f"):
        raise InputError(
            f"the model takes {dtype}, the data is {samples.dtype}",
            "give integer data and no normalisation to a model with integer input",
        )
    channel_axis = _channel_axis(shape, mean or std)
    recipe = Recipe(stored, str(samples.dtype), dtype, shape, transpose, scale, mean, std,
                    channel_axis, source or {})
    log.info("data: %s", recipe.describe())
    return recipe


def _default_type(dtype: np.dtype[Any]) -> str:
    return "float32" if dtype == np.uint8 or dtype.kind in "fb" else "int64"


def _channel_axis(shape: tuple[int, ...], numbers: tuple[float, ...] | None) -> int:
    if numbers is None or len(numbers) == 1:
        return 1
    for axis in (0, len(shape) - 1):
        if shape and shape[axis] == len(numbers):
            return axis + 1
    raise InputError(
        f"{len(numbers)} numbers to normalise with, but samples of shape {list(shape)}",
        "give one number for all channels or one for each channel",
    )


def _shapes(
    stored: tuple[int, ...], inputs: InputSpec | None, layout: str
) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """The transposition of a stored batch (or None) and the shape of a converted sample."""
    if layout not in ("auto", *_LAYOUTS):
        raise UsageError(f"unknown layout {layout!r}", "choose auto, nhwc or nchw")
    if inputs is None:
        return None, stored
    turned = _turned(stored, layout)
    # The stored order wins where it fits and nobody said otherwise.
    if layout == "auto" and inputs.accepts(stored):
        return None, stored
    for transpose, shape in turned:
        if inputs.accepts(shape):
            return transpose, shape
    if inputs.accepts(stored):
        return None, stored
    return _reshaped(stored, inputs, turned if layout == "nhwc" else [])


def _turned(
    stored: tuple[int, ...], layout: str
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    if len(stored) != 3:
        return []
    wanted = list(_LAYOUTS) if layout == "auto" else [layout]
    orders = [_LAYOUTS[name] for name in wanted]
    return [(order, tuple(stored[axis - 1] for axis in order[1:])) for order in orders]


def _reshaped(
    stored: tuple[int, ...],
    inputs: InputSpec,
    turned: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    wanted = _fill(inputs, math.prod(stored))
    if wanted is None:
        raise InputError(
            f"samples of shape {list(stored)} ({math.prod(stored)} elements) do not fit the "
            f"model's input {inputs}",
            "the shape of one sample must hold as many elements as the model takes",
        )
    dense_stored = [d for d in stored if d != 1]
    dense_wanted = [d for d in wanted if d != 1]
    if dense_stored != dense_wanted and sorted(dense_stored) == sorted(dense_wanted):
        raise InputError(
            f"samples of shape {list(stored)} have the axes of the model's input {inputs} in "
            "another order",
            "store the channels first or last, or say layout nhwc or nchw",
        )
    transpose = turned[0][0] if turned else None
    return transpose, wanted


def _fill(inputs: InputSpec, count: int) -> tuple[int, ...] | None:
    """The model's sample shape with ``count`` elements; at most one open size is filled in."""
    known = math.prod(d for d in inputs.sample if d is not None)
    unknown = sum(d is None for d in inputs.sample)
    if unknown > 1 or known == 0 or count % known or (not unknown and known != count):
        return None
    return tuple(count // known if d is None else d for d in inputs.sample)
