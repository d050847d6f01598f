"""The sidecar of a fold: the original model without what the folded one still holds.

A sidecar is itself an ONNX file; tensors that the folded model holds unchanged have no data in it.
It proves what it restores: it holds a hash of the folded model that it belongs to, a hash of the
original, and a checksum of itself, and :func:`undo` gives a model back only where all three agree.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import onnx

from bnpass.errors import InputError
from bnpass.files import check_input, parse_model
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.storage import external

_NOTE = "bnpass.sidecar"  # two hashes: of the folded model, of the original
_ITSELF = "bnpass.checksum"
_THERE = "bnpass-folded-model"  # the location of tensors that the folded model holds

_AGAIN = "take the file that 'bnpass fold --sidecar' wrote, from a backup, or fold again"


def make_sidecar(original: onnx.ModelProto, folded: onnx.ModelProto) -> bytes:
    """The file that :func:`undo` needs beside the folded model; both models hold their data."""
    kept = {t.name: t.SerializeToString(deterministic=True) for t in folded.graph.initializer}
    sidecar = copied(original)
    for tensor in sidecar.graph.initializer:
        if kept.get(tensor.name) == tensor.SerializeToString(deterministic=True):
            external.point(tensor, _THERE, 0, 0)
    sidecar.metadata_props.add(key=_NOTE, value=f"{fingerprint(folded)} {fingerprint(original)}")
    content = bytes(sidecar.SerializeToString())
    return content + _tail(content)


def _tail(content: bytes) -> bytes:
    """The checksum as metadata that is read with the rest: protobuf joins what is appended."""
    tail = onnx.ModelProto()
    tail.metadata_props.add(key=_ITSELF, value=_digest(content))
    return bytes(tail.SerializeToString())


def fingerprint(model: onnx.ModelProto) -> str:
    """A hash of everything in a model."""
    return _digest(model.SerializeToString(deterministic=True))


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def undo(folded: onnx.ModelProto, sidecar: Path) -> onnx.ModelProto:
    """The original model.

    Args:
        folded: the folded model with its data.
        sidecar: the file that :func:`make_sidecar` made for it.

    Raises:
        InputError: the sidecar is none, is damaged, or belongs to another folded model; or what
            comes out is not the original.
    """
    original = _read(sidecar)
    made_for, _, restores = original.metadata_props[-2].value.partition(" ")
    if made_for != fingerprint(folded):
        raise InputError(
            f"the sidecar belongs to another model: {sidecar}",
            "give the file that the same 'bnpass fold --sidecar' wrote, unchanged",
        )
    del original.metadata_props[-2:]
    tensors = {t.name: t for t in folded.graph.initializer}
    for tensor in original.graph.initializer:
        if any(entry.value == _THERE for entry in tensor.external_data):
            tensor.CopyFrom(tensors.get(tensor.name, onnx.TensorProto()))
    if restores != fingerprint(original):
        raise InputError(f"the sidecar does not give the original back: {sidecar}", _AGAIN)
    return original


def _read(path: Path) -> onnx.ModelProto:
    """A sidecar whose checksum agrees."""
    content = check_input(path).read_bytes()
    length = len(_tail(b""))
    whole = content[-length:] == _tail(content[:-length])
    sidecar = parse_model(path)
    keys = [p.key for p in sidecar.metadata_props]
    if whole and keys[-2:] == [_NOTE, _ITSELF]:
        return sidecar
    if not any(str(key).startswith(_NOTE) for key in keys):  # bytes where it is no UTF-8
        raise InputError(f"this is no sidecar of a fold: {path}",
                         "bnpass fold --sidecar FILE writes one")
    raise InputError(f"the sidecar is damaged, its checksum does not agree: {path}", _AGAIN)
