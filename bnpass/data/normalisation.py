"""Normalisation of the input, (x - mean) / std, written into an ONNX model and folded.

A deployed model then takes samples as they are stored (scaled at most): nobody can forget the step
or get it wrong. No torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnpass.data.dataset import Data
from bnpass.errors import InputError, UsageError

if TYPE_CHECKING:
    import onnx


def fold_normalisation(
    model: str | onnx.ModelProto, mean: Sequence[float], std: Sequence[float], *, axis: int = 1,
    verify: bool = True,
) -> onnx.ModelProto:
    """The model that takes x where the given one takes (x - mean) / std.

    Case 1: every layer that reads the input takes in scale and shift (no padding): no node is
    added. Case 2: the layers take in the scale alone (padding fills in zeros behind the shift): one
    Sub is added. Case 3: they take in nothing (something else reads the input): Sub and Div.

    Args:
        model: a path or a ModelProto, which is left as it is.
        mean: one number, or one for each channel of the first input.
        std: the same, not 0.
        axis: the channels' axis of that input, batch included.
        verify: compare each fold with what it came from on onnxruntime.

    Returns:
        The new model.

    Raises:
        InputError: the input is not floating point, or has no such channels.
        UsageError: a std of 0, or numbers that are not finite.
        VerificationError: a fold changed the outputs.
    """
    import bnpass
    from bnpass.files import load_model

    numbers = [np.atleast_1d(np.asarray(v, np.float64)) for v in (mean, std)]
    if not all(np.isfinite(v).all() and v.ndim == 1 for v in numbers) or (numbers[1] == 0).any():
        raise UsageError(f"mean {mean} and std {std}", "give finite numbers, and no std of 0")
    spelt, names = _spelt_out(load_model(model), numbers[0], numbers[1], axis)
    for only in (names, names[1:]):
        plan = bnpass.fold(spelt, only=only, plan_only=True)
        if plan.entries and all(entry.how for entry in plan.entries):
            spelt = bnpass.fold(spelt, only=only, verify=verify)
            break
    return spelt


def take_over(model: str | onnx.ModelProto, data: Data) -> tuple[onnx.ModelProto, Data]:
    """:func:`fold_normalisation` with what a data set does, and the data set without it.

    Source of mean and std is the data's recorded conversion; without them both come back as given.
    """
    from bnpass.files import load_model

    recipe = data.converter
    if recipe.mean is None and recipe.std is None:
        return load_model(model), data
    folded = fold_normalisation(model, recipe.mean or (0.0,), recipe.std or (1.0,),
                                axis=recipe.channel_axis)
    return folded, replace(data, converter=replace(recipe, mean=None, std=None), _kept=[])


def _spelt_out(
    model: onnx.ModelProto, mean: np.ndarray[Any, Any], std: np.ndarray[Any, Any], axis: int
) -> tuple[onnx.ModelProto, tuple[str, str]]:
    """A copy with Sub and Div behind the first input, and the names of the two nodes."""
    from onnx import ModelProto, helper, numpy_helper

    from bnpass.runtime.signature import dtype_of, inputs_of

    port = inputs_of(model)[0]
    dtype = dtype_of(port.kind)
    if port.shape is None or dtype.kind not in "fV":
        raise InputError(f"the input {port.name!r} is no float tensor of known shape",
                         "normalisation goes in front of images and the like")
    copy = ModelProto.FromString(model.SerializeToString())
    taken = _names(copy)
    subtracted, divided, *constants = (
        _fresh(f"{port.name}_{part}", taken) for part in ("centred", "normalised", "mean", "std")
    )
    for node in copy.graph.node:
        node.input[:] = [divided if name == port.name else name for name in node.input]
    for name, numbers in zip(constants, (mean, std), strict=True):
        shaped = numbers.astype(dtype).reshape(_shape(port.shape, len(numbers), axis))
        copy.graph.initializer.append(numpy_helper.from_array(shaped, name))
    names = (subtracted, divided)
    copy.graph.node.insert(0, helper.make_node("Sub", [port.name, constants[0]], [subtracted],
                                               name=names[0]))
    copy.graph.node.insert(1, helper.make_node("Div", [subtracted, constants[1]], [divided],
                                               name=names[1]))
    return copy, names


def _names(model: onnx.ModelProto) -> set[str]:
    """Every name that a new value or node must not have."""
    from bnpass.runtime.signature import all_nodes

    nodes = list(all_nodes(model))
    ports = (*model.graph.input, *model.graph.initializer)
    return {p.name for p in ports} | {n.name for n in nodes} | {
        value for n in nodes for value in (*n.input, *n.output)}


def _fresh(wanted: str, taken: set[str]) -> str:
    name = next(n for i in range(len(taken) + 1) if (n := wanted + "_" * i) not in taken)
    taken.add(name)
    return name


def _shape(shape: Sequence[Any], count: int, axis: int) -> list[int]:
    """Of a constant that broadcasts along the channels of the input."""
    if count == 1:
        return [1] * len(shape)
    if not 0 < axis < len(shape) or shape[axis] not in (count, None):
        raise InputError(f"{count} numbers to normalise with, but an input of shape {list(shape)}",
                         "give one number, or one for each channel")
    return [count if position == axis else 1 for position in range(len(shape))]
