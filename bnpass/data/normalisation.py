"""What is done to samples number by number, (scale * x - mean) / std, left to the model.

A deployed model then takes samples as they are stored: nobody can forget the step or get it wrong.
No torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnpass.data.dataset import Data
from bnpass.data.recipe import Recipe
from bnpass.errors import UsageError

if TYPE_CHECKING:
    import onnx

    from bnpass.frontends.onnx.preprocessing import InFront

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Normalisation:
    """(scale * x - mean) / std.

    Attributes:
        scale: one number for all.
        mean: one number, or one for each channel.
        std: the same.
        axis: the channels' axis of a batch; None finds it by its size.

    Raises:
        UsageError: numbers that are not finite, a scale or std of 0, or lists of unequal lengths.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    axis: int | None = None

    def __post_init__(self) -> None:
        scale, mean, std = self._numbers
        if not all(np.isfinite(v).all() for v in (scale, mean, std)) or 0 in (*scale, *std):
            raise UsageError(f"scale {self.scale:g}, mean {list(self.mean)}, std {list(self.std)}",
                             "give finite numbers, and neither a scale nor a std of 0")
        if len({len(mean), len(std)} - {1}) > 1 or not len(mean) or not len(std):
            raise UsageError(f"{len(mean)} means and {len(std)} deviations",
                             "give one number, or one for each channel")

    @classmethod
    def of(cls, recipe: Recipe) -> Normalisation:
        """What a recorded conversion does to each number."""
        return cls(recipe.scale or 1.0, recipe.mean or (0.0,), recipe.std or (1.0,),
                   recipe.channel_axis)

    @classmethod
    def between(cls, one: Recipe, other: Recipe) -> Normalisation:
        """What becomes of ``other``'s result so that it is ``one``'s."""
        (s, m, d), (scale, mean, std) = (cls.of(recipe)._numbers for recipe in (one, other))
        ratio = scale / s
        return cls(1.0, tuple((m * ratio - mean) / std), tuple(d * ratio / std), one.channel_axis)

    @property
    def _numbers(self) -> tuple[Numbers, Numbers, Numbers]:
        scale, mean, std = (np.atleast_1d(np.asarray(v, np.float64))
                            for v in (self.scale, self.mean, self.std))
        return scale, mean, std

    @property
    def offset(self) -> Numbers:
        """Of the same in the form (x - offset) / divisor."""
        scale, mean, _ = self._numbers
        return mean / scale

    @property
    def divisor(self) -> Numbers:
        """See :attr:`offset`."""
        scale, _, std = self._numbers
        return std / scale

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every number as it is."""
        return bool((self.offset == 0).all() and (self.divisor == 1).all())

    def left_of(self, recipe: Recipe) -> Recipe:
        """The conversion for the model that does this itself: what the samples need before it.

        Nothing, where the recorded conversion normalises in the same way.
        """
        scale, mean, std = self._numbers
        old_scale, old_mean, old_std = Normalisation.of(recipe)._numbers
        ratio = old_std / std
        rest, spread = old_mean - mean * ratio, ratio * scale
        if (spread == spread[0]).all():
            old_scale, rest, spread = old_scale / spread[0], rest / spread[0], np.ones(1)
        return replace(
            recipe,
            scale=float(old_scale[0]) if old_scale[0] != 1 else None,
            mean=tuple(rest.tolist()) if rest.any() else None,
            std=tuple(spread.tolist()) if (spread != 1).any() else None,
        )

    def in_front_of(self, model: onnx.ModelProto) -> InFront:
        """The model with this spelt out behind its first input.

        Raises:
            InputError: the input is no float tensor of known rank, or has no such channels.
        """
        from bnpass.frontends.onnx.preprocessing import put_in_front

        return put_in_front(model, self.offset, self.divisor, self.axis)

    def raw(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The samples that become ``x``: a batch, of any type; the result has the same."""
        count = max(len(self.offset), len(self.divisor))
        axis = 1 if count == 1 else self.axis or (1 if x.shape[1] == count else x.ndim - 1)
        shape = [1] * x.ndim
        shape[min(axis, x.ndim - 1)] = -1
        offset, divisor = self.offset.reshape(shape), self.divisor.reshape(shape)
        return (x.astype(np.float64) * divisor + offset).astype(x.dtype)


def fold_normalisation(
    model: str | onnx.ModelProto, mean: Sequence[float], std: Sequence[float], *,
    scale: float = 1.0, axis: int | None = None, verify: bool = True,
) -> onnx.ModelProto:
    """The model that takes x where the given one takes (scale * x - mean) / std, folded.

    No node is added where every layer that reads the input takes in scale and shift (no padding),
    one Sub where they take in the scale alone, Sub and Div where they take in nothing; see
    :func:`bnpass.frontends.onnx.preprocessing.fold_in_front`.

    Args:
        model: a path or a ModelProto, which is left as it is.
        mean: one number, or one for each channel of the first input.
        std: the same, not 0.
        scale: one number for all, not 0.
        axis: the channels' axis of that input, batch included; None finds it by its size.
        verify: compare with the given model behind the normalisation on onnxruntime.

    Returns:
        The new model.

    Raises:
        InputError: the input is not floating point, or has no such channels.
        UsageError: a scale or std of 0, or numbers that are not finite.
        VerificationError: the fold changed the outputs.
    """
    from bnpass.files import load_model

    wanted = Normalisation(scale, tuple(mean), tuple(std), axis)
    return _folded(load_model(model), wanted, verify)


def take_over(
    model: str | onnx.ModelProto, data: Data, *, verify: bool = True
) -> tuple[onnx.ModelProto, Data]:
    """:func:`fold_normalisation` with what a data set does, and the data set without it.

    Source of scale, mean and std is the data's recorded conversion; without them both come back as
    given.
    """
    from bnpass.files import load_model

    wanted = Normalisation.of(data.converter)
    if wanted.is_identity:
        return load_model(model), data
    return _folded(load_model(model), wanted, verify), as_stored(data)


def as_stored(data: Data) -> Data:
    """The data set for a model that does its normalisation itself."""
    converter = Normalisation.of(data.converter).left_of(data.converter)
    return replace(data, converter=converter, _kept=[])


def _folded(model: onnx.ModelProto, wanted: Normalisation, verify: bool) -> onnx.ModelProto:
    from bnpass.frontends.onnx.preprocessing import fold_in_front

    front = wanted.in_front_of(model)
    done = fold_in_front(front)
    if verify:
        from bnpass.runtime.verify import verify as compare

        compare(front.model, done.model, changed=done.changed,
                prepare=preparation(wanted, front.port.name)).raise_if_failed()
    return done.model


def preparation(
    wanted: Normalisation, name: str
) -> Callable[[dict[str, npt.NDArray[Any]]], dict[str, npt.NDArray[Any]]]:
    """What makes of random inputs of a model those that it would get as stored samples."""
    return lambda feeds: {**feeds, name: wanted.raw(feeds[name])}
