"""How the batch travels: elementwise operators, layers, reductions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import numpy_helper

from bnpass.frontends.onnx.free_batch.rules import Batch, State, View, rule
from bnpass.frontends.onnx.free_batch.shapes import Dims


@rule(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike",
    "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg",
    "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
def unary(view: View) -> Sequence[State]:
    """Each entry by itself."""
    return [view.state(0)] * len(view.node.output)


@rule(
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu",
    "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
def broadcast(view: View) -> Sequence[State]:
    """All operands that carry the batch carry it on the same axis; the others do not have it."""
    used = [i for i in range(len(view.node.input)) if view.has(i)]
    return [aligned(view, [(i, view.dims(i)) for i in used])]


def aligned(view: View, operands: Sequence[tuple[int, Dims]]) -> Batch:
    """The batch of a broadcast (axes aligned from the right) of inputs with these dimensions."""
    rank = max(len(dims) for _, dims in operands)
    found: set[Batch] = set()
    for index, dims in operands:
        state = view.state(index)
        if isinstance(state, Batch):
            found.add(Batch(state.axis - len(dims) + rank, state.factor))
    if len(found) != 1:
        view.refuse("its inputs carry the batch on different axes")
    (batch,) = found
    for index, dims in operands:
        axis = batch.axis - rank + len(dims)
        if view.state(index) is None and axis >= 0 and dims[axis] != 1:
            view.refuse(f"{view.node.input[index]!r} has size {dims[axis]} along the batch")
    return batch


@rule(
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace",
    "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization",
    "InstanceNormalization", "LRN", "LpPool", "MaxPool", "SpaceToDepth",
)  # fmt: skip
def layer(view: View) -> Sequence[State]:
    """Samples along axis 0."""
    batch = view.batch()
    if batch.axis != 0:
        view.refuse(f"the batch is on axis {batch.axis}, not 0")
    if any(view.state(i) is not None for i in range(1, len(view.node.input))):
        view.refuse("its weights depend on the input")
    if view.node.op_type == "BatchNormalization" and view.attr("training_mode", 0):
        view.refuse("it normalises over the batch")
    if view.node.op_type == "MaxPool" and len(view.node.output) > 1 and view.node.output[1]:
        view.refuse("its Indices count through the batch")
    return [batch] + [None] * (len(view.node.output) - 1)


@rule("Gemm")
def gemm(view: View) -> Sequence[State]:
    """Rows of A."""
    batch = view.batch()
    rows = 1 if view.attr("transA", 0) else 0
    if batch.axis != rows or view.state(1) is not None:
        view.refuse("it sums over the batch")
    if view.has(2):
        bias = view.dims(2)
        mixed = view.state(2) is not None and view.state(2) != Batch(len(bias) - 2, batch.factor)
        if mixed or (view.state(2) is None and len(bias) == 2 and bias[0] != 1):
            view.refuse("its bias differs along the batch")
    return [Batch(0, batch.factor)]


@rule("MatMul")
def matmul(view: View) -> Sequence[State]:
    """Rows of A, columns of B, or a leading axis of either."""
    a, b = view.dims(0), view.dims(1)
    rank = max(len(a), len(b))
    if min(len(a), len(b)) < 2:
        return _with_vector(view, a, b)
    left, right = view.state(0), view.state(1)
    if isinstance(left, Batch) and left.axis == len(a) - 2 and right is None:
        return [Batch(rank - 2, left.factor)]
    if isinstance(right, Batch) and right.axis == len(b) - 1 and left is None:
        return [Batch(rank - 1, right.factor)]
    for state, dims in ((left, a), (right, b)):
        if isinstance(state, Batch) and state.axis >= len(dims) - 2:
            view.refuse("it sums over the batch or mixes samples")
    return [aligned(view, [(0, (*a[:-2], 1, 1)), (1, (*b[:-2], 1, 1))])]


def _with_vector(view: View, a: Dims, b: Dims) -> Sequence[State]:
    state = view.state(0)
    fits = len(b) == 1 and len(a) > 1 and view.state(1) is None
    if not isinstance(state, Batch) or not fits or state.axis == len(a) - 1:
        view.refuse("it sums over the batch")
    return [state]


@rule("Einsum")
def einsum(view: View) -> Sequence[State]:
    """The letter of the batch must be in the result, and in no operand without the batch."""
    terms, arrow, result = view.attr("equation").replace(" ", "").partition("->")
    letters = set()
    for index, term in enumerate(terms.split(",")):
        state = view.state(index)
        if "." in term:
            view.refuse("an ellipsis in the equation")
        if isinstance(state, Batch):
            letters.add((term[state.axis], state.factor))
    if len(letters) != 1 or not arrow:
        view.refuse("its operands carry the batch differently")
    ((letter, factor),) = letters
    shared = [i for i, t in enumerate(terms.split(",")) if letter in t and view.state(i) is None]
    if letter not in result or shared:
        view.refuse("it sums over the batch")
    return [Batch(result.index(letter), factor)]


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduction(view: View) -> Sequence[State]:
    """Not over the batch."""
    batch, rank = view.batch(), len(view.dims(0))
    axes = view.attr_or_ints("axes", 1)
    if not axes:
        if view.attr("noop_with_empty_axes", 0):
            return [batch]
        view.refuse("it reduces over the batch")
    return [_reduced(view, batch, [a % rank for a in axes])]


@rule("ArgMax", "ArgMin")
def arg(view: View) -> Sequence[State]:
    """Not over the batch."""
    return [_reduced(view, view.batch(), [view.attr("axis", 0) % len(view.dims(0))])]


def _reduced(view: View, batch: Batch, axes: Sequence[int]) -> Batch:
    if batch.axis in axes:
        view.refuse("it reduces over the batch")
    if view.attr("keepdims", 1):
        return batch
    return Batch(batch.axis - sum(a < batch.axis for a in axes), batch.factor)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(view: View) -> Sequence[State]:
    """Not along the batch; before opset 13 along all axes from ``axis`` on."""
    batch, rank = view.batch(), len(view.dims(0))
    axis = view.attr("axis", 1 if view.opset < 13 else -1) % rank
    if batch.axis == axis or (view.opset < 13 and batch.axis > axis):
        view.refuse("it normalises over the batch")
    return [batch]


@rule("LayerNormalization", "RMSNormalization")
def layer_norm(view: View) -> Sequence[State]:
    """Over all axes from ``axis`` on."""
    batch, rank = view.batch(), len(view.dims(0))
    if batch.axis >= view.attr("axis", -1) % rank:
        view.refuse("it normalises over the batch")
    if any(view.state(i) is not None for i in range(1, len(view.node.input))):
        view.refuse("its weights depend on the input")
    return [batch] * len(view.node.output)


@rule("LpNormalization", "CumSum", "TopK")
def along(view: View) -> Sequence[State]:
    """Along one axis that is not the batch."""
    batch, rank = view.batch(), len(view.dims(0))
    if view.node.op_type == "CumSum":
        axis = view.known_ints(1, "the axis")[0]
    else:
        axis = view.attr("axis", -1)
    if axis % rank == batch.axis:
        view.refuse("it runs along the batch")
    return [batch] * len(view.node.output)


@rule("MeanVarianceNormalization")
def mean_variance(view: View) -> Sequence[State]:
    """Over ``axes``."""
    batch = view.batch()
    if batch.axis in view.attr("axes", (0, 2, 3)):
        view.refuse("it normalises over the batch")
    return [batch]


@rule("LSTM", "GRU", "RNN")
def recurrent(view: View) -> Sequence[State]:
    """X is (T, N, I), with layout=1 (N, T, I); a constant initial state must be zero, and goes."""
    batch, last = view.batch(), view.attr("layout", 0)
    if batch.axis != (0 if last else 1):
        view.refuse(f"the batch is on axis {batch.axis} of its input")
    where = 0 if last else 1
    for index in (4, 5, 6):
        state = view.state(index)
        if not view.has(index) or state == Batch(0 if index == 4 else where, batch.factor):
            continue
        if state is not None or not _harmless(view, index):
            view.refuse(f"{view.node.input[index]!r} is made for one batch size")
        view.dropped.add(index)
    made = [Batch(0 if last else 2, batch.factor)] + [Batch(where, batch.factor)] * 2
    return made[: len(view.node.output)]


def _harmless(view: View, index: int) -> bool:
    tensor = view.constants.get(view.node.input[index])
    if tensor is None:
        return False
    values = numpy_helper.to_array(tensor)
    if index == 4:
        steps = view.dims(0)[1 if view.attr("layout", 0) else 0]
        return bool(np.all(values == steps)) if isinstance(steps, int) else False
    return not values.any()


@rule("Attention")
def attention(view: View) -> Sequence[State]:
    """Samples along axis 0 of everything but a mask, which is aligned from the right."""
    batch = view.batch()
    for index in (0, 1, 2, 4, 5, 6):
        if view.has(index) and view.state(index) != Batch(0, batch.factor):
            view.refuse(f"{view.names[index]!r} does not carry the batch on axis 0")
    if view.has(3):
        mask, state = view.dims(3), view.state(3)
        if state is None and len(mask) == 4 and mask[0] != 1:
            view.refuse(f"{view.names[3]!r} has size {mask[0]} along the batch")
        if state is not None and (len(mask) != 4 or state != Batch(0, batch.factor)):
            view.refuse("its mask carries the batch on another axis")
    return [Batch(0, batch.factor)] * len(view.node.output)


@rule("RotaryEmbedding")
def rotary(view: View) -> Sequence[State]:
    """Sample by sample; tables without the batch need positions, or one row for all samples."""
    batch = view.batch()
    for index in (1, 2, 3):
        state = view.state(index)
        table = index < 3 and view.has(3)
        single = state is None and (table or (view.has(index) and view.dims(index)[0] == 1))
        if view.has(index) and not single and (table or state != Batch(0, batch.factor)):
            view.refuse(f"{view.names[index]!r} does not carry the batch on axis 0")
    if batch.axis != 0:
        view.refuse(f"the batch is on axis {batch.axis}, not 0")
    return [batch]
