"""What a node says of shapes by itself: weights fix ranks and channels, other domains' operators.

ONNX's own inference starts at the graph's inputs and ends where it meets an operator that it does
not know. These facts hold wherever a node stands.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from bnpass.ir.graph import Dim
from bnpass.onnx_model.attributes import attribute, is_onnx

Dims = tuple[Dim, ...]
Lookup = Callable[[str], "Dims | None"]
"""The dimensions of a value as far as they are known."""


def of_outputs(node: onnx.NodeProto, dims: Lookup) -> list[Dims | None]:
    """What is known of a node's first outputs; entries may be None."""
    rule = (_OUTPUTS if is_onnx(node) else _OTHERS).get(node.op_type)
    return [] if rule is None else rule(node, dims)


def of_inputs(node: onnx.NodeProto, dims: Lookup) -> dict[str, Dims]:
    """What a node demands of the values that it reads."""
    rule = _INPUTS.get(node.op_type) if is_onnx(node) else None
    return {} if rule is None else rule(node, dims)


def stand_in(node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The operator of ONNX that gives the shapes of one of onnxruntime's own."""
    kind = _LIKE.get((node.domain, node.op_type))
    if kind is None or attribute(node, "transA", 0) or attribute(node, "transBatchA", 0):
        return None
    if kind == "MatMul" and (attribute(node, "transB", 0) or attribute(node, "transBatchB", 0)):
        return None
    made = onnx.helper.make_node(kind, node.input, node.output)
    names = onnx.defs.get_schema(kind).attributes
    made.attribute.extend(a for a in node.attribute if a.name in names)
    return made


_LIKE = {
    ("com.microsoft", "FusedConv"): "Conv",
    ("com.microsoft", "FusedGemm"): "Gemm",
    ("com.microsoft", "FusedMatMul"): "MatMul",
    ("com.microsoft", "TransposeMatMul"): "MatMul",
    ("com.microsoft", "BiasGelu"): "Add",
}


# --- layers


def _weight(node: onnx.NodeProto, dims: Lookup) -> Dims | None:
    """The dimensions of input 1 where all are known; a layer of two or more axes."""
    found = dims(node.input[1]) if len(node.input) > 1 else None
    known = found is not None and len(found) > 1 and all(isinstance(d, int) for d in found)
    return found if known else None


def _times(size: Dim, factor: int) -> Dim:
    return size * factor if isinstance(size, int) else None


def _conv(node: onnx.NodeProto, dims: Lookup, index: int, factor: int) -> Dims | None:
    weight = _weight(node, dims)
    if weight is None:
        return None
    return (None, _times(weight[index], factor), *(None,) * (len(weight) - 2))


def _group(node: onnx.NodeProto) -> int:
    return int(attribute(node, "group", 1))


def _conv_input(node: onnx.NodeProto, dims: Lookup) -> dict[str, Dims]:
    plain = node.op_type == "Conv"
    found = _conv(node, dims, 1 if plain else 0, _group(node) if plain else 1)
    return {} if found is None else {node.input[0]: found}


def _gemm_output(node: onnx.NodeProto, dims: Lookup) -> list[Dims | None]:
    weight = _weight(node, dims)
    rows = dims(node.input[0])
    n = None if weight is None else weight[0 if attribute(node, "transB", 0) else 1]
    axis = 1 if attribute(node, "transA", 0) else 0
    return [(rows[axis] if rows is not None and len(rows) == 2 else None, n)]


def _gemm_input(node: onnx.NodeProto, dims: Lookup) -> dict[str, Dims]:
    weight = _weight(node, dims)
    k = None if weight is None else weight[1 if attribute(node, "transB", 0) else 0]
    return {node.input[0]: (k, None) if attribute(node, "transA", 0) else (None, k)}


def _matmul_input(node: onnx.NodeProto, dims: Lookup) -> dict[str, Dims]:
    """The last axis, where the number of axes is known."""
    data, weight = dims(node.input[0]), _weight(node, dims)
    if data is None or weight is None or not data or isinstance(data[-1], int):
        return {}
    return {node.input[0]: (*data[:-1], weight[-2])}


def _channels(node: onnx.NodeProto, dims: Lookup) -> dict[str, Dims]:
    """A norm's scale has one entry a channel."""
    data, scale = dims(node.input[0]), dims(node.input[1]) if len(node.input) > 1 else None
    if data is None or len(data) < 2 or scale is None or len(scale) != 1:
        return {}
    return {node.input[0]: (data[0], scale[0], *data[2:])}


def _norm_output(node: onnx.NodeProto, dims: Lookup) -> list[Dims | None]:
    return [_channels(node, dims).get(node.input[0])]


def _recurrent_output(node: onnx.NodeProto, dims: Lookup) -> list[Dims | None]:
    weight = _weight(node, dims)
    hidden = attribute(node, "hidden_size")
    if weight is None or len(weight) != 3 or hidden is None:
        return []
    d = weight[0]
    if attribute(node, "layout", 0):
        return [(None, None, d, hidden), (None, d, hidden), (None, d, hidden)]
    return [(None, d, None, hidden), (d, None, hidden), (d, None, hidden)]


def _recurrent_input(node: onnx.NodeProto, dims: Lookup) -> dict[str, Dims]:
    weight = _weight(node, dims)
    if weight is None or len(weight) != 3:
        return {}
    found: dict[str, Dims] = {node.input[0]: (None, None, weight[2])}
    hidden = attribute(node, "hidden_size")
    for name in filter(None, node.input[5:7]):  # the states that it starts from
        swapped = attribute(node, "layout", 0)
        found[name] = (None, weight[0], hidden) if swapped else (weight[0], None, hidden)
    return found


def _pool_output(node: onnx.NodeProto, _: Lookup) -> list[Dims | None]:
    """A pool has an axis for each of its kernel's, behind samples and channels."""
    return [(None,) * (len(attribute(node, "kernel_shape", [])) + 2)]


_OUTPUTS: dict[str, Callable[[onnx.NodeProto, Lookup], list[Dims | None]]] = {
    "Conv": lambda node, dims: [_conv(node, dims, 0, 1)],
    "ConvTranspose": lambda node, dims: [_conv(node, dims, 1, _group(node))],
    "Gemm": _gemm_output,
    "BatchNormalization": _norm_output,
    "InstanceNormalization": _norm_output,
    "LSTM": _recurrent_output,
    "GRU": _recurrent_output,
    "RNN": _recurrent_output,
    "MaxPool": _pool_output,
    "AveragePool": _pool_output,
}

_INPUTS: dict[str, Callable[[onnx.NodeProto, Lookup], dict[str, Dims]]] = {
    "Conv": _conv_input,
    "ConvTranspose": _conv_input,
    "Gemm": _gemm_input,
    "MatMul": _matmul_input,
    "BatchNormalization": _channels,
    "InstanceNormalization": _channels,
    "LSTM": _recurrent_input,
    "GRU": _recurrent_input,
    "RNN": _recurrent_input,
}


# --- operators of other domains


def _like_first(node: onnx.NodeProto, dims: Lookup) -> list[Dims | None]:
    return [dims(node.input[0])]


def _skip_norm(node: onnx.NodeProto, dims: Lookup) -> list[Dims | None]:
    """Output 3 is the sum that was normalised."""
    return [dims(node.input[0]), None, None, dims(node.input[0])]


def _attention(node: onnx.NodeProto, dims: Lookup) -> list[Dims | None]:
    """(batch, sequence, hidden): the bias holds q, k and v, of equal sizes unless it says so."""
    data, bias = dims(node.input[0]), dims(node.input[2]) if len(node.input) > 2 else None
    given = attribute(node, "qkv_hidden_sizes")
    size: Dim = None
    if given:
        size = int(given[2])
    elif bias is not None and isinstance(bias[0], int):
        size = bias[0] // 3
    return [(data[0], data[1], size)] if data is not None and len(data) == 3 else []


_SAME = (
    "Gelu", "FastGelu", "QuickGelu", "BiasSoftmax", "LayerNormalization", "GroupNorm",
    "SimplifiedLayerNormalization", "RotaryEmbedding", "Scaler", "Normalizer", "Imputer",
    "Binarizer", "Trilu", "Inverse",
)  # fmt: skip
"""The first output has the first input's shape."""

_OTHERS: dict[str, Callable[[onnx.NodeProto, Lookup], list[Dims | None]]] = {
    **dict.fromkeys(_SAME, _like_first),
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "Attention": _attention,
}
_OUTPUTS |= {"SimplifiedLayerNormalization": _like_first, "LayerNormalization": _like_first}
