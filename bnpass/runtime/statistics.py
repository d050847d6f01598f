"""Population statistics on onnxruntime, without torch.

Source: Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithm 2, steps 8 to 12: after training, mean and
variance of each BN are those of the population. The default method pools them exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from bnpass.errors import InputError, UsageError, close_matches
from bnpass.onnx_model.attributes import attribute, node_name, opset_of
from bnpass.onnx_model.signature import inferred, inputs_of
from bnpass.runtime.batches import affordable, batches_of, checked, regroup, regular
from bnpass.runtime.batchnorm import MEAN, VAR, Statistics, Writer, batch_norms
from bnpass.runtime.cautions import Cautions
from bnpass.runtime.inputs import Feeds, free_batch_of, split_batch
from bnpass.runtime.moments import Batch, BatchMoments, Builder, Pooled, add_moments, prune
from bnpass.runtime.session import run, session

Array = np.ndarray[Any, Any]
METHODS = ("pooled", "paper", "ema")
_LARGE = 1000  # nodes


def calibrate_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto,
    data: Iterable[Any],
    *,
    method: str = "pooled",
    batch_size: int = 1000,
    seed: int = 0,
    provider: str = "cpu",
    only: Sequence[str] = (),
    frozen: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> onnx.ModelProto:
    """Give every BatchNormalization of the main graph the statistics of the data.

    One pass with all chosen BNs on the statistics of the batch at hand, as in training, Dropout
    off; then for each BN, over every element that it saw:

    - ``pooled``: mean of all, and the law of total variance: the biased batch variances averaged
      by their counts plus the variance of the batch means.
    - ``paper``: Algorithm 2 literally: E[mean_B], m / (m - 1) * E[var_B]. Meant for
      ``batch_size`` = the training's; behind another BN it over-corrects.
    - ``ema``: exponential averages with the node's momentum from the stored statistics on, with the
      unbiased variance, as torch keeps them.

    Args:
        model: a path or a ModelProto (left as it is); a fixed batch is made free for the pass.
        data: batches: arrays, tuples (inputs first, labels are left alone) or mappings by name.
            Labels that come sorted are warned about where the data cannot be shuffled as a whole.
        method: see above.
        batch_size: most samples in a statistics batch (fewer where memory is short).
        seed: of the shuffle.
        provider: ``"cpu"`` or ``"cuda"``.
        only: glob patterns on BN names to calibrate; empty means all.
        frozen: glob patterns on BN names that keep their statistics.
        progress: called with the number of samples after each batch.

    Returns:
        A copy of the model; without a BatchNormalization an unchanged copy.

    Raises:
        InputError: no data, NaN in it, it does not fit, or a batch with one element a channel.
        UsageError: an unknown method, a batch size below 1, or a pattern that matches nothing.
        MissingDependencyError: onnxruntime or the provider is missing.
    """
    if method not in METHODS:
        hint = close_matches(method, METHODS) or "choose " + ", ".join(METHODS)
        raise UsageError(f"unknown method {method!r}", hint)
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch_size}")
    copy = _own_copy(model)
    nodes = batch_norms(copy, only, frozen)
    if not nodes:
        return copy
    free = _free(copy)
    moments = _on_batch_statistics(free, {n.output[0] for n in nodes})
    size = affordable(free, batch_size)
    ports = inputs_of(free)
    cautions = Cautions(ports, mixed=regular(ports))
    given = checked(cautions.watch(batches_of(data, size)), ports)
    feeds = regroup(given, size, ports=ports, seed=seed)
    pools = {name: _Method(method) for name in moments}
    labels = {node.output[0]: node_name(node) for node in nodes}
    for batch in _run_all(free, moments, feeds, provider, progress):
        cautions.saw({labels[name]: found.count for name, found in batch.items()})
        for name, found in batch.items():
            pools[name].add(found)
    cautions.warn(method)
    writer = Writer(copy)
    for node in nodes:
        start = Statistics(writer.read(node, MEAN), writer.read(node, VAR))
        momentum = attribute(node, "momentum", 0.9)
        writer.write(node, pools[node.output[0]].result(node_name(node), momentum, start))
    return copy


def batch_moments(
    model: str | os.PathLike[str] | onnx.ModelProto,
    values: Sequence[tuple[str, int]],
    data: Iterable[Any],
    *,
    batch_size: int = 1000,
    provider: str = "cpu",
) -> dict[str, tuple[Array, Array]]:
    """Measure values of a network as it is (inference) over a data set, in one pass.

    Args:
        model: a path or a ModelProto, left as it is.
        values: names of values of the main graph, each with its channel axis.
        data: batches, as in :func:`calibrate_onnx`.
        batch_size: most samples in one run; the result does not depend on it.
        provider: ``"cpu"`` or ``"cuda"``.

    Returns:
        By name: mean and biased variance of all elements of each channel, (C,) float64 each.

    Raises:
        InputError: no data, NaN in it, it does not fit, or a value is not there or no float.
    """
    copy = _own_copy(model)
    ports = inputs_of(copy)
    parts = (p for b in batches_of(data, batch_size) for p in split_batch(b, ports))
    feeds = checked(parts, ports)
    if free_batch_of(ports):
        size = affordable(copy, batch_size)
        feeds = regroup(feeds, size, ports=ports, seed=None, budget=2**28)
    moments = _measured(copy, values)
    pools = {name: Pooled() for name in moments}
    for batch in _run_all(copy, moments, feeds, provider, None):
        for name, found in batch.items():
            pools[name].add(found)
    return {name: pool.result() for name, pool in pools.items()}


def _own_copy(model: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    from bnpass.files import load_model

    if not isinstance(model, onnx.ModelProto):
        return load_model(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _free(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose batch is free: statistics at a fixed batch of 1 would be wrong."""
    if not free_batch_of(inputs_of(model)):
        from bnpass.frontends.onnx.free_batch import free_batch

        freed: onnx.ModelProto = free_batch(model)
        return freed
    return _own_copy(model)


def _on_batch_statistics(model: onnx.ModelProto, wanted: set[str]) -> dict[str, BatchMoments]:
    """Put, in place, the chosen BNs on batch statistics; their moments become the outputs.

    Returns the moments by the BN's output name.
    """
    kinds = {name: port.kind for name, port in inferred(model).items()}
    build = Builder(model)
    nodes: list[onnx.NodeProto] = []
    moments: dict[str, BatchMoments] = {}
    for node in model.graph.node:
        if node.output and node.output[0] in wanted and node.op_type == "BatchNormalization":
            build.nodes = []
            moments[node.output[0]] = _on_batch(build, node, kinds)
            nodes += build.nodes
        else:
            _dropout_off(node, opset_of(model))
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend([*build.head, *nodes])
    _fetch_only(model, moments)
    return moments


def _fetch_only(model: onnx.ModelProto, moments: dict[str, BatchMoments]) -> None:
    del model.graph.output[:]
    names = [name for m in moments.values() for name in m.outputs]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    prune(model)


def _dropout_off(node: onnx.NodeProto, opset: int) -> None:
    if node.op_type == "Dropout" and opset >= 12 and len(node.input) == 3:
        del node.input[2:]  # training_mode; absent means inference


def _on_batch(build: Builder, node: onnx.NodeProto, kinds: dict[str, int]) -> BatchMoments:
    """Add the moments of a BN's input, and what normalises with them, under the BN's output."""
    kind = kinds.get(node.input[0]) or TensorProto.FLOAT
    found = add_moments(build, node.input[0], 1, kind)
    if kind == found.kind:
        _normalise(build, node, found)
    else:
        _normalise_wide(build, node, found, kind)
    return found


def _normalise(build: Builder, node: onnx.NodeProto, found: BatchMoments) -> None:
    """Case 1, float32 and float64: a BN in inference mode that is fed the batch's moments."""
    flat = build.constant([-1])
    mean, var = (
        build.add("Reshape", build.cast(m, found.kind, TensorProto.DOUBLE), flat)
        for m in (found.mean, found.var)
    )
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    copy.input[3:5] = mean, var
    kept = [a for a in copy.attribute if a.name not in ("training_mode", "momentum")]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    build.nodes.append(copy)


def _normalise_wide(build: Builder, node: onnx.NodeProto, found: BatchMoments, kind: int) -> None:
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


def _measured(model: onnx.ModelProto, values: Sequence[tuple[str, int]]) -> dict[str, BatchMoments]:
    """Add, in place, the moments of values as the model's only outputs."""
    known = {o for n in model.graph.node for o in n.output} | {p.name for p in inputs_of(model)}
    kinds = inferred(model)
    build = Builder(model)
    moments: dict[str, BatchMoments] = {}
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
    moments: dict[str, BatchMoments],
    feeds: Iterable[Feeds],
    provider: str,
    progress: Callable[[int], None] | None,
) -> Iterator[dict[str, Batch]]:
    # onnxruntime's optimizer takes quadratic time: on large graphs it costs more than it saves.
    built = session(model, provider, optimize=len(model.graph.node) < _LARGE)
    used = {i.name for i in built.get_inputs()}
    names = [name for m in moments.values() for name in m.outputs]
    for batch in feeds:
        found = run(built, names, {n: a for n, a in batch.items() if n in used})
        yield {
            name: Batch.of(*found[3 * index : 3 * index + 3]) for index, name in enumerate(moments)
        }
        if progress is not None:
            progress(len(next(iter(batch.values()))))


class _Method:
    """One BN's statistics over the batches, by one of the METHODS."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.pooled = Pooled()
        self.batches: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """Take in a batch."""
        if self.method == "pooled":
            self.pooled.add(batch)
        else:
            self.batches.append(batch)

    def result(self, name: str, momentum: float, start: Statistics) -> Statistics:
        """Return the statistics; ``start`` is where an exponential average begins."""
        smallest = min((b.count for b in self.batches), default=self.pooled.count)
        if smallest < 2 and (self.batches or self.pooled.count):
            raise InputError(
                f"a batch gives {name!r} one element a channel, which has no variance",
                "use larger batches",
            )
        if self.method == "paper" and self.batches:
            weights = np.array([b.count for b in self.batches], np.float64)
            return Statistics(
                np.average([b.mean for b in self.batches], axis=0, weights=weights),
                np.average([_unbiased(b) for b in self.batches], axis=0, weights=weights),
            )
        if self.method == "ema" and self.batches:
            mean, var = start.mean.astype(np.float64), start.var.astype(np.float64)
            for batch in self.batches:
                mean = momentum * mean + (1 - momentum) * batch.mean
                var = momentum * var + (1 - momentum) * _unbiased(batch)
            return Statistics(mean, var)
        return Statistics(*self.pooled.result())


def _unbiased(batch: Batch) -> Array:
    scaled: Array = batch.var * (batch.count / (batch.count - 1))
    return scaled
