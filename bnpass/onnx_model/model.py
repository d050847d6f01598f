"""One ONNX model: its proto, and everything that is asked of it or written into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from bnpass.files import load_model
from bnpass.ir.graph import Constant
from bnpass.onnx_model import shapes
from bnpass.onnx_model.attributes import opset_of
from bnpass.onnx_model.constants import TensorConstant, held, load_tensor
from bnpass.onnx_model.evaluation import Evaluations
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.names import Names
from bnpass.onnx_model.scopes import Place, all_nodes
from bnpass.onnx_model.signature import Port, inputs_of, outputs_of
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.patching import PatchedData
from bnpass.onnx_model.validity import check_functions

Given = str | os.PathLike[str] | onnx.ModelProto
"""What people give as an ONNX model."""


class OnnxModel:
    """A ModelProto, the folder of its data files, and the store that takes new numbers.

    Args:
        proto: the model; edits are made in it.
        folder: where its external data lies, if it has any.
        store: takes new numbers of external tensors; None: they come into the model.
        again: makes the proto anew, as it was before any edit; None: it cannot be had.
        trust: take the file's own word of shapes where nothing else tells them.

    Attributes:
        proto, folder, store: as given.
        evaluated: what its constants cost that are computed from others.
    """

    evaluated: Evaluations

    def __init__(
        self,
        proto: onnx.ModelProto,
        folder: Path | None = None,
        store: PatchedData | None = None,
        again: Callable[[], onnx.ModelProto] | None = None,
        trust: bool = True,
    ) -> None:
        self.folder, self.store, self._again, self._trust = folder, store, again, trust
        self.proto = proto

    @classmethod
    def of(cls, model: Given | OnnxModel, *, data: bool = True) -> OnnxModel:
        """Read a file, or take what is given; nothing is copied.

        Args:
            model: a path, a ModelProto, or an OnnxModel, which comes back.
            data: also read the external data of a file; it stays where it is otherwise.

        Raises:
            InputError: no such file, or no ONNX model.
            BudgetError: its functions are too much work written out.
        """
        if isinstance(model, OnnxModel):
            return model
        if isinstance(model, onnx.ModelProto):
            check_functions(model)
            return cls(model, again=lambda: model)
        path = Path(model)
        return cls(load_model(path, data=data), path.parent,
                   again=lambda: load_model(path, data=data))

    @classmethod
    def to_edit(cls, model: Given | OnnxModel) -> OnnxModel:
        """A model that may be edited: a file read whole, or a copy of what is given.

        Raises:
            InputError: no such file, or no ONNX model.
        """
        made = cls.of(model)
        return made if isinstance(model, str | os.PathLike) else made.copy()

    def copy(self) -> OnnxModel:
        """The same with a proto of its own, to be edited."""
        return OnnxModel(copied(self.proto), self.folder, self.store, self.as_given)

    def twin(self) -> OnnxModel:
        """The same proto, which may be replaced in one of them by another."""
        return OnnxModel(self.proto, self.folder, self.store, self.as_given)

    def doubting(self) -> OnnxModel:
        """The same proto, of whose shapes the file's own word does not count."""
        return OnnxModel(self.proto, self.folder, self.store, self.as_given, trust=False)

    def as_given(self) -> onnx.ModelProto:
        """The model as it was before any edit, where that can be had."""
        return self.proto if self._again is None else self._again()

    @property
    def proto(self) -> onnx.ModelProto:
        """The model itself."""
        return self._proto

    @proto.setter
    def proto(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self.forget()

    def forget(self) -> None:
        """The proto was edited by others: names and shapes are read anew."""
        self.evaluated = Evaluations(self._proto)
        self.__dict__.pop("functions", None)
        self._names: Names | None = None
        self._types = shapes.LazyTypes(self._proto, self._trust)

    # --- what it says

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return opset_of(self.proto)

    @property
    def inputs(self) -> list[Port]:
        """What a caller feeds."""
        return inputs_of(self.proto)

    @property
    def outputs(self) -> list[Port]:
        """What comes out."""
        return outputs_of(self.proto)

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Every node: of the graph, of bodies inside it, of the model's functions."""
        return all_nodes(self.proto)

    def known(self, place: Place = ()) -> Callable[[], shapes.Known]:
        """A function that returns what is known of the values of the graph at a place."""
        return self._types.at(place)

    @property
    def stated(self) -> tuple[str, ...]:
        """Values of whose shapes only the file's word was there, of those asked for so far."""
        return self._types.stated

    @cached_property
    def functions(self) -> dict[tuple[str, str], onnx.FunctionProto]:
        """Its functions by domain and name."""
        return {(f.domain, f.name): f for f in self.proto.functions}

    # --- numbers

    def place(self, tensor: onnx.TensorProto) -> external.Place:
        """Where the numbers of an external tensor lie now.

        Raises:
            InputError: the file is missing, cut off, or outside of the model's folder.
        """
        if self.store is not None:
            return self.store.place(tensor)
        if self.folder is None:
            raise ValueError(f"external data of {tensor.name!r}: the model's folder is not known")
        return external.place(tensor, self.folder)

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """A tensor's numbers."""
        return load_tensor(tensor, self)

    def view(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The same, without a copy where that can be had: external data is read as it is used."""
        if not external.is_external(tensor):
            return held(tensor)
        where = self.place(tensor)
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        if not where.length:
            return np.zeros(tuple(tensor.dims), kind)
        with external.opened(where.path) as file:
            return np.memmap(file, kind, "r", where.offset, tuple(tensor.dims))

    def embedded(self) -> onnx.ModelProto:
        """The proto with all of its data in it: a copy where some lies in files."""
        if self.folder is None or not external.externals(self.proto):
            return self.proto
        copy = copied(self.proto)
        external.embed(copy, self.folder)
        return copy

    def constant(self, name: str, tensor: onnx.TensorProto) -> Constant:
        """A tensor as a constant of the neutral view; nothing is read before it is asked for."""
        return TensorConstant(name, tensor, self)

    # --- names

    def fresh(self, base: str) -> str:
        """A name that nothing in the model has yet, ``base`` if it is free."""
        if self._names is None:
            self._names = Names(self.proto)
        return self._names.fresh(base)
