"""Normalisation of the input, (x - offset) / divisor: put in front of a model, folded into it."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from bnpass.errors import InputError
from bnpass.frontends.onnx.folding import Folded, FoldOptions, fold, plan, then_inside
from bnpass.onnx_model.messages import add_initializer, copied
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.names import Names
from bnpass.onnx_model.scopes import bodies
from bnpass.onnx_model.signature import Port, dtype_of, inputs_of, is_float
from bnpass.passes.fold import FoldPlan

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class InFront:
    """A model with Sub and Div behind its first input.

    Attributes:
        model: the model; the sizes along ``axis`` are known in it.
        port: the first input of the model that it was made from.
        nodes: names of the nodes that were added: Sub, Div, or one of them.
    """

    model: onnx.ModelProto
    port: Port
    nodes: tuple[str, ...]


def put_in_front(
    model: onnx.ModelProto, offset: Numbers, divisor: Numbers, axis: int | None = None
) -> InFront:
    """The model that takes x where the given one takes (x - offset) / divisor.

    Args:
        model: left as it is; it holds its data.
        offset: one number, or one for each channel of the first input.
        divisor: the same; no 0.
        axis: the channels' axis of that input, batch included; None finds it by its size.

    Raises:
        InputError: the input is no float tensor of known rank, has no such channels, or is an
            output too.
    """
    port = _first_input(model)
    copy = copied(model)
    count = max(len(offset), len(divisor))
    axis = _axis(port, count, axis)
    _fix_size(copy, port.name, axis, count)
    names = Names(copy)
    last, dtype = port.name, dtype_of(port.kind)
    added: list[onnx.NodeProto] = []
    for kind, numbers, neutral in (("Sub", offset, 0.0), ("Div", divisor, 1.0)):
        if (numbers == neutral).all():
            continue
        word = {"Sub": ("centred", "mean"), "Div": ("normalised", "std")}[kind]
        result, constant = (names.fresh(f"{port.name}_{part}") for part in word)
        shape = [1] * len(port.shape or ())
        shape[axis] = len(numbers)
        array = numbers.astype(dtype).reshape(shape)
        add_initializer(copy, numpy_helper.from_array(array, constant))
        added.append(helper.make_node(kind, [last, constant], [result], name=result))
        last = result
    _rename_reads(copy.graph.node, port.name, last)
    for position, node in enumerate(added):
        copy.graph.node.insert(position, node)
    return InFront(copy, port, tuple(node.name for node in added))


def fold_in_front(front: InFront, options: FoldOptions | None = None) -> Folded:
    """Fold the normalisation, and then what ``options`` ask for; None asks for nothing more.

    1. Every layer that reads the input takes in scale and shift (no padding): no node stays.
    2. They take in the scale alone (padding puts in zeros behind the shift): one Sub stays.
    3. They take in nothing (something else reads the input, too): Sub and Div stay.

    The plan says of each node what became of it, with the reason if it stays. ``front`` is left as
    it is.
    """
    given = options or FoldOptions()
    own = tuple(glob.escape(name) for name in front.nodes)
    model = OnnxModel.of(front.model).copy()
    done = _first_fold(model, own, given)
    only = own if options is None else given.only and (*given.only, *own)
    rest = fold(model, replace(given, only=only))
    _restore_size(model.proto, front.port)
    stays = [e for e in rest.plan.arithmetic if set(e.nodes) & set(front.nodes)]
    entries = [*done.plan.entries, *stays, *rest.plan.entries]
    found = done.correspondences.then(rest.correspondences)
    return Folded(model, replace(rest.plan, entries=entries), found, done.grown + rest.grown,
                  inside=then_inside(done.inside, rest.inside))


def _first_fold(model: OnnxModel, own: tuple[str, ...], options: FoldOptions) -> Folded:
    """Cases 1 and 2, before anything else changes the layers that read the input."""
    for only in dict.fromkeys((own, own[1:])):
        wanted = replace(options, only=only, skip=())
        planned = plan(model, wanted).plan if only else FoldPlan()
        if planned.folded and not planned.refused:
            return fold(model, wanted)
    return Folded(model, FoldPlan())


def _first_input(model: onnx.ModelProto) -> Port:
    ports = inputs_of(model)
    if not ports or not ports[0].shape or not is_float(dtype_of(ports[0].kind)):
        name = f"the input {ports[0].name!r}" if ports else "the model's input"
        raise InputError(f"{name} is no float tensor of known rank",
                         "normalisation goes in front of images and the like")
    if any(output.name == ports[0].name for output in model.graph.output):
        raise InputError(f"the input {ports[0].name!r} is an output too",
                         "it would have to be normalised and not, at once")
    return ports[0]


def _axis(port: Port, count: int, axis: int | None) -> int:
    shape = port.shape or ()
    if count == 1:
        return min(1, len(shape) - 1)
    places = (1, len(shape) - 1) if axis is None else (axis,)
    fitting = [p for p in places if 0 < p < len(shape) and shape[p] == count]
    fitting += [p for p in places if 0 < p < len(shape) and not isinstance(shape[p], int)]
    if not fitting:
        raise InputError(f"{count} numbers to normalise with, but an input of shape {list(shape)}",
                         "give one number, or one for each channel")
    return fitting[0]


def _fix_size(model: onnx.ModelProto, name: str, axis: int, count: int) -> None:
    """Say how many channels an input has: as many as numbers, where the model leaves it open."""
    dim = _value(model, name).type.tensor_type.shape.dim[axis]
    if count > 1 and not dim.dim_value > 0:
        dim.dim_value = count


def _restore_size(model: onnx.ModelProto, port: Port) -> None:
    for dim, size in zip(_value(model, port.name).type.tensor_type.shape.dim, port.shape or (),
                         strict=True):
        if isinstance(size, str):
            dim.dim_param = size
        elif size is None:
            dim.ClearField("value")


def _value(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    named: dict[str, onnx.ValueInfoProto] = {v.name: v for v in model.graph.input}
    return named[name]


def _rename_reads(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Let nodes, and bodies that read the value from outside, read another one."""
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        for body in bodies(node):
            own = {value.name for value in (*body.input, *body.initializer)}
            if old in own or any(old in inner.output for inner in body.node):
                continue  # a value of its own under the same name
            _rename_reads(body.node, old, new)
            for output in body.output:
                output.name = new if output.name == old else output.name
