"""Statistics batches: whatever batches the data comes in, cut and merged to one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from bnpass.errors import InputError
from bnpass.onnx_model.signature import Port, inferred, is_float
from bnpass.runtime.inputs import Feeds, batch_symbol, feeds_of

BUDGET = 2**30
"""Bytes of input data that are held to be shuffled as a whole; more is shuffled piece by piece."""


def batches_of(data: Any, batch_size: int) -> Iterable[Any]:
    """Return an iterable of batches for a data set, one array (one batch), or an iterable."""
    if hasattr(data, "batches"):
        return data.batches(batch_size, shuffle=False, seed=0, drop_last=False)  # type: ignore[no-any-return]
    if isinstance(data, np.ndarray | Mapping):
        return [data]
    return data  # type: ignore[no-any-return]


def checked(data: Iterable[Any], ports: list[Port]) -> Iterator[Feeds]:
    """Yield each batch as arrays by input name.

    Raises:
        InputError: a batch does not fit the inputs, or holds NaN or Inf.
    """
    for index, batch in enumerate(data):
        feeds = feeds_of(batch, ports)
        for name, array in feeds.items():
            if is_float(array.dtype) and not _finite(array):
                raise InputError(
                    f"batch {index} of the data has NaN or Inf in {name!r}", "clean the data"
                )
        yield feeds


def _finite(array: np.ndarray[Any, Any]) -> bool:
    known = array.dtype.kind == "f"  # ml_dtypes' types have no isfinite in every version
    return bool(np.isfinite(array if known else array.astype(np.float32)).all())


def regroup(
    feeds: Iterable[Feeds],
    size: int,
    *,
    ports: list[Port],
    seed: int | None = 0,
    budget: int = BUDGET,
) -> Iterator[Feeds]:
    """Regroup batches to at most ``size`` samples, the remainder spread over them, shuffled.

    Samples of different shapes never share a batch. Where an input has no batch on its axis 0
    (a sequence-first network, a scalar) the batches stay as they come.

    Args:
        feeds: batches as they come.
        size: most samples in a batch.
        ports: the model's inputs.
        seed: of the shuffle; None keeps the order.
        budget: bytes held at most before batches are given out.
    """
    if not regular(ports):
        yield from feeds
        return
    generator = None if seed is None else np.random.default_rng(seed)
    held: dict[Any, list[Feeds]] = {}
    for batch in feeds:
        held.setdefault(_key(batch), []).append(batch)
        if sum(a.nbytes for group in held.values() for b in group for a in b.values()) > budget:
            for group in held.values():
                # Joining is worth its copy only when several full batches come out of it.
                if sum(map(_count, group)) >= 4 * size:
                    yield from _flush(group, size, generator)
    for group in held.values():
        if group:
            yield from _spread(_join(group), size, generator)


def regular(ports: list[Port]) -> bool:
    """Whether every input has the batch on its axis 0, so that samples can be regrouped."""
    symbol = batch_symbol(ports)
    return all(
        p.shape is None or (len(p.shape) > 0 and p.shape[0] in (symbol, None)) for p in ports
    )


def _key(batch: Feeds) -> tuple[Any, ...]:
    return tuple((name, a.shape[1:]) for name, a in batch.items())


def _join(group: list[Feeds]) -> Feeds:
    return {name: np.concatenate([b[name] for b in group]) for name in group[0]}


def _take(batch: Feeds, index: Any) -> Feeds:
    return {name: a[index] for name, a in batch.items()}


def _count(batch: Feeds) -> int:
    return len(next(iter(batch.values())))


def _order(count: int, generator: np.random.Generator | None) -> np.ndarray[Any, Any]:
    return np.arange(count) if generator is None else generator.permutation(count)


def _flush(group: list[Feeds], size: int, generator: np.random.Generator | None) -> Iterator[Feeds]:
    """Give out full batches; what the group keeps is enough to spread the remainder well."""
    joined = _join(group)
    order = _order(_count(joined), generator)
    while len(order) >= 2 * size:
        yield _take(joined, order[:size])
        order = order[size:]
    group[:] = [_take(joined, order)]


def _spread(joined: Feeds, size: int, generator: np.random.Generator | None) -> Iterator[Feeds]:
    count = _count(joined)
    if not count:
        return
    for index in np.array_split(_order(count, generator), -(-count // size)):
        yield _take(joined, index)


def affordable(model: onnx.ModelProto, wanted: int) -> int:
    """Return ``wanted``, or fewer samples where their activations would not fit into memory.

    A rough bound: eight times the largest activation a sample, in half of the free memory.
    """
    import os

    constants = {t.name for t in model.graph.initializer}
    largest = 1
    for port in inferred(model).values():
        if port.shape and port.name not in constants:
            largest = max(largest, int(np.prod([d for d in port.shape[1:] if isinstance(d, int)])))
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return wanted
    return max(1, min(wanted, free // 2 // (8 * 4 * largest)))
