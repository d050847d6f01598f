"""Models that are not valid ONNX: asked only once something has gone wrong with one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import onnx

from bnpass.errors import BnpassError, InputError
from bnpass.onnx_model import shapes
from bnpass.onnx_model.attributes import is_onnx, node_name
from bnpass.onnx_model.storage import external


@contextlib.contextmanager
def blaming_the_model(model: Callable[[], onnx.ModelProto]) -> Iterator[None]:
    """Turn an exception inside into an InputError where onnx finds a fault in the model.

    Checking every model beforehand would take longer than most folds.
    """
    try:
        yield
    except (BnpassError, OSError, MemoryError):
        raise
    except Exception as error:
        fault = _fault(model())
        if fault is None:
            raise
        raise InputError(
            f"not a valid ONNX model: {fault}",
            "onnx.checker.check_model(model, full_check=True) says more; export it again",
        ) from error


def _fault(model: onnx.ModelProto) -> str | None:
    """One line on what is wrong with a model; None where onnx finds nothing."""
    try:
        if external.externals(model):  # the checker would look for the data in this folder
            onnx.shape_inference.infer_shapes(model, strict_mode=True)
        else:
            onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return " ".join(str(error).split())[:200]
    return _wrong_channels(model)


def _wrong_channels(model: onnx.ModelProto) -> str | None:
    """A BatchNormalization with another number of parameters than channels; onnx lets it pass."""
    sizes = {t.name: list(t.dims) for t in model.graph.initializer}
    types = shapes.infer(model)[()].types
    for node in model.graph.node:
        if not is_onnx(node, "BatchNormalization") or len(node.input) < 5:
            continue
        dims = shapes.dims(types.get(node.input[0]))
        channels = dims[1] if dims is not None and len(dims) > 1 else None
        for name in node.input[1:5]:
            count = sizes.get(name)
            if isinstance(channels, int) and count is not None and count != [channels]:
                return (f"BatchNormalization {node_name(node)!r} has {count} parameters in "
                        f"{name!r} and {channels} channels")
    return None
