"""The BatchNormalization nodes of an ONNX model: finding, reading and writing their statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnpass.errors import InputError, UnsupportedError, UsageError, close_matches
from bnpass.ir.affine import at_channel, infinite_channel
from bnpass.onnx_model.attributes import attribute, node_name, opset_of, set_attributes
from bnpass.onnx_model.messages import add_initializer
from bnpass.onnx_model.names import Names
from bnpass.onnx_model.scopes import all_nodes, captured_by

Array = np.ndarray[Any, Any]
MEAN, VAR = 3, 4  # input slots of BatchNormalization, every version


def is_batch_norm(node: onnx.NodeProto) -> bool:
    """Say whether a node is ONNX's BatchNormalization."""
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")


def batch_norms(
    model: onnx.ModelProto, only: Sequence[str] = (), frozen: Sequence[str] = ()
) -> list[onnx.NodeProto]:
    """Return the BatchNormalization nodes of the main graph, in order.

    Args:
        model: the model.
        only: glob patterns on node names; empty means all.
        frozen: glob patterns on node names to leave out.

    Raises:
        UsageError: a pattern matches no BatchNormalization.
        UnsupportedError: a version whose statistics are not one pair a channel.
    """
    found = [n for n in model.graph.node if is_batch_norm(n)]
    names = [node_name(n) for n in found]
    for pattern in (*only, *frozen):
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = close_matches(pattern, names) or "`bnpass inspect` lists them"
            raise UsageError(f"no BatchNormalization is called {pattern!r}", hint)
    chosen = [n for n, name in zip(found, names, strict=True) if _wanted(name, only, frozen)]
    for node in chosen:
        _check_version(node, opset_of(model))
    return chosen


def _wanted(name: str, only: Sequence[str], frozen: Sequence[str]) -> bool:
    kept = not only or any(fnmatchcase(name, p) for p in only)
    return kept and not any(fnmatchcase(name, p) for p in frozen)


def _check_version(node: onnx.NodeProto, opset: int) -> None:
    if opset < 7:
        raise UnsupportedError(
            f"BatchNormalization {node_name(node)!r} is of opset {opset}: onnxruntime has none "
            "older than 7",
            "convert the model: onnx.version_converter.convert_version(model, 17)",
        )
    if not attribute(node, "spatial", 1):
        raise UnsupportedError(
            f"BatchNormalization {node_name(node)!r} normalises every position on its own "
            "(spatial=0)"
        )
    if any(node.output[1:]):
        raise UnsupportedError(
            f"BatchNormalization {node_name(node)!r} gives its running statistics as outputs",
            "export the model in eval mode",
        )


def in_training_mode(model: onnx.ModelProto) -> list[str]:
    """Return the names of all BatchNormalization nodes, in bodies and functions too, that are
    computed with the statistics of the batch at hand.
    """
    opset = opset_of(model)
    return [node_name(n) for n in all_nodes(model) if is_batch_norm(n) and _trains(n, opset)]


def _trains(node: onnx.NodeProto, opset: int) -> bool:
    if opset < 7:
        return not attribute(node, "is_test", 0)
    if opset < 14:  # versions 7 and 9: more than one output means training
        return any(node.output[1:])
    return bool(attribute(node, "training_mode", 0))


@dataclass(frozen=True)
class Statistics:
    """Population statistics of one BN, (C,) float64 each."""

    mean: Array
    var: Array


class Writer:
    """Writes statistics into a model, in place; a tensor that others read too is cloned first."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._initializers: dict[str, onnx.TensorProto] = {
            t.name: t for t in model.graph.initializer
        }
        self._constants = {
            n.output[0]: n for n in model.graph.node if n.op_type == "Constant" and n.output
        }
        self._inputs = {v.name for v in model.graph.input}
        self._computed = {o: n for n in model.graph.node for o in n.output}
        self._readers = Counter(i for n in all_nodes(model) for i in n.input)
        self._readers.update(o.name for o in model.graph.output)

    def write(self, node: onnx.NodeProto, found: Statistics) -> None:
        """Put statistics into one BN.

        Raises:
            InputError: they are not finite in the tensor's type, or the tensor is no constant.
        """
        for slot, values, what in ((MEAN, found.mean, "mean"), (VAR, found.var, "var")):
            self._put(node, slot, values, what)

    def read(self, node: onnx.NodeProto, slot: int) -> Array:
        """Return the constant at an input of a BN, computed if other constants are behind it.

        Raises:
            InputError: it is no constant.
        """
        tensor = self._tensor(node, slot)
        return self._evaluate(node.input[slot]) if tensor is None else numpy_helper.to_array(tensor)

    def _tensor(self, node: onnx.NodeProto, slot: int) -> onnx.TensorProto | None:
        """Return the tensor, or None for one that is computed from constants."""
        name = node.input[slot]
        tensor = self._initializers.get(name)
        if tensor is not None:
            return tensor
        if name in self._constants:
            value = attribute(self._constants[name], "value", None)
            if isinstance(value, onnx.TensorProto):
                found: onnx.TensorProto = value
                return found
        if name in self._computed and self._is_constant(name):
            return None
        raise InputError(
            f"the statistics of {node_name(node)!r} are fed or computed from inputs ({name!r})",
            "make them initializers, or freeze this BN",
        )

    def _is_constant(self, name: str) -> bool:
        queue, seen = [name], {name}
        while queue:
            current = queue.pop()
            node = self._computed.get(current)
            if node is None and current not in self._initializers:
                return False
            if node is not None and (node.op_type.startswith("Random") or captured_by(node)):
                return False
            new = [i for i in (node.input if node is not None else ()) if i and i not in seen]
            seen.update(new)
            queue += new
        return True

    def _evaluate(self, name: str) -> Array:
        """Compute a constant with onnxruntime, in a model of just the nodes that it takes."""
        from bnpass.runtime.session import run, session
        from bnpass.statistics.nodes import prune

        shell = onnx.ModelProto(ir_version=max(self.model.ir_version, 4))
        shell.opset_import.extend(self.model.opset_import)
        shell.graph.name = "constant"
        shell.graph.node.extend(self.model.graph.node)
        shell.graph.output.add(name=name)
        prune(shell)
        read = {i for n in shell.graph.node for i in n.input}
        shell.graph.initializer.extend(t for n, t in self._initializers.items() if n in read)
        found: Array = run(session(shell), None, {})[0]
        return found

    def _put(self, node: onnx.NodeProto, slot: int, values: Array, what: str) -> None:
        old = self._tensor(node, slot)
        kind = old and helper.tensor_dtype_to_np_dtype(old.data_type)
        dtype = kind if kind is not None else self.read(node, slot).dtype
        with np.errstate(over="ignore"):
            cast = values.astype(dtype)
        if not np.isfinite(cast.astype(np.float64)).all():
            at = at_channel(infinite_channel(cast.astype(np.float64)))
            raise InputError(
                f"the {what} of {node_name(node)!r} is not finite in {np.dtype(dtype)}{at}",
                "look for Inf in the network in front of it",
            )
        name = node.input[slot]
        if old is None or self._readers[name] > 1:
            self._readers[name] -= 1
            name = node.input[slot] = self._names.fresh(f"{node_name(node)}.running_{what}")
            self._readers[name] = 1
        self._store(name, numpy_helper.from_array(cast, name))

    @cached_property
    def _names(self) -> Names:
        return Names(self.model)

    def _store(self, name: str, tensor: onnx.TensorProto) -> None:
        if name in self._constants:
            set_attributes(self._constants[name], value=tensor)
        elif name in self._initializers:
            tensor.doc_string = self._initializers[name].doc_string
            self._initializers[name].CopyFrom(tensor)
        else:
            self._initializers[name] = add_initializer(self.model, tensor)
