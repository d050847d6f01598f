"""The numbers of a fold: all worked out, rounded once and judged before anything is edited.

New weights of a model whose data lies in files go there piece by piece as they are worked out, so
that memory stays near the largest one; :meth:`PatchedData.commit` makes them count.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx

from bnpass.frontends.onnx.read import Reading, Scope
from bnpass.ir.affine import Map, all_finite, infinite_channel
from bnpass.ir.edits import LEFTOVER_EPSILON, AddedOperator, GraphEdits, Leftover, Rewrite
from bnpass.ir.graph import Op
from bnpass.ir.scaled import Scaled
from bnpass.ir.weights import kernel_form, new_kernels, new_weights
from bnpass.onnx_model.messages import np_dtype
from bnpass.onnx_model.storage import external
from bnpass.onnx_model.storage.patching import Staged
from bnpass.passes.context import GraphContext
from bnpass.rules import RuleContext

_TOGETHER = 1 << 17  # entries of kernels rewritten at once: 1 MiB in float64

Numbers = np.ndarray | Staged
"""A new constant, in the type of the old one; or where it waits in a data file."""


@dataclass
class NewOperator:
    """What changes of one operator.

    Attributes:
        op: the operator.
        constants: by input index, in the order in which they are stored.
        copies: by input index, where others read the old constant: operators whose new one is
            equal share a copy, and its key.
        attrs: attributes with new values.
        add: what an Add behind it adds; None: there is none.
    """

    op: Op
    constants: dict[int, Numbers] = field(default_factory=dict)
    copies: dict[int, str] = field(default_factory=dict)
    attrs: dict[str, float] = field(default_factory=dict)
    add: np.ndarray | None = None


@dataclass
class ScopeNumbers:
    """All new numbers of one graph.

    Attributes:
        operators: in the order in which they are edited; one may come several times.
        leftovers: by the name of a chain's last operator: its constants by their role.
        added: constants of operators that come, in the order of the edits, by input index.
    """

    operators: list[NewOperator] = field(default_factory=list)
    leftovers: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    added: list[dict[int, np.ndarray]] = field(default_factory=list)


class Calculation:
    """Works the numbers of a model's fold out, graph by graph, in the order of the edits.

    Args:
        reading: the model.
        keep: False: the numbers are only judged.

    Attributes:
        overflowed: names of operators with new weights that the weights' own type cannot hold, and
            the first channel at which, where that is known.
        growth: bytes of weights that have to be stored a second time, by the operator for which.
    """

    def __init__(self, reading: Reading, *, keep: bool = True) -> None:
        self.reading, self.model, self._keep = reading, reading.model, keep
        self.overflowed: dict[str, int | None] = {}
        self.growth: Counter[str] = Counter()
        self._copies: dict[str, tuple[str, np.ndarray | None]] = {}
        self._released: Counter[tuple[int, str]] = Counter()

    def numbers(self, scope: Scope, edits: GraphEdits) -> ScopeNumbers:
        """The new numbers of one graph."""
        found = ScopeNumbers()
        context = GraphContext(scope.graph)
        alike, others = _by_form(edits.rewrites, context)
        for group in alike:
            found.operators += self._kernels(scope, group, context)
        found.operators += [self._rewritten(scope, rewrite, context) for rewrite in others]
        for new in edits.constants:
            array = new.make()[np.newaxis]
            found.operators += self.rounded(scope, [new.op], new.index, array)
        found.added = [self._added_constants(scope, one) for one in edits.added]
        for left in edits.leftovers:
            found.leftovers[left.ops[-1].name] = self._leftover(scope, left)
        for op, index in edits.removed:
            self._release(scope, *op.inputs[:index], *op.inputs[index + 1 :])
        return found if self._keep else ScopeNumbers()

    def _kernels(
        self, scope: Scope, group: Sequence[Rewrite], context: RuleContext
    ) -> list[NewOperator]:
        ops, new = [rewrite.op for rewrite in group], new_kernels(group, context)
        made = []
        for index, arrays in new.constants.items():
            made += self.rounded(scope, ops, index, arrays)
        for index, scaled in new.scaled.items():
            made.append(self._scaled(scope, ops[0], index, scaled))
        return made

    def _rewritten(self, scope: Scope, rewrite: Rewrite, context: RuleContext) -> NewOperator:
        op, new = rewrite.op, new_weights(rewrite, context)
        made = NewOperator(op, attrs=new.attrs)
        for index, array in sorted(new.constants.items()):
            (one,) = self.rounded(scope, [op], index, array[np.newaxis])
            made.constants.update(one.constants)
            made.copies.update(one.copies)
        for index, scaled in new.scaled.items():
            one = self._scaled(scope, op, index, scaled)
            made.constants.update(one.constants)
            made.copies.update(one.copies)
        if new.add is not None:
            made.add = self._added(scope, op, new.add)
        return made

    def rounded(
        self, scope: Scope, ops: Sequence[Op], index: int, arrays: np.ndarray
    ) -> list[NewOperator]:
        """Constants (n, *shape) of n operators, in the type of the first one's old constant."""
        old = scope.graph.constant(ops[0].input(index))
        dtype = old.dtype if old is not None else _weight_dtype(scope, ops[0], index)
        made = []
        whole = self._judged([op.name for op in ops], arrays, dtype)
        for op, array in zip(ops, whole, strict=True):
            tensor, store = self._own_external(scope, op, index), self.model.store
            numbers: Numbers = array
            fits = tensor is not None and tuple(tensor.dims) == array.shape
            if self._keep and tensor is not None and fits and store is not None:
                numbers = store.stage(tensor, [array])
            key = self._claim(scope, op, index, array.nbytes, partial(_content, array))
            if key:
                numbers = self._shared(key, array)
            made.append(NewOperator(op, {index: numbers}, {index: key} if key else {}))
        return made

    def _shared(self, key: str, array: np.ndarray) -> np.ndarray:
        """The one array of all operators with this key."""
        name, old = self._copies[key]
        if old is None and self._keep:
            self._copies[key] = name, array
        return array if old is None else old

    def _scaled(self, scope: Scope, op: Op, index: int, scaled: Scaled) -> NewOperator:
        tensor = self._own_external(scope, op, index)
        dtype = np_dtype(scaled.constant.dtype)
        nbytes = math.prod(scaled.constant.shape) * dtype.itemsize
        key = self._claim(scope, op, index, nbytes, lambda: [f.tobytes() for f in scaled.factors])
        made = NewOperator(op, {index: Staged()}, {index: key} if key else {})
        shared = self._copies[key][1] if key else None
        try:
            if shared is not None:
                made.constants[index] = shared
            elif not self._keep:
                for _piece in scaled.pieces(dtype):
                    pass
            elif tensor is not None and self.model.store is not None:
                made.constants[index] = self.model.store.stage(tensor, scaled.pieces(dtype))
            else:
                whole = scaled.rounded(dtype)
                made.constants[index] = self._shared(key, whole) if key else whole
        except OverflowError as error:
            self.overflowed[op.name] = error.args[1] if len(error.args) > 1 else None
        return made

    def _added(self, scope: Scope, op: Op, shift: np.ndarray) -> np.ndarray:
        axes = [i for i, n in enumerate(shift.shape) if n != 1]
        shape = shift.shape[axes[0] :] if axes else (1,)
        dtype = scope.graph.dtype(op.outputs[0]) or "float32"
        for constant in map(scope.graph.constant, op.inputs[:2]):
            dtype = dtype if constant is None else constant.dtype
        whole = self._judged([op.name], shift.reshape(1, *shape), dtype)
        return np.asarray(whole[0])

    def _leftover(self, scope: Scope, left: Leftover) -> dict[str, np.ndarray]:
        last = left.ops[-1]
        dtype = scope.graph.dtype(last.outputs[0]) or "float32"
        arrays = _as_norm(left.map) if left.style == "bn" else _as_affine(left.map)
        return {
            role: self._judged([last.name], array[np.newaxis], dtype)[0]
            for role, array in arrays.items()
        }

    def _added_constants(self, scope: Scope, one: AddedOperator) -> dict[int, np.ndarray]:
        dtype = scope.graph.dtype(one.like) or "float32"
        return {
            index: self._judged([one.op.name], array[np.newaxis], dtype)[0]
            for index, array in one.constants.items()
        }

    def _judged(self, names: Sequence[str], arrays: np.ndarray, dtype: str) -> np.ndarray:
        """Arrays (n, *shape) in a type; the operators whose own does not hold them are noted."""
        kind = np_dtype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            rounded: np.ndarray = arrays.astype(kind, order="C")
        if not _holds(kind, arrays, rounded):
            pairs = zip(names, arrays, rounded, strict=True)
            self.overflowed.update(
                (name, infinite_channel(new) if kind.kind not in "iu" else None)
                for name, old, new in pairs if not _holds(kind, old, new)
            )  # fmt: skip
        return rounded

    # --- who reads a constant, once the edits before are made

    def _own_external(self, scope: Scope, op: Op, index: int) -> onnx.TensorProto | None:
        """The external tensor that an operator may overwrite: nothing else has ever read it."""
        name = op.input(index)
        tensor = scope.initializers.get(name) if scope.readers[name] == 1 else None
        return tensor if tensor is not None and external.is_external(tensor) else None

    def _claim(
        self,
        scope: Scope,
        op: Op,
        index: int,
        nbytes: int,
        content: Callable[[], Iterable[bytes]],
    ) -> str:
        """Note that an operator gets a constant of its own where others read the old one.

        Returns:
            The key of the copy, equal for operators of one graph that put equal numbers in place of
            one constant; empty where the old one may be overwritten.
        """
        name, owner = op.input(index), scope.owner(op.input(index))
        left = owner.readers[name] - self._released[id(owner), name]
        if owner is scope and owner.readers[name] == 1:
            return ""
        if name not in scope.nodes[op.name].input and scope.graph.constant(name) is not None:
            return ""
        self._release(scope, name)
        if not name:
            return ""
        key = _key(str(id(scope)), name, content())
        if left <= 1:  # nobody else reads the old one by now
            if key not in self._copies:
                return ""
            self.growth[self._copies[key][0]] -= nbytes
        elif key not in self._copies:
            self._copies[key] = op.name, None
            self.growth[op.name] += nbytes
        return key

    def _release(self, scope: Scope, *names: str) -> None:
        for name in filter(None, names):
            self._released[id(scope.owner(name)), name] += 1


def _content(array: np.ndarray) -> Iterable[bytes]:
    yield array.tobytes()


def _key(scope: str, name: str, content: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return f"{scope}/{name}/{digest.hexdigest()}"


def _holds(kind: np.dtype, exact: np.ndarray, rounded: np.ndarray) -> bool:
    """Whether a type has room for all numbers."""
    if kind.kind in "iu":
        return bool((exact == rounded).all())
    return all_finite(rounded)


def _weight_dtype(scope: Scope, op: Op, index: int) -> str:
    """The type of a constant that an operator does not have yet."""
    if index == 2 and op.kind in ("DequantizeLinear", "QuantizeLinear"):  # a zero point
        codes = op.inputs[0] if op.kind == "DequantizeLinear" else op.outputs[0]
        return scope.graph.dtype(codes) or "uint8"
    for name in (*op.inputs[1:2], *op.inputs[:1], *op.outputs[:1]):
        dtype = scope.graph.dtype(name)
        if dtype is not None and not dtype.startswith(("int", "uint", "bool")):
            return dtype
    return "float32"


def _as_norm(m: Map) -> dict[str, np.ndarray]:
    n = max(m.shape)
    vectors = m.vectors(1, n)
    assert vectors is not None
    scale = vectors[0] * np.sqrt(1 + LEFTOVER_EPSILON)
    return {"scale": scale, "bias": vectors[1], "mean": np.zeros(n), "var": np.ones(n)}


def _as_affine(m: Map) -> dict[str, np.ndarray]:
    return {"scale": m.scale, **({"shift": m.shift} if m.has_shift else {})}


def _by_form(
    rewrites: Iterable[Rewrite], context: RuleContext
) -> tuple[list[list[Rewrite]], list[Rewrite]]:
    """Convolutions to be rewritten together, few enough for a processor's cache; and the rest."""
    open_groups: dict[Hashable, list[Rewrite]] = {}
    groups: list[list[Rewrite]] = []
    others = []
    for rewrite in rewrites:
        form = kernel_form(rewrite, context)
        if form is None:
            others.append(rewrite)
            continue
        group = open_groups.get(form)
        if group is None or len(group) * _entries(rewrite, context) >= _TOGETHER:
            group = open_groups[form] = []
            groups.append(group)
        group.append(rewrite)
    return groups, others


def _entries(rewrite: Rewrite, context: RuleContext) -> int:
    weight = context.constant(rewrite.op.inputs[1])
    return 0 if weight is None else math.prod(weight.shape)
