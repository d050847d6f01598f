"""Linear regions of a ModelProto become single operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import onnx

from bnpass.collector import collector_paused
from bnpass.frontends.onnx.editor import Editor
from bnpass.frontends.onnx.read import Scope, read
from bnpass.ir.affine import all_finite
from bnpass.ir.correspondence import Correspondences
from bnpass.ir.edits import Collapse
from bnpass.onnx_model.attributes import set_attributes
from bnpass.onnx_model.faults import blaming_the_model
from bnpass.onnx_model.messages import become, np_dtype
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import Place, graphs
from bnpass.passes.collapse import (
    CollapseEntry,
    CollapsePlan,
    as_folds,
    has_candidates,
    plan_collapse,
)
from bnpass.passes.fold import FoldEntry


class CollapseOptions(Protocol):
    """What a collapse is asked for; :class:`bnpass.frontends.onnx.folding.FoldOptions` has it."""

    @property
    def only(self) -> Sequence[str]:
        """Glob patterns on operator names."""

    @property
    def skip(self) -> Sequence[str]:
        """Glob patterns on operator names."""

    @property
    def collapse(self) -> str:
        """What collapses: ``bn``, ``all`` or ``none``."""

    @property
    def freeze_inputs(self) -> bool:
        """Whether defaults that callers may override are constants."""


@dataclass(frozen=True)
class Options:
    """What :func:`collapse` is asked for."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    collapse: str = "all"
    freeze_inputs: bool = False


@dataclass
class Collapsed:
    """What has collapsed.

    Attributes:
        plan: entries of all graphs.
        correspondences: of the main graph: values inside of regions are gone.
        inside: the same of every body, by its place.
        candidates: whether there was anything to look at.
        declared: names of regions that rest on a shape that only the file declares.
        stated: values with such shapes.
    """

    plan: CollapsePlan = field(default_factory=CollapsePlan)
    correspondences: Correspondences = field(default_factory=Correspondences)
    inside: dict[Place, Correspondences] = field(default_factory=dict)
    candidates: bool = False
    declared: frozenset[str] = frozenset()
    stated: tuple[str, ...] = ()

    @property
    def pairs(self) -> dict[Place, Correspondences]:
        """Which new value stands for which old one, graph by graph."""
        return {**self.inside, (): self.correspondences}

    @property
    def folds(self) -> list[FoldEntry]:
        """Every BatchNorm that went with a region, or the region, as an entry of a fold."""
        return as_folds(self.plan.entries)


def collapse(model: OnnxModel, options: CollapseOptions = Options()) -> Collapsed:
    """Turn every linear region of a model into one operator, in place; see the pass.

    Raises:
        InputError: the model is not valid ONNX, in a way that matters here.
    """
    with collector_paused(), blaming_the_model(model.as_given):
        return collapse_scopes(model, options)


def collapses(model: OnnxModel, options: CollapseOptions) -> bool:
    """Whether anything collapses."""
    return bool(_plans(model, options, edit=False).plan.collapsed)


def collapse_scopes(model: OnnxModel, options: CollapseOptions) -> Collapsed:
    """:func:`collapse` of every graph of a model."""
    return _plans(model, options, edit=True)


def _plans(model: OnnxModel, options: CollapseOptions, *, edit: bool) -> Collapsed:
    done = Collapsed()
    if not may_collapse(model, options):
        return done
    done.candidates = True
    reading = read(model, freeze_inputs=options.freeze_inputs)
    planned = [(scope, _planned(scope, options)) for scope in reversed(reading.scopes)]
    if model.stated:
        done.stated, done.declared = model.stated, _doubtful(model, planned, options)
    for scope, plan in planned:
        rounded = [_rounded(scope, one) for one in plan.edits]
        edits = [one for one in rounded if one is not None]
        if edit and edits:
            _apply(model, scope, edits)
        entries = _kept(plan, edits)
        done.plan.entries[:0] = [replace(e, node=scope.path + e.node) for e in entries]
        inner = [v for one in edits for op in one.ops for v in op.outputs if v]
        pairs = Correspondences(gone=frozenset(inner) - {one.result for one in edits})
        if scope is reading.main:
            done.correspondences = pairs
        else:
            done.inside[scope.place] = pairs
    if edit and done.plan.collapsed:
        model.forget()
    return done


def _planned(scope: Scope, options: CollapseOptions) -> CollapsePlan:
    return plan_collapse(scope.graph, mode=options.collapse, only=options.only, skip=options.skip)


def _doubtful(
    model: OnnxModel, planned: Sequence[tuple[Scope, CollapsePlan]], options: CollapseOptions
) -> frozenset[str]:
    """Regions that are none where the file's own word for shapes does not count."""
    reading = read(model.doubting(), freeze_inputs=options.freeze_inputs)
    bare = [(scope, _planned(scope, options)) for scope in reading.scopes]
    return _regions(planned) - _regions(bare)


def _regions(planned: Sequence[tuple[Scope, CollapsePlan]]) -> frozenset[str]:
    return frozenset(scope.path + e.node for scope, plan in planned for e in plan.collapsed)


def may_collapse(model: OnnxModel, options: CollapseOptions) -> bool:
    """Whether anything could collapse, found without a view."""
    if options.collapse == "none":
        return False
    for graph in graphs(model.proto.graph):
        constants = {t.name for t in graph.initializer}
        operators = ((n.op_type, n.input[:], n.output[:]) for n in graph.node)
        if has_candidates(operators, constants):
            return True
    return False


def _kept(plan: CollapsePlan, edits: Sequence[Collapse]) -> list[CollapseEntry]:
    """The entries, those among them whose weights overflow as refused."""
    done = {one.carrier.name for one in edits}
    return [
        replace(e, into="", reason="its new weights would not be finite numbers")
        if e.into and e.into not in done
        else e
        for e in plan.entries
    ]


def _rounded(scope: Scope, edit: Collapse) -> Collapse | None:
    """The same with numbers in the carrier's type; None where that does not hold them."""
    constant = scope.graph.constant(edit.carrier.inputs[1])
    assert constant is not None
    dtype = np_dtype(constant.dtype)
    with np.errstate(over="ignore"):
        weight = edit.weight.astype(dtype)
        bias = None if edit.bias is None else edit.bias.astype(dtype)
    if not all_finite(weight) or (bias is not None and not all_finite(bias)):
        return None
    return replace(edit, weight=weight, bias=bias)


def _apply(model: OnnxModel, scope: Scope, edits: Sequence[Collapse]) -> None:
    editor = Editor(model, scope)
    for edit in edits:
        _write(editor, edit)
    editor.finish()


def _write(editor: Editor, edit: Collapse) -> None:
    """The carrier computes the region; the other operators go."""
    node, fresh = editor.scope.nodes[edit.carrier.name], editor.model.fresh
    editor.release(*node.input)
    for op in edit.ops:
        if op is not edit.carrier:
            editor.delete(op)
        else:
            editor.reshape(*(name for name in op.outputs if name != edit.result))
    names = [editor.add_initializer(f"{edit.carrier.name}.weight", edit.weight)]
    added = edit.bias is not None and edit.kind == "MatMul"
    if edit.bias is not None:
        names.append(editor.add_initializer(f"{edit.carrier.name}.bias", edit.bias))
    inputs = [edit.root, *(names[:1] if added else names)]
    inner = fresh(f"{edit.result}_product") if added else edit.result
    become(node, edit.kind, inputs, [inner])
    set_attributes(node, **edit.attrs)
    for name in inputs:
        editor.scope.owner(name).readers[name] += 1
    if added:
        name = fresh(f"{edit.carrier.name}.add")
        add = onnx.helper.make_node("Add", [inner, names[1]], [edit.result], name=name)
        editor.insert_behind(node, add)
