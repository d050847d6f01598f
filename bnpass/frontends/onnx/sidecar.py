"""The sidecar of a fold: the original model without what the folded one still holds.

``undo(folded, sidecar)`` is the original again, to the byte: names, order, weights, statistics.
A sidecar is itself an ONNX file; tensors that the folded model holds unchanged have no data in it.
"""

from __future__ import annotations

import hashlib

import onnx

from bnpass.errors import InputError
from bnpass.onnx_model.storage import external

_HERE = "bnpass.sidecar.sha256"
_THERE = "bnpass-folded-model"  # the location of tensors that the folded model holds


def make_sidecar(original: onnx.ModelProto, folded: onnx.ModelProto) -> onnx.ModelProto:
    """What :func:`undo` needs beside the folded model; both models hold their data."""
    kept = {t.name: t.SerializeToString(deterministic=True) for t in folded.graph.initializer}
    sidecar = onnx.ModelProto()
    sidecar.CopyFrom(original)
    for tensor in sidecar.graph.initializer:
        if kept.get(tensor.name) == tensor.SerializeToString(deterministic=True):
            external.point(tensor, _THERE, 0, 0)
    sidecar.metadata_props.add(key=_HERE, value=fingerprint(folded))
    return sidecar


def fingerprint(model: onnx.ModelProto) -> str:
    """A hash of everything in a model."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def undo(folded: onnx.ModelProto, sidecar: onnx.ModelProto) -> onnx.ModelProto:
    """The original model.

    Raises:
        InputError: the sidecar is none, or belongs to another folded model.
    """
    notes = {p.key: p.value for p in sidecar.metadata_props}
    if _HERE not in notes:
        raise InputError("this is no sidecar of a fold", "bnpass fold --sidecar FILE writes one")
    if notes[_HERE] != fingerprint(folded):
        raise InputError(
            "the sidecar belongs to another model",
            "give the file that the same 'bnpass fold --sidecar' wrote, unchanged",
        )
    original = onnx.ModelProto()
    original.CopyFrom(sidecar)
    place = next(i for i, p in enumerate(original.metadata_props) if p.key == _HERE)
    del original.metadata_props[place]
    tensors = {t.name: t for t in folded.graph.initializer}
    for tensor in original.graph.initializer:
        if any(entry.value == _THERE for entry in tensor.external_data):
            tensor.CopyFrom(tensors[tensor.name])
    return original
