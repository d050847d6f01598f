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
from bnpass.onnx_model.messages import copied, replace_nodes
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
from bnpass.statistics.cautions import warn
from bnpass.statistics.moments import BatchMoments, Moments, check_method
from bnpass.statistics.nodes import Builder, MomentNodes, add_moments, prune
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
    added = _on_batch_statistics(free, {n.output[0] for n in nodes})
    ports = inputs_of(free)
    source = _source(data, ports, seed)
    batches = source.batches(affordable(free, batch_size), in_order=method == "ema")
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
        _dropout_off(node, opset_of(work))
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
        yield {name: fitted(array, by_name[name]) for name, array in call.by_name(takes).items()}


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
    added = _measured(copy, values)
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


def _on_batch_statistics(model: onnx.ModelProto, wanted: set[str]) -> dict[str, MomentNodes]:
    """Put, in place, the chosen BNs on batch statistics; their moments become the outputs.

    Returns the moments by the BN's output name.
    """
    kinds = {name: port.kind for name, port in inferred(model).items()}
    build = Builder(model)
    nodes: list[onnx.NodeProto] = []
    moments: dict[str, MomentNodes] = {}
    for node in model.graph.node:
        if node.output and node.output[0] in wanted and node.op_type == "BatchNormalization":
            build.nodes = []
            moments[node.output[0]] = _on_batch(build, node, kinds)
            nodes += build.nodes
        else:
            _dropout_off(node, opset_of(model))
            nodes.append(node)
    replace_nodes(model.graph, [*build.head, *nodes])
    _fetch_only(model, moments)
    return moments


def _fetch_only(model: onnx.ModelProto, moments: dict[str, MomentNodes]) -> None:
    del model.graph.output[:]
    names = [name for m in moments.values() for name in m.outputs]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    prune(model)


def _dropout_off(node: onnx.NodeProto, opset: int) -> None:
    if node.op_type == "Dropout" and opset >= 12 and len(node.input) == 3:
        del node.input[2:]  # training_mode; absent means inference


def _on_batch(build: Builder, node: onnx.NodeProto, kinds: dict[str, int]) -> MomentNodes:
    """Add the moments of a BN's input, and what normalises with them, under the BN's output."""
    kind = kinds.get(node.input[0]) or TensorProto.FLOAT
    found = add_moments(build, node.input[0], 1, kind)
    if kind == found.kind:
        _normalise(build, node, found)
    else:
        _normalise_wide(build, node, found, kind)
    return found


def _normalise(build: Builder, node: onnx.NodeProto, found: MomentNodes) -> None:
    """Case 1, float32 and float64: a BN in inference mode that is fed the batch's moments."""
    flat = build.constant([-1])
    mean, var = (
        build.add("Reshape", build.cast(m, found.kind, TensorProto.DOUBLE), flat)
        for m in (found.mean, found.var)
    )
    copy = copied(node)
    copy.input[3:5] = mean, var
    set_attributes(copy, training_mode=None, momentum=None)
    build.nodes.append(copy)


def _normalise_wide(build: Builder, node: onnx.NodeProto, found: MomentNodes, kind: int) -> None:
    """Case 2, fp16 and bf16: spelt out in float32, where the variance cannot overflow."""
    column, double = build.constant([1, -1, 1]), TensorProto.DOUBLE
    epsilon = build.constant(attribute(node, "epsilon", 1e-5), np.float64)
    sigma = build.add("Sqrt", build.add("Add", found.var, epsilon))
    gamma = build.add("Reshape", build.cast(node.input[1], double), column)
    scale = build.cast(build.add("Div", gamma, sigma), found.kind)
    beta = build.add("Reshape", build.cast(node.input[2], found.kind), column)
    shifted = build.add("Add", build.add("Mul", found.centred, scale), beta)
    shaped = build.add("Reshape", shifted, build.add("Shape", node.input[0]))
    build.add("Cast", shaped, to=kind, output=node.output[0])


def _measured(model: onnx.ModelProto, values: Sequence[tuple[str, int]]) -> dict[str, MomentNodes]:
    """Add, in place, the moments of values as the model's only outputs."""
    known = {o for n in model.graph.node for o in n.output} | {p.name for p in inputs_of(model)}
    kinds = inferred(model)
    build = Builder(model)
    moments: dict[str, MomentNodes] = {}
    for name, axis in values:
        if name not in known:
            hint = close_matches(name, known) or "values inside If, Loop and Scan cannot be read"
            raise InputError(f"the model has no value {name!r}", hint)
        if name in moments:
            raise UsageError(f"value {name!r} is asked for twice", "ask once, with one axis")
        port = kinds.get(name)
        rank = len(port.shape) if port and port.shape is not None else 0
        moments[name] = add_moments(
            build, name, axis + rank if axis < 0 else axis, port.kind if port else TensorProto.FLOAT
        )
    model.graph.node.extend([*build.head, *build.nodes])
    _fetch_only(model, moments)
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
