"""Inputs of a model whose values are the same in every run, as the user says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from bnpass.errors import InputError, close_matches
from bnpass.importer.values import from_array, to_array, torch_dtype, type_name
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.shapes import stated


def given_inputs(model: onnx.ModelProto, values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors of the inputs' own types, by name.

    Args:
        model: with the inputs.
        values: arrays, numbers or lists of them, by name.

    Raises:
        InputError: there is no such input, or its shape or type is another one.
    """
    inputs = {i.name: i for i in model.graph.input}
    found = {}
    for name, value in values.items():
        if name not in inputs:
            raise InputError(f"the model has no input {name!r}", close_matches(name, inputs))
        found[name] = _tensor(name, value, inputs[name])
    return found


def _tensor(name: str, value: Any, port: onnx.ValueInfoProto) -> torch.Tensor:
    kind = port.type.tensor_type
    dtype = torch_dtype(kind.elem_type)
    if dtype is None:
        raise InputError(f"input {name!r} has the type {type_name(kind.elem_type)}", "")
    wanted = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    array = np.asarray(value)
    exact = array.astype(wanted)
    if not np.array_equal(exact, array) and not np.issubdtype(wanted, np.floating):
        raise InputError(f"input {name!r} is {wanted}, the value given for it is {value!r}", "")
    dims = stated(port)
    if dims is not None:
        if exact.size == 1 and all(d == 1 or not isinstance(d, int) for d in dims):
            exact = exact.reshape((1,) * len(dims))
        if len(dims) != exact.ndim or any(
            isinstance(d, int) and d != n for d, n in zip(dims, exact.shape, strict=True)
        ):
            raise InputError(
                f"input {name!r} has the shape {list(dims)}, the value given for it "
                f"{list(exact.shape)}",
                "give an array of that shape",
            )
    return from_array(exact, dtype)


def with_constants(model: onnx.ModelProto, given: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    """A copy for analysis, in which the inputs given are initializers."""
    result = copied(model)
    kept = [i for i in result.graph.input if i.name not in given]
    del result.graph.input[:]
    result.graph.input.extend(kept)
    for name, tensor in given.items():
        result.graph.initializer.append(numpy_helper.from_array(to_array(tensor), name))
    return result
