"""Models that are not valid ONNX: asked only once something has gone wrong with one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx

from bnpass.errors import BnpassError, InputError, NotLoadedError
from bnpass.onnx_model import shapes
from bnpass.onnx_model.attributes import is_onnx
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.validity import HINT, first_fault, norm_fault


def _may_be_the_models(error: Exception) -> bool:
    ours = isinstance(error, BnpassError) and not isinstance(error, NotLoadedError)
    return not ours and not isinstance(error, OSError | MemoryError | ImportError)


@contextlib.contextmanager
def blaming_the_model(model: Callable[[], onnx.ModelProto]) -> Iterator[None]:
    """Turn an exception inside into an InputError where a fault is found in the model.

    Checking every model beforehand would take longer than most folds.
    """
    try:
        yield
    except Exception as error:
        blamed = blame(error, [model()])
        if blamed is None:
            raise
        raise blamed from error


def blame(error: Exception, models: Iterable[Any]) -> InputError | None:
    """The error of the first of the models that is not valid; None where all are.

    Args:
        error: what happened.
        models: paths and ModelProtos; whatever else is there is passed over.
    """
    if not _may_be_the_models(error):
        return None
    for model in models:
        proto, name = _read(model)
        fault = None if proto is None else _fault(proto)
        if fault is not None:
            return InputError(f"not a valid ONNX model{name}: {fault}", HINT)
    return None


def _read(model: Any) -> tuple[onnx.ModelProto | None, str]:
    """A model without its data, and how a message names it."""
    if isinstance(model, onnx.ModelProto):
        return model, ""
    if not isinstance(model, str | os.PathLike) or not Path(model).is_file():
        return None, ""
    try:
        return onnx.load(model, load_external_data=False), f": {os.fspath(model)}"
    except Exception:  # noqa: BLE001 - it is no model at all: another argument
        return None, ""


def _fault(model: onnx.ModelProto) -> str | None:
    """One line on what is wrong with a model; None where nothing is found."""
    try:
        found = first_fault(model)
        if found is not None:
            return found
        if external.externals(model):  # the checker would look for the data in this folder
            onnx.shape_inference.infer_shapes(model, strict_mode=True)
        else:
            onnx.checker.check_model(model, full_check=True)
        return _wrong_channels(model)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        text = " ".join(str(error).split())[:300]
        # without memory the checker cannot even write the model down: that is no fault of it
        return None if isinstance(error, MemoryError) or "Failed to serialize" in text else text


def _wrong_channels(model: onnx.ModelProto) -> str | None:
    """A BatchNormalization with another number of parameters than channels; onnx lets it pass."""
    known = shapes.infer(model, trust=False)[()]
    for node in model.graph.node:
        if not is_onnx(node, "BatchNormalization") or len(node.input) < 5:
            continue
        dims = known.dims(node.input[0])
        channels = dims[1] if dims is not None and len(dims) > 1 else None
        found = {name: known.dims(name) for name in node.input[1:5]}
        sizes = {
            name: [d for d in dims if isinstance(d, int)]
            for name, dims in found.items()
            if dims is not None and all(isinstance(d, int) for d in dims)
        }
        fault = norm_fault(node, sizes, channels if isinstance(channels, int) else None)
        if fault is not None:
            return fault
    return None


def check_functions_norms(model: onnx.ModelProto) -> None:
    """Refuse BatchNormalizations inside of local functions whose parameters do not fit.

    What a function's values are only its callers know: they are looked at written out.

    Raises:
        InputError: names the node and the lengths.
    """
    if not any(n.op_type == "BatchNormalization" for f in model.functions for n in f.node):
        return
    import onnx.inliner

    fault = _wrong_channels(onnx.inliner.inline_local_functions(shapes.without_weights(model)))
    if fault is not None:
        raise InputError(f"not a valid ONNX model: {fault}", HINT)
