"""Population statistics on onnxruntime, without torch.

Source: Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithm 2, steps 8 to 12: after training, mean and
variance of each BN are those of the population. The default method pools them exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto

from bnpass.data.protocol import Arguments
from bnpass.errors import InputError, UsageError, close_matches
from bnpass.onnx_model.attributes import attribute, node_name, opset_of, set_attributes
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.signature import Port, inferred, inputs_of, is_float
from bnpass.runtime.batchnorm import MEAN, VAR, Statistics, Writer, batch_norms
from bnpass.runtime.inputs import (
    Feeds,
    batch_symbol,
    fitted,
    free_batch_of,
    plain,
    split_batch,
    takes_of,
)
from bnpass.runtime.session import run, session
from bnpass.statistics.cautions import warn, warn_of_padding
from bnpass.statistics.choosing import Choose, chooser, mask_feed
from bnpass.statistics.moments import BatchMoments, Moments, check_method
from bnpass.statistics.nodes import Builder, MomentNodes, add_moments
from bnpass.statistics.on_batches import dropout_off, fetch_only, put_on_batches
from bnpass.statistics.source import Source, items

Array = np.ndarray[Any, Any]
_LARGE = 1000  # nodes


class Team(Protocol):
    """Processes that work together: :mod:`bnpass.nn.distributed`, without importing torch here."""

    def world(self) -> int:
        """Their number."""

    def rank(self) -> int:
        """This one's number."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all of them, by rank."""


def calibrate_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto,
    data: Any,
    *,
    method: str = "pooled",
    batch_size: int = 1000,
    seed: int = 0,
    provider: str = "cpu",
    only: Sequence[str] = (),
    frozen: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    team: Team | None = None,
) -> onnx.ModelProto:
    """Give every BatchNormalization of the main graph the statistics of the data.

    One pass with all chosen BNs on the statistics of the batch at hand, as in training, Dropout
    off; then for each BN what :mod:`bnpass.statistics.moments` says of the method.

    Args:
        model: a path or a ModelProto (left as it is); a fixed batch is made free for the pass.
        data: batches of inputs, or of (inputs, targets): arrays, tuples, mappings by input name
            (see :mod:`bnpass.data.protocol`). Samples that come sorted are warned about where the
            data cannot be shuffled as a whole.
        method: ``pooled``, ``paper``, ``ema``, which takes the batches as they come, or ``exact``,
            which takes a pass for each BN.
        batch_size: most samples in a statistics batch (fewer where memory is short).
        seed: of the shuffle.
        provider: ``"cpu"`` or ``"cuda"``.
        only: glob patterns on BN names to calibrate; empty means all.
        frozen: glob patterns on BN names that keep their statistics.
        progress: called with the number of samples after each batch.
        team: the processes to share the batches with (:mod:`bnpass.nn.distributed`); each gets the
            statistics of all.

    Returns:
        A copy of the model; without a BatchNormalization an unchanged copy.

    Raises:
        InputError: no data, NaN in it, it does not fit, or a batch with one element a channel.
        UsageError: an unknown method, a batch size below 1, or a pattern that matches nothing.
        MissingDependencyError: onnxruntime or the provider is missing.
    """
    check_method(method)
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch_size}")
    copy = OnnxModel.to_edit(model).proto
    nodes = batch_norms(copy, only, frozen)
    if not nodes:
        return copy
    if method == "exact":
        return _layer_by_layer(copy, nodes, data, batch_size, provider, team, progress)
    free = _free(copy)
    ports = inputs_of(free)
    source = _source(data, ports, seed)
    warn_of_padding(source)
    size = affordable(free, batch_size)
    choose = _choose(free, [(n.input[0], 1) for n in nodes], source, ports, provider)
    added = put_on_batches(free, {n.output[0] for n in nodes}, choose)
    batches = source.batches(size, in_order=method == "ema")
    found = {name: Moments(keep=method != "pooled") for name in added}
    for batch in _run_all(free, added, _feeds(batches, ports), provider, progress, team):
        for name, seen in batch.items():
            found[name].add(seen)
    found = _merged(found, team)
    warn({node_name(node): found[node.output[0]] for node in nodes}, method, source)
    _write(copy, nodes, found, method)
    return copy


def _layer_by_layer(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], data: Any, batch_size: int, provider: str,
    team: Team | None, progress: Callable[[int], None] | None,
) -> onnx.ModelProto:
    """Give the BNs, in the graph's order, what each sees in inference, in place."""
    work = _free(model)
    for node in work.graph.node:
        dropout_off(node, opset_of(work))
        if node.op_type == "BatchNormalization":
            set_attributes(node, training_mode=None)
    copies = {node.output[0]: node for node in work.graph.node if node.output}
    given = list(data) if iter(items(data)) is data else data  # an iterator would be used up
    writers = Writer(model), Writer(work)
    for node in nodes:
        value = node.input[0]
        found = batch_moments(work, [(value, 1)], given, batch_size=batch_size, provider=provider,
                              team=team, progress=progress)
        progress = None  # the samples are the same in every pass
        statistics = Statistics(*found[value])
        writers[0].write(node, statistics)
        writers[1].write(copies[node.output[0]], statistics)
    return model


def _write(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], found: dict[str, Moments], method: str
) -> None:
    writer = Writer(model)
    for node in nodes:
        start = (writer.read(node, MEAN), writer.read(node, VAR))
        momentum = 1 - attribute(node, "momentum", 0.9)  # ONNX counts what stays, torch what comes
        mean, var = found[node.output[0]].result(method, node_name(node), momentum=momentum,
                                                 start=start)
        writer.write(node, Statistics(mean, var))


def _source(data: Any, ports: list[Port], seed: int | None, **options: Any) -> Source:
    return Source(data, takes_of(ports), seed, check=_refuse_nan(ports), **options,
                  regular=regular(ports))


def _refuse_nan(ports: list[Port]) -> Callable[[int, Arguments], None]:
    takes = takes_of(ports)

    def check(number: int, call: Arguments) -> None:
        for name, array in call.by_name(takes).items():
            if not _finite(plain(array)):
                raise InputError(f"batch {number} of the data has NaN or Inf in {name!r}",
                                 "clean the data")

    return check


def _finite(array: Array) -> bool:
    if not is_float(array.dtype) or not array.ndim:
        return True
    known = array.dtype.kind == "f"  # ml_dtypes' types have no isfinite in every version
    pieces = (array[i : i + 4096] for i in range(0, len(array), 4096))
    return all(np.isfinite(p if known else p.astype(np.float32)).all() for p in pieces)


def _feeds(batches: Iterable[Arguments], ports: list[Port]) -> Iterator[Feeds]:
    takes, by_name = takes_of(ports), {port.name: port for port in ports}
    for call in batches:
        named = call.by_name(takes)
        yield {name: fitted(array, by_name[name]) for name, array in named.items()} | \
            mask_feed(call)


def _choose(
    model: onnx.ModelProto, values: list[tuple[str, int]], source: Source, ports: list[Port],
    provider: str,
) -> Choose:
    """How the data's mask lies on the values; the model gets it as an input, in place."""
    example = None if source.empty else source.example(2)
    feeds = {} if example is None or example.mask is None else next(_feeds([example], ports))
    return chooser(model, values, example, feeds, provider)


def regular(ports: list[Port]) -> bool:
    """Whether every input has the batch on its axis 0, so that samples can be regrouped."""
    symbol = batch_symbol(ports)
    return all(
        p.shape is None or (len(p.shape) > 0 and p.shape[0] in (symbol, None)) for p in ports
    )


def affordable(model: onnx.ModelProto, wanted: int) -> int:
    """Return ``wanted``, or fewer samples where their activations would not fit into memory.

    A rough bound: eight times the largest activation a sample, in half of the free memory.
    """
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


def batch_moments(
    model: str | os.PathLike[str] | onnx.ModelProto,
    values: Sequence[tuple[str, int]],
    data: Any,
    *,
    batch_size: int = 1000,
    provider: str = "cpu",
    team: Team | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Measure values of a network as it is (inference) over a data set, in one pass.

    Args:
        model: a path or a ModelProto, left as it is.
        values: names of values of the main graph, each with its channel axis.
        data: batches, as in :func:`calibrate_onnx`.
        batch_size: most samples in one run; the result does not depend on it.
        provider: ``"cpu"`` or ``"cuda"``.
        team: the processes to share the batches with.
        progress: called with the number of samples after each batch.

    Returns:
        By name: mean and biased variance of all elements of each channel, (C,) float64 each.

    Raises:
        InputError: no data, NaN in it, it does not fit, or a value is not there or no float.
    """
    copy = OnnxModel.to_edit(model).proto
    ports = inputs_of(copy)
    free = free_batch_of(ports)
    given = data if free else (part for batch in items(data) for part in split_batch(batch, ports))
    source = _source(given, ports, None, budget=2**28)
    batches = source.batches(affordable(copy, batch_size) if free else 1 << 40, in_order=not free)
    added = _measured(copy, values, lambda known: _choose(copy, known, source, ports, provider))
    found = {name: Moments() for name in added}
    for batch in _run_all(copy, added, _feeds(batches, ports), provider, progress, team):
        for name, seen in batch.items():
            found[name].add(seen)
    return {name: moments.pooled for name, moments in _merged(found, team).items()}


def _merged(found: dict[str, Moments], team: Team | None) -> dict[str, Moments]:
    """The processes' moments in one, in the order of their ranks: the same everywhere."""
    if team is None or team.world() == 1:
        return found
    merged = {name: Moments(keep=moments.keep) for name, moments in found.items()}
    for theirs in team.gather(found):
        for name, part in theirs.items():
            merged[name].merge(part)
    return merged


def _free(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose batch is free: statistics at a fixed batch of 1 would be wrong."""
    if not free_batch_of(inputs_of(model)):
        from bnpass.frontends.onnx.free_batch import free_batch

        freed: onnx.ModelProto = free_batch(model)
        return freed
    return OnnxModel.to_edit(model).proto


def _check_values(model: onnx.ModelProto, names: list[str]) -> None:
    known = {o for n in model.graph.node for o in n.output} | {p.name for p in inputs_of(model)}
    for number, name in enumerate(names):
        if name not in known:
            hint = close_matches(name, known) or "values inside If, Loop and Scan cannot be read"
            raise InputError(f"the model has no value {name!r}", hint)
        if name in names[:number]:
            raise UsageError(f"value {name!r} is asked for twice", "ask once, with one axis")


def _measured(
    model: onnx.ModelProto, values: Sequence[tuple[str, int]],
    chooser_of: Callable[[list[tuple[str, int]]], Choose],
) -> dict[str, MomentNodes]:
    """Add, in place, the moments of values as the model's only outputs."""
    _check_values(model, [name for name, _ in values])
    kinds = inferred(model)
    ports = [kinds.get(name) for name, _ in values]
    ranks = [len(p.shape) if p and p.shape is not None else 0 for p in ports]
    placed = [(name, axis + rank if axis < 0 else axis)
              for (name, axis), rank in zip(values, ranks, strict=True)]
    choose = chooser_of(placed)
    build = Builder(model)
    moments = {name: add_moments(build, name, axis, port.kind if port else TensorProto.FLOAT,
                                 choose(build, name))
               for (name, axis), port in zip(placed, ports, strict=True)}
    model.graph.node.extend([*build.head, *build.nodes])
    fetch_only(model, moments)
    return moments


def _run_all(
    model: onnx.ModelProto,
    moments: dict[str, MomentNodes],
    feeds: Iterable[Feeds],
    provider: str,
    progress: Callable[[int], None] | None,
    team: Team | None = None,
) -> Iterator[dict[str, BatchMoments]]:
    # onnxruntime's optimizer takes quadratic time: on large graphs it costs more than it saves.
    built = session(model, provider, optimize=len(model.graph.node) < _LARGE)
    used = {i.name for i in built.get_inputs()}
    names = [name for m in moments.values() for name in m.outputs]
    world, mine = (team.world(), team.rank()) if team is not None else (1, 0)
    for number, batch in enumerate(feeds):
        if number % world != mine:
            continue
        found = run(built, names, {n: a for n, a in batch.items() if n in used})
        samples = len(next(iter(batch.values())))
        yield {
            name: _moments(found[3 * index : 3 * index + 3], number, samples)
            for index, name in enumerate(moments)
        }
        if progress is not None:
            progress(samples)


def _moments(found: Sequence[Array], number: int, samples: int) -> BatchMoments:
    """What the nodes of :func:`bnpass.statistics.nodes.add_moments` gave."""
    mean, var, size = found
    return BatchMoments(mean.reshape(-1).astype(np.float64), var.reshape(-1).astype(np.float64),
                        int(size[0] * size[2]), number, samples)
