"""How the batch travels: elementwise operators, layers, reductions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnpass.ir.graph import Dim
from bnpass.passes.free_batch.node import Batch, BatchNode, State, rule

Dims = tuple[Dim, ...]


def elementwise(node: BatchNode) -> Sequence[State]:
    """All operands that carry the batch carry it on the same axis; the others do not have it."""
    used = [i for i in node.given if node.graph.shape(node.op.inputs[i]) != ()]
    if len(used) == 1:
        return [node.state(used[0])] * len(node.op.outputs)
    return [aligned(node, [(i, node.dims(i)) for i in used])] * len(node.op.outputs)


@rule("CastLike")
def cast_like(node: BatchNode) -> Sequence[State]:
    """Only the type of the second input matters."""
    return [node.state(0)]


def aligned(node: BatchNode, operands: Sequence[tuple[int, Dims]]) -> Batch:
    """The batch of a broadcast (axes aligned from the right) of inputs with these dimensions."""
    rank = max(len(dims) for _, dims in operands)
    found: set[Batch] = set()
    for index, dims in operands:
        state = node.state(index)
        if isinstance(state, Batch):
            found.add(Batch(state.axis - len(dims) + rank, state.factor))
    if len(found) != 1:
        node.refuse("its inputs carry the batch on different axes")
    (batch,) = found
    for index, dims in operands:
        axis = batch.axis - rank + len(dims)
        if node.state(index) is None and axis >= 0 and dims[axis] != 1:
            node.refuse(f"{node.op.inputs[index]!r} has size {dims[axis]} along the batch")
    return batch


@rule(
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace",
    "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization",
    "InstanceNormalization", "LRN", "LpPool", "MaxPool", "SpaceToDepth",
)  # fmt: skip
def layer(node: BatchNode) -> Sequence[State]:
    """Samples along axis 0."""
    batch = node.batch()
    if batch.axis != 0:
        node.refuse(f"the batch is on axis {batch.axis}, not 0")
    if any(node.state(i) is not None for i in range(1, len(node.op.inputs))):
        node.refuse("its weights depend on the input")
    if node.op.kind == "BatchNormalization" and node.attr("training"):
        node.refuse("it normalises over the batch")
    if node.op.kind == "MaxPool" and len(node.op.outputs) > 1 and node.op.outputs[1]:
        node.refuse("its Indices count through the batch")
    return [batch] + [None] * (len(node.op.outputs) - 1)


@rule("Gemm")
def gemm(node: BatchNode) -> Sequence[State]:
    """Rows of A."""
    batch = node.batch()
    rows = 1 if node.attr("transA", 0) else 0
    if batch.axis != rows or node.state(1) is not None:
        node.refuse("it sums over the batch")
    if node.has(2):
        bias = node.dims(2)
        mixed = node.state(2) is not None and node.state(2) != Batch(len(bias) - 2, batch.factor)
        if mixed or (node.state(2) is None and len(bias) == 2 and bias[0] != 1):
            node.refuse("its bias differs along the batch")
    return [Batch(0, batch.factor)]


@rule("MatMul")
def matmul(node: BatchNode) -> Sequence[State]:
    """Rows of A, columns of B, or a leading axis of either."""
    a, b = node.dims(0), node.dims(1)
    rank = max(len(a), len(b))
    if min(len(a), len(b)) < 2:
        return _with_vector(node, a, b)
    left, right = node.state(0), node.state(1)
    if isinstance(left, Batch) and left.axis == len(a) - 2 and right is None:
        return [Batch(rank - 2, left.factor)]
    if isinstance(right, Batch) and right.axis == len(b) - 1 and left is None:
        return [Batch(rank - 1, right.factor)]
    for state, dims in ((left, a), (right, b)):
        if isinstance(state, Batch) and state.axis >= len(dims) - 2:
            node.refuse("it sums over the batch or mixes samples")
    return [aligned(node, [(0, (*a[:-2], 1, 1)), (1, (*b[:-2], 1, 1))])]


def _with_vector(node: BatchNode, a: Dims, b: Dims) -> Sequence[State]:
    state = node.state(0)
    fits = len(b) == 1 and len(a) > 1 and node.state(1) is None
    if not isinstance(state, Batch) or not fits or state.axis == len(a) - 1:
        node.refuse("it sums over the batch")
    return [state]


@rule("Einsum")
def einsum(node: BatchNode) -> Sequence[State]:
    """The letter of the batch must be in the result, and in no operand without the batch."""
    terms, arrow, result = node.attr("equation").replace(" ", "").partition("->")
    letters = set()
    for index, term in enumerate(terms.split(",")):
        state = node.state(index)
        if "." in term:
            node.refuse("an ellipsis in the equation")
        if isinstance(state, Batch):
            letters.add((term[state.axis], state.factor))
    if len(letters) != 1 or not arrow:
        node.refuse("its operands carry the batch differently")
    ((letter, factor),) = letters
    shared = [i for i, t in enumerate(terms.split(",")) if letter in t and node.state(i) is None]
    if letter not in result or shared:
        node.refuse("it sums over the batch")
    return [Batch(result.index(letter), factor)]


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduction(node: BatchNode) -> Sequence[State]:
    """Not over the batch."""
    batch, rank = node.batch(), len(node.dims(0))
    axes = node.attr_or_ints("axes", 1)
    if not axes:
        if node.attr("noop_with_empty_axes", 0):
            return [batch]
        node.refuse("it reduces over the batch")
    return [_reduced(node, batch, [a % rank for a in axes])]


@rule("ArgMax", "ArgMin")
def arg(node: BatchNode) -> Sequence[State]:
    """Not over the batch."""
    return [_reduced(node, node.batch(), [node.attr("axis", 0) % len(node.dims(0))])]


def _reduced(node: BatchNode, batch: Batch, axes: Sequence[int]) -> Batch:
    if batch.axis in axes:
        node.refuse("it reduces over the batch")
    if node.attr("keepdims", 1):
        return batch
    return Batch(batch.axis - sum(a < batch.axis for a in axes), batch.factor)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: BatchNode) -> Sequence[State]:
    """Not along the batch; ``axes_from`` means all axes from that one on."""
    batch, rank = node.batch(), len(node.dims(0))
    first = node.attr("axes_from")
    axis = node.attr("axis", -1) % rank
    if batch.axis == axis if first is None else batch.axis >= first % rank:
        node.refuse("it normalises over the batch")
    return [batch]


@rule("LayerNormalization", "RMSNormalization")
def layer_norm(node: BatchNode) -> Sequence[State]:
    """Over all axes from ``axis`` on."""
    batch, rank = node.batch(), len(node.dims(0))
    if batch.axis >= node.attr("axis", -1) % rank:
        node.refuse("it normalises over the batch")
    if any(node.state(i) is not None for i in range(1, len(node.op.inputs))):
        node.refuse("its weights depend on the input")
    return [batch] * len(node.op.outputs)


@rule("LpNormalization", "CumSum", "TopK")
def along(node: BatchNode) -> Sequence[State]:
    """Along one axis that is not the batch."""
    batch, rank = node.batch(), len(node.dims(0))
    given = node.known_ints(1, "the axis") if node.op.kind == "CumSum" else [node.attr("axis", -1)]
    if given[0] % rank == batch.axis:
        node.refuse("it runs along the batch")
    return [batch] * len(node.op.outputs)


@rule("MeanVarianceNormalization")
def mean_variance(node: BatchNode) -> Sequence[State]:
    """Over ``axes``."""
    batch = node.batch()
    if batch.axis in node.attr("axes", (0, 2, 3)):
        node.refuse("it normalises over the batch")
    return [batch]


@rule("LSTM", "GRU", "RNN")
def recurrent(node: BatchNode) -> Sequence[State]:
    """X is (T, N, I), with layout=1 (N, T, I); a constant initial state must be zero, and goes."""
    batch, last = node.batch(), node.attr("layout", 0)
    if batch.axis != (0 if last else 1):
        node.refuse(f"the batch is on axis {batch.axis} of its input")
    where = 0 if last else 1
    for index in (4, 5, 6):
        state = node.state(index)
        if not node.has(index) or state == Batch(0 if index == 4 else where, batch.factor):
            continue
        if state is not None or not _harmless(node, index):
            node.refuse(f"{node.op.inputs[index]!r} is made for one batch size")
        node.dropped.add(index)
    made = [Batch(0 if last else 2, batch.factor)] + [Batch(where, batch.factor)] * 2
    return made[: len(node.op.outputs)]


def _harmless(node: BatchNode, index: int) -> bool:
    constant = node.graph.constant(node.op.inputs[index])
    if constant is None:
        return False
    values = constant.load()
    if index == 4:
        steps = node.dims(0)[1 if node.attr("layout", 0) else 0]
        return bool(np.all(values == steps)) if isinstance(steps, int) else False
    return not values.any()


@rule("Attention")
def attention(node: BatchNode) -> Sequence[State]:
    """Samples along axis 0 of everything but a mask, which is aligned from the right."""
    batch = node.batch()
    for index in (0, 1, 2, 4, 5, 6):
        if node.has(index) and node.state(index) != Batch(0, batch.factor):
            node.refuse(f"{node.op.inputs[index]!r} does not carry the batch on axis 0")
    if node.has(3):
        mask, state = node.dims(3), node.state(3)
        if state is None and len(mask) == 4 and mask[0] != 1:
            node.refuse(f"{node.op.inputs[3]!r} has size {mask[0]} along the batch")
        if state is not None and (len(mask) != 4 or state != Batch(0, batch.factor)):
            node.refuse("its mask carries the batch on another axis")
    return [Batch(0, batch.factor)] * len(node.op.outputs)


@rule("RotaryEmbedding")
def rotary(node: BatchNode) -> Sequence[State]:
    """Sample by sample; tables without the batch need positions, or one row for all samples."""
    batch = node.batch()
    for index in (1, 2, 3):
        state = node.state(index)
        table = index < 3 and node.has(3)
        single = state is None and (table or (node.has(index) and node.dims(index)[0] == 1))
        if node.has(index) and not single and (table or state != Batch(0, batch.factor)):
            node.refuse(f"{node.op.inputs[index]!r} does not carry the batch on axis 0")
    if batch.axis != 0:
        node.refuse(f"the batch is on axis {batch.axis}, not 0")
    return [batch]
