"""Normalisation and Dropout."""

from __future__ import annotations

import torch
from torch import nn

from bnpass.importer.functions import norm as functions
from bnpass.importer.modules import BatchNorm, Dropout
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import register_op
from bnpass.importer.values import Arg, Const

_SUFFIXES = ("weight", "bias", "running_mean", "running_var")


@register_op("BatchNormalization", since=7)
def batch_normalization(op: ImportedNode) -> Arg:
    """A module where it normalises with statistics of the file; else a function.

    ONNX keeps ``momentum`` of the old statistics, torch replaces ``momentum`` of them. With
    training_mode=1 (or, before opset 14, with more than one output) the batch's own statistics
    are used in every mode.
    """
    if op.opset < 9 and op.attr("spatial", 1) != 1:
        op.fail("spatial=0")
    training = bool(op.attr("training_mode", 0)) or any(map(op.wants, range(1, 5)))
    eps, keep = op.attr("epsilon", 1e-5), op.attr("momentum", 0.9)
    constant = all(isinstance(v, Const) for v in op.inputs[1:5])
    shapes = [op.shape(i) for i in range(1, 5)]
    if len(set(shapes) - {None}) > 1 or any(s is not None and len(s) != 1 for s in shapes):
        op.fail(f"scale, bias, mean and variance have the shapes {', '.join(map(str, shapes))}")
    if constant and not training:
        return op.module(*_module(op, eps, 1.0 - keep), op.tensor(0))
    scale, bias, mean, var = op.weight(1), op.weight(2), op.buffer(3), op.buffer(4)
    x = op.tensor(0)
    if not training:
        return op.call(functions.batch_norm, x, mean, var, scale, bias, eps)
    result = op.call(functions.batch_norm_training, x, scale, bias, mean, var, eps, keep)
    return op.items(result, 3)[: max(1, len(op.node.output))]


def _module(op: ImportedNode, eps: float, momentum: float) -> tuple[BatchNorm, str]:
    consts = [v for v in op.inputs[1:5] if isinstance(v, Const)]
    scale, bias, mean, var = consts
    key = ("BatchNormalization", *(c.name or id(c) for c in consts), eps, momentum)
    made: tuple[BatchNorm, str] | None = op.store.shared.get(key)
    if made is None:
        module = BatchNorm.empty(scale.numel, eps, momentum)
        path = op.store.module(_folder(op, [c.name for c in consts]), module)
        op.store.tie(scale, f"{path}.weight")
        op.store.tie(bias, f"{path}.bias")
        made = op.store.shared[key] = module, path
    for index, const, name in ((3, mean, "running_mean"), (4, var, "running_var")):
        op.store.own(const, f"{made[1]}.{name}", (op.node.output[0], index))
    return made  # the same for all nodes with these tensors: one layer, called several times


def _folder(op: ImportedNode, names: list[str]) -> str:
    """``bn1`` where torch named the tensors ``bn1.weight`` ...; else after the scale."""
    heads = {n.rpartition(".")[0] for n in names}
    if len(heads) == 1 and [n.rpartition(".")[2] for n in names] == list(_SUFFIXES):
        return heads.pop() or "bn"
    return names[0].removesuffix(".weight") or op.name


@register_op("Dropout")
def dropout(op: ImportedNode) -> Arg:
    """A module that drops in train mode; with training_mode true it drops always, as it says."""
    x = op.tensor(0)
    rate = op.attr("ratio", 0.5) if op.opset < 12 else op.number(1, 0.5)
    always = op.number(2, False) if op.opset >= 12 else False
    computed = any(isinstance(v, torch.fx.Node) for v in (rate, always))
    if computed or op.wants(1):
        general = Dropout()
        pair = op.module(general, op.store.module(op.name, general), x, rate, always)
        return op.items(pair, 2)[: len(op.node.output)]
    if always:
        return op.call(nn.functional.dropout, x, rate, training=True)
    module = nn.Dropout(rate)
    return op.module(module, op.store.module(op.name, module), x)


@register_op("InstanceNormalization")
def instance_normalization(op: ImportedNode) -> Arg:
    """Over the spatial axes of each sample and channel."""
    x, scale, bias = op.tensor(0), op.weight(1), op.weight(2)
    return op.call(functions.instance_norm, x, scale, bias, op.attr("epsilon", 1e-5))


@register_op("LayerNormalization")
def layer_normalization(op: ImportedNode) -> Arg:
    """Over all axes from ``axis`` on; computed in stash_type."""
    x, scale, bias = op.tensor(0), op.weight(1), op.weight(2)
    axis, eps = op.attr("axis", -1), op.attr("epsilon", 1e-5)
    if op.attr("stash_type", 1) != 1:
        op.fail("stash_type other than float")
    shape = op.shape(1)
    if not (op.wants(1) or op.wants(2)) and shape is not None and axis == -len(shape):
        return op.call(nn.functional.layer_norm, x, shape, scale, bias, eps)
    result = op.call(functions.layer_norm, x, scale, bias, axis, eps)
    return op.items(result, 3)[: len(op.node.output)]


@register_op("RMSNormalization")
def rms_normalization(op: ImportedNode) -> Arg:
    """Over all axes from ``axis`` on, without centring."""
    if op.attr("stash_type", 1) != 1:
        op.fail("stash_type other than float")
    axis, eps = op.attr("axis", -1), op.attr("epsilon", 1e-5)
    return op.call(functions.rms_norm, op.tensor(0), op.weight(1), axis, eps)


@register_op("GroupNormalization", since=18)
def group_normalization(op: ImportedNode) -> Arg:
    """Before opset 21 scale and bias are per group, since then per channel."""
    x, scale, bias = op.tensor(0), op.weight(1), op.weight(2)
    groups, eps = op.attr("num_groups"), op.attr("epsilon", 1e-5)
    if op.opset < 21:
        return op.call(functions.group_norm_per_group, x, groups, scale, bias, eps)
    return op.call(functions.group_norm, x, groups, scale, bias, eps)


@register_op("MeanVarianceNormalization")
def mean_variance_normalization(op: ImportedNode) -> Arg:
    """(x - mean) / (std + 1e-9) over ``axes``."""
    return op.call(functions.mean_variance_norm, op.tensor(0), op.attr("axes", (0, 2, 3)))


@register_op("LpNormalization")
def lp_normalization(op: ImportedNode) -> Arg:
    """X divided by its p-norm along one axis; a zero norm gives 0."""
    return op.call(functions.lp_norm, op.tensor(0), op.attr("axis", -1), op.attr("p", 2))
