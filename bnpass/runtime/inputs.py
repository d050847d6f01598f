"""Seeded random inputs that a model accepts: its types, its fixed sizes, its legal index ranges."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnx

from bnpass import limits
from bnpass.data.protocol import Slot, Takes, unlabelled
from bnpass.errors import InputError
from bnpass.ir.graph import Dim
from bnpass.onnx_model import shapes
from bnpass.onnx_model.signature import Port, dtype_of, inputs_of, is_float
from bnpass.onnx_model.storage import external
from bnpass.runtime.ranges import Range, ranges

log = logging.getLogger("bnpass.runtime")

Feeds = dict[str, np.ndarray[Any, Any]]
"""Arrays by input name."""

SIZES = (16, 32, 64, 224, 8, 128, 299, 7, 1)
"""Sizes tried for a symbolic dimension that is not the batch, in this order."""

_BATCH = re.compile(r"(?i)^(n|b|bs|batch.*|.*batch(_?size)?)$")


@dataclass(frozen=True)
class Draw:
    """How one set of inputs is drawn.

    Attributes:
        batch: size of the batch dimension where it is free.
        seed: of the generator.
        style: ``"normal"``, ``"uniform"`` in [0, 1), or ``"extreme"`` (large, tiny and zero).
        size: size of the other symbolic dimensions.
        dims: sizes by symbol, which win over both; values of inputs that are counts, by name.
    """

    batch: int = 2
    seed: int = 0
    style: str = "normal"
    size: int = SIZES[0]
    dims: tuple[tuple[str, int], ...] = ()


STYLES = ("normal", "uniform", "extreme")


def random_inputs(model: onnx.ModelProto, draw: Draw = Draw()) -> Feeds:
    """Draw inputs for a model.

    Floats follow the draw's style; integers stay inside the ranges that the graph shows (rows of
    the Gather table they index, the depth of a OneHot, the length of a sequence) and are 0 or 1
    where it shows none, unsigned bytes 0..255; bools are fair coins.

    Args:
        model: whose inputs.
        draw: sizes, seed and style.

    Raises:
        InputError: an input's rank is unknown, or an input is a shape.
        BudgetError: an input is declared too large.
    """
    generator = np.random.default_rng([draw.seed, STYLES.index(draw.style), draw.batch])
    found = ranges(model)
    ports = inputs_of(model)
    symbol = batch_symbol(ports)
    sizes = {p.name: _shape(p, symbol, draw) for p in ports}
    _check_sizes(model, ports, sizes)
    return {
        p.name: _array(
            generator, p, sizes[p.name], draw.style, found.get(p.name),
            dict(draw.dims).get(p.name),
        )
        for p in ports
    }


def _check_sizes(
    model: onnx.ModelProto, ports: list[Port], sizes: dict[str, tuple[int, ...]]
) -> None:
    """Refuse inputs that a model declares larger than its own size lets expect.

    Raises:
        BudgetError: with the input's name.
    """
    total = 0
    for port in ports:
        total += math.prod(sizes[port.name]) * (external.bits(port.kind) or 64) // 8
        if total > limits.LIMITS["inputs"].amount or limits.is_set():
            held = sum(external.nbytes(tensor) or 0 for tensor in external.tensors(model))
            limits.check("inputs", total, f"input {port.name!r} of {list(sizes[port.name])}", held)


def batch_symbol(ports: list[Port]) -> str | None:
    """Return the symbol that is the batch: one that is called so, else the first input's first.

    An unnamed unknown first dimension counts as the batch too and needs no name.
    """
    symbols = [d for p in ports for d in p.shape or () if isinstance(d, str)]
    named = [s for s in symbols if _BATCH.match(s)]
    if named:
        return named[0]
    first = ports[0].shape if ports else None
    return first[0] if first and isinstance(first[0], str) else None


def free_batch_of(ports: list[Port]) -> bool:
    """Say whether some input's batch dimension is free."""
    symbol = batch_symbol(ports)
    return symbol is not None or any(p.shape and p.shape[0] is None for p in ports)


def free_sizes(ports: list[Port]) -> list[str]:
    """Return the free dimensions that are not the batch, by symbol (unnamed: ``input:axis``)."""
    symbol = batch_symbol(ports)
    found: dict[str, None] = {}
    for port in ports:
        for axis, dim in enumerate(port.shape or ()):
            if isinstance(dim, str) and dim != symbol:
                found[dim] = None
            elif dim is None and axis > 0:
                found[f"{port.name}:{axis}"] = None
    return list(found)


def fixed_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Sizes of free dimensions that layers leave no choice for, as :func:`free_sizes` names them.

    A Conv's weight says how many channels it reads, whatever the file calls that axis.
    """
    ports = inputs_of(model)
    free = set(free_sizes(ports))
    if not free:
        return {}
    known, found = shapes.infer(model, demands=True)[()], {}
    for port in ports:
        for axis, (dim, size) in enumerate(
            zip(port.shape or (), known.dims(port.name) or (), strict=False)
        ):
            name = dim if isinstance(dim, str) else f"{port.name}:{axis}"
            if name in free and isinstance(size, int):
                found[name] = size
    return found


def _shape(port: Port, symbol: str | None, draw: Draw) -> tuple[int, ...]:
    if port.shape is None:
        raise InputError(
            f"the rank of input {port.name!r} is unknown, so no input can be drawn for it",
            "state its shape in the file: onnx.tools.update_model_dims",
        )
    return tuple(
        _size(dim, f"{port.name}:{axis}", symbol, axis, draw) for axis, dim in enumerate(port.shape)
    )


def _size(dim: Dim, label: str, symbol: str | None, axis: int, draw: Draw) -> int:
    if isinstance(dim, int):
        return dim
    given = dict(draw.dims).get(dim or label)
    if given is not None:
        return given
    is_batch = (dim is not None and dim == symbol) or (dim is None and axis == 0)
    return draw.batch if is_batch else draw.size


def _array(
    generator: np.random.Generator,
    port: Port,
    shape: tuple[int, ...],
    style: str,
    limit: Range | None,
    count: int | None = None,
) -> np.ndarray[Any, Any]:
    dtype = dtype_of(port.kind)
    if limit is not None and limit.shape:
        if count is None:
            raise InputError(
                f"input {port.name!r} is a shape or a count, so random values make no sense",
                f"give its value, e.g. --dims {port.name}=2",
            )
        return np.full(shape, count, dtype)
    if dtype.kind == "b":
        return np.asarray(generator.random(shape) < 0.5)
    if limit is not None:
        return np.asarray(generator.integers(limit.low, limit.high, shape)).astype(dtype)
    if is_float(dtype):
        return _floats(generator, shape, style, dtype)
    if dtype.kind == "c":
        return (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(dtype)
    if dtype.kind not in "iu":
        raise InputError(
            f"no random values for input {port.name!r} of type {dtype}", "give samples: --data DATA"
        )
    if dtype.itemsize == 1:
        return np.asarray(generator.integers(*_byte_range(dtype), shape, endpoint=True)).astype(
            dtype
        )
    return np.asarray(generator.integers(0, 2, shape)).astype(dtype)


def _byte_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.name in ("uint8", "int8"):
        limits = np.iinfo(dtype)
        return int(limits.min), int(limits.max)
    return 0, 1  # ml_dtypes' 2- and 4-bit integers


def _floats(
    generator: np.random.Generator, shape: tuple[int, ...], style: str, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    if style == "uniform":
        return np.asarray(generator.random(shape)).astype(dtype)
    values = np.asarray(generator.normal(size=shape))
    if style == "extreme":
        # Saturated, vanishing and exactly zero entries side by side; inside fp16's range.
        kinds = generator.integers(0, 4, shape)
        values = np.choose(kinds, [values, 30 * values, 1e-4 * values, np.zeros(shape)])
    return values.astype(dtype)


def takes_of(ports: list[Port]) -> Takes:
    """What a model takes, for :mod:`bnpass.data.protocol`."""
    return Takes(tuple(Slot(p.name, kind=f"{dtype_of(p.kind)}{_text(p.shape)}") for p in ports))


def feeds_of(batch: Any, ports: list[Port]) -> Feeds:
    """Turn a batch as callers have it into arrays by input name.

    Args:
        batch: inputs, or (inputs, targets), see :func:`bnpass.data.protocol.unlabelled`.
        ports: the model's inputs.

    Raises:
        InputError: an input is missing, there is one too many, or a shape does not fit.
    """
    takes = takes_of(ports)
    named = unlabelled(batch, takes)[0].by_name(takes)
    return {p.name: fitted(named[p.name], p) for p in ports}


def fitted(array: Any, port: Port) -> np.ndarray[Any, Any]:
    """An array as an input takes it: contiguous and of its type; a cast is said, once a type.

    Raises:
        InputError: the shape does not fit, or numbers would be lost.
    """
    found = plain(array)
    wanted = dtype_of(port.kind)
    fits = port.shape is None or (
        len(port.shape) == found.ndim
        and all(d == n for d, n in zip(port.shape, found.shape, strict=True) if isinstance(d, int))
    )
    if not fits:
        raise InputError(
            f"input {port.name!r} wants shape {_text(port.shape)}, the data has {found.shape}",
            "reshape the data, one array a batch",
        )
    if is_float(found.dtype) and not is_float(wanted) and wanted.kind != "c":
        raise InputError(f"input {port.name!r} wants {wanted}, not {found.dtype}", "cast the data")
    if found.dtype != wanted:
        _say_cast(port.name, str(found.dtype), str(wanted))
    return np.ascontiguousarray(found.astype(wanted, copy=False))


def plain(array: Any) -> np.ndarray[Any, Any]:
    """An array or a tensor, wherever it is, as numpy's."""
    if not hasattr(array, "detach"):
        return np.asarray(array)
    held = array.detach().cpu()
    return np.asarray(held.float() if "bfloat16" in str(held.dtype) else held)


@lru_cache(maxsize=256)  # once a process, not once a batch
def _say_cast(name: str, have: str, wanted: str) -> None:
    log.info("input %r: %s is cast to %s", name, have, wanted)


def _text(shape: tuple[Dim, ...] | None) -> str:
    return "[" + ",".join("?" if d is None else str(d) for d in shape or ()) + "]"


def split_batch(batch: Any, ports: list[Port]) -> list[Any]:
    """Cut a batch into pieces of the size that the model fixes, where it fixes one.

    Args:
        batch: as in :func:`feeds_of`.
        ports: the model's inputs.
    """
    takes = takes_of(ports)
    named = unlabelled(batch, takes)[0].by_name(takes)
    fixed = {p.shape[0] for p in ports if p.shape and isinstance(p.shape[0], int)}
    counts = {len(v) for v in named.values() if np.ndim(v)}
    if len(fixed) != 1 or len(counts) != 1:
        return [named]
    size, count = fixed.pop(), counts.pop()
    if not isinstance(size, int) or count == size or count % size:
        return [named]
    return [{n: v[i : i + size] for n, v in named.items()} for i in range(0, count, size)]
