"""Models are written, with large weights in a file of their own where that is wanted or needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.errors import OutputError
from bnpass.files.groups import replacing, together, writing
from bnpass.files.leftovers import new_data_name
from bnpass.files.outputs import check_output
from bnpass.files.reading import PROTOBUF_LIMIT, PathLike
from bnpass.onnx_model.storage import external as ext

if TYPE_CHECKING:
    import onnx

_MARGIN = 64 * 2**20  # room for nodes and names beside the tensors' bytes


def save_model(
    model: onnx.ModelProto,
    path: PathLike,
    *,
    force: bool = False,
    source: PathLike | None = None,
    external: bool | None = None,
) -> Path:
    """Write an ONNX model in one step.

    The model is not changed. Tensors that are external already must lie in the target's folder.

    Args:
        model: what is written.
        path: where.
        force: replace an existing file.
        source: the input file, which is never written onto.
        external: put the initializers of 1 kB and more into ``NAME.<hash>.data`` beside the
            file; None does so only beyond the 2 GiB that one file can hold. The model that points
            to the data is renamed last, so a reader never sees one without the other.

    Raises:
        OutputError: as :func:`check_output`, or the operating system refuses.
        InputError: a tensor is external and its data is not in the target's folder.
    """
    path = check_output(path, force=force, source=source)
    size = _check_tensors(model, path.parent)
    if external is None:
        external = size > PROTOBUF_LIMIT - _MARGIN
    with together():
        _write_proto(_data_beside(model, path) if external else model, path, force=force)
    return path


def _write_proto(model: onnx.ModelProto, path: Path, *, force: bool) -> None:
    with replacing(path, force=force) as temporary:
        temporary.write_bytes(_serialize(model, path))


def _check_tensors(model: onnx.ModelProto, folder: Path) -> int:
    """Check where external tensors lie; return the bytes of all that the model itself holds.

    The bytes are those of types and shapes: protobuf's ByteSize would serialise the model.
    """
    for tensor in ext.tensors(model):
        if ext.is_external(tensor):
            ext.place(tensor, folder)
    return _bytes_held(model)


def _bytes_held(model: onnx.ModelProto) -> int:
    return sum(ext.nbytes(t) or 0 for t in ext.tensors(model) if not ext.is_external(t))


def _serialize(model: onnx.ModelProto, path: Path) -> bytes:
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        if _bytes_held(model) < PROTOBUF_LIMIT - _MARGIN:
            raise MemoryError from error  # protobuf tells the two not apart
        raise OutputError(f"larger than the 2 GiB that one ONNX file can hold: {path}",
                          "save it with external data (external=True)") from error


def _data_beside(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Write the large initializers to ``NAME.<hash>.data``; returns a model that points there.

    The data file goes again if the model is not written, unless an earlier output has the same
    data. A model without large initializers gets none.
    """
    import hashlib

    target = Path(os.path.realpath(path))
    draft = new_data_name(target)
    digest = hashlib.sha256()
    with together() as group, writing(path):
        with group.temporary(draft).open("wb") as file:
            written = ext.write(model.graph.initializer, file, digest)
        if not written:
            group.drop(draft)
            return model
        named = target.with_name(f"{target.name}.{digest.hexdigest()[:16]}.data")
        group.settle(draft, named)
    return _pointing(model, named.name, written)


def _pointing(
    model: onnx.ModelProto, location: str, written: dict[str, tuple[int, int]]
) -> onnx.ModelProto:
    """A copy of the model without the bytes of the tensors in ``written``."""
    import onnx

    copy = onnx.ModelProto()
    _copy_fields(model, copy, leave_out="graph")
    _copy_fields(model.graph, copy.graph, leave_out="initializer")
    for tensor in model.graph.initializer:
        light = copy.graph.initializer.add()
        if tensor.name in written:
            light.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type,
                                            dims=tensor.dims))
            if tensor.HasField("doc_string"):
                light.doc_string = tensor.doc_string
            ext.point(light, location, *written[tensor.name])
        else:
            light.CopyFrom(tensor)
    return copy


def _copy_fields(
    source: onnx.ModelProto | onnx.GraphProto, target: onnx.ModelProto | onnx.GraphProto,
    leave_out: str,
) -> None:
    for field, value in source.ListFields():
        if field.name == leave_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
