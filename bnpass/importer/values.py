"""What flows along the edges while a model is imported: constants and traced values."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from bnpass.errors import UnsupportedError
from bnpass.importer.gates import Order, arranged, fits, inverse
from bnpass.onnx_model.storage import external

DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}
"""ONNX element types that torch has too."""

WEIGHT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)

KEPT = 1024
"""Elements up to which a constant may be what shape arithmetic reads."""

# torch.from_numpy does not know the types of ml_dtypes: their bits travel as integers.
_BITS = {1: np.uint8, 2: np.int16}


def torch_dtype(elem_type: int) -> torch.dtype | None:
    """The torch dtype of an ONNX element type, or None where torch has none."""
    return DTYPES.get(elem_type)


def type_name(elem_type: int) -> str:
    """The ONNX name of an element type, for messages."""
    return str(TensorProto.DataType.Name(elem_type)).lower()


def to_tensor(proto: TensorProto, folder: Path | None = None) -> torch.Tensor:
    """A writable tensor with the values of ``proto`` (one copy).

    Args:
        proto: the values, or where they lie.
        folder: of the model, if they may lie in another file.
    """
    dtype = DTYPES.get(proto.data_type)
    if dtype is None:
        raise UnsupportedError(
            f"constant {proto.name!r} has the type {type_name(proto.data_type)}",
            "bnpass imports float, integer and boolean tensors",
        )
    if folder is not None and external.is_external(proto):
        return from_array(_read(proto, folder), dtype)
    return from_array(numpy_helper.to_array(proto), dtype)


def _read(proto: TensorProto, folder: Path) -> np.ndarray:
    place = external.place(proto, folder)
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(proto.data_type))
    little = external.read(place).view(kind)
    return (little if sys.byteorder == "little" else little.byteswap()).reshape(tuple(proto.dims))


def dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    """A sparse tensor with its zeros, under the same name; indices are linear or coordinates."""
    shape = tuple(sparse.dims)
    places, values = numpy_helper.to_array(sparse.indices), numpy_helper.to_array(sparse.values)
    array = np.zeros(shape, values.dtype)
    if places.ndim == 1:
        array.reshape(-1)[places] = values
    else:
        array[tuple(places.T)] = values
    return numpy_helper.from_array(array, sparse.values.name)


def from_array(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that owns a copy of ``array``, whose element type is ``dtype``'s twin.

    In torch's own memory: its kernels are slower on numpy's, which is aligned to 16 bytes only.
    """
    array = array if array.flags.c_contiguous else array.copy(order="C")
    if array.dtype.isbuiltin != 1:
        return torch.tensor(array.view(_BITS[array.dtype.itemsize])).view(dtype)
    return torch.tensor(array)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor on any device as an array (bfloat16 as ml_dtypes' type)."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        kind = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
        bits: np.ndarray = tensor.view(torch.int16).numpy()
        return bits.view(kind)
    array: np.ndarray = tensor.numpy()
    return array


class Const:
    """A value that is the same in every run.

    Attributes:
        name: its ONNX name if it is an initializer or a Constant node's output; empty if computed.
        shape: its dimensions.
        dtype: its torch element type.
        numeric: a number that steers an operator (scales of a Resize), so never a weight.
        gates: the order of the blocks of axis 1 in :attr:`tensor`; empty: as in the file.
    """

    def __init__(
        self,
        name: str = "",
        proto: TensorProto | None = None,
        tensor: torch.Tensor | None = None,
        release: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self._proto = proto
        self._tensor = tensor
        self._release = release
        self._folder = folder
        self.numeric = False
        self.gates: Order = ()
        if tensor is not None:
            self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        elif proto is not None:
            self.shape = tuple(proto.dims)
            self.dtype = DTYPES.get(proto.data_type, torch.uint8)
            self._bad_type = proto.data_type not in DTYPES

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def is_weight(self) -> bool:
        """Whether this is a float constant of the file with more than one element."""
        trainable = bool(self.name) and not self.numeric and self.dtype.is_floating_point
        return trainable and self.numel > 1

    @property
    def tensor(self) -> torch.Tensor:
        """The values; converted on first use, and then held once."""
        if self._tensor is None:
            assert self._proto is not None
            self._tensor = to_tensor(self._proto, self._folder)
            if self._release and self.numel > KEPT:  # shape inference reads the small ones later
                self._proto.ClearField("raw_data")
            self._proto = None
            if self.gates:
                self._tensor = arranged(self._tensor, self.gates)
        return self._tensor

    def copy(self) -> torch.Tensor:
        """The values as the file has them, in memory of their own."""
        tensor = self.tensor
        return arranged(tensor, inverse(self.gates)) if self.gates else tensor.clone()

    def arrange(self, order: Order) -> None:
        """Hold the blocks of axis 1 in this order from now on, if there are such."""
        if not fits(order, self.shape):
            return
        self.gates = order
        if self._tensor is not None:
            self._tensor = arranged(self._tensor, order)


Entry = int | torch.fx.Node
"""A whole number, or an fx node that makes one."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A value that is computed when the module runs.

    Attributes:
        node: the torch.fx node that computes it.
        dtype: its element type where the import knows it.
        host: it holds sizes or indices and stays on the CPU whatever the module's device.
        sizes: its dimensions, where shape arithmetic has made them.
    """

    node: torch.fx.Node
    dtype: torch.dtype | None = None
    host: bool = False
    sizes: tuple[Entry, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """A vector of int64, or a scalar, of which some entries are known only when the module runs.

    Attributes:
        entries: numbers, and fx nodes that make one Python number each.
        scalar: rank 0, with one entry.
    """

    entries: tuple[Entry, ...]
    scalar: bool
    dtype: ClassVar[torch.dtype] = torch.int64
    host: ClassVar[bool] = True


Value = Const | Traced | Sizes
Arg = Any
"""An argument of a call: an fx node (a tensor while constants are folded) or a plain literal."""
