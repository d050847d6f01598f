"""BatchNorms put into a ModelProto, LRN and Dropout taken out. The model given is never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from bnpass.errors import InputError
from bnpass.frontends.onnx import recurrent
from bnpass.frontends.onnx.apply import apply_fold, apply_insert
from bnpass.frontends.onnx.read import Reading, copied, read
from bnpass.ir.graph import RECURRENT, Op
from bnpass.passes.initial import new_norms
from bnpass.passes.insert import plan_insert
from bnpass.passes.nonlinear import find_nonlinearities
from bnpass.passes.sites import InsertPlan, Policy, Site, Skip, wanted
from bnpass.passes.strip import StripPlan, plan_strip

_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger", "DynamicQuantizeLinear"}
)  # fmt: skip

Measure = Callable[[onnx.ModelProto, Sequence[Site]], dict[str, tuple[np.ndarray, np.ndarray]]]
"""(model, sites) -> mean and biased variance, (C,) each, of the sites' values by name."""


@dataclass(frozen=True)
class InsertOptions:
    """What an insertion is asked for; the names are those of :func:`bnpass.insert`."""

    policy: Policy = field(default_factory=Policy)
    init: str = "fresh"
    epsilon: float = 1e-5
    momentum: float = 0.1


@dataclass
class Inserted:
    """A model with BatchNorms and what was done."""

    model: onnx.ModelProto
    plan: InsertPlan


def insert_model(
    model: onnx.ModelProto,
    options: InsertOptions = InsertOptions(),
    *,
    folder: Path | None = None,
    moments: Measure | None = None,
    plan_only: bool = False,
) -> Inserted:
    """Insert a BatchNorm in front of every nonlinearity of the main graph.

    Raises:
        InputError: the model is quantised, or older than opset 7.
    """
    _refuse_quantized(model)
    copy, reading, plan = _planned(model, options.policy, folder)
    plan.skipped.extend(_inside_bodies(reading))
    if plan_only or not plan.sites:
        return Inserted(copy, plan)
    norms = new_norms(
        plan,
        options.init,
        epsilon=options.epsilon,
        momentum=options.momentum,
        moments=None if moments is None else partial(moments, copy),
    )
    apply_insert(reading, reading.main, norms)
    return Inserted(copy, plan)


def _planned(
    model: onnx.ModelProto, policy: Policy, folder: Path | None
) -> tuple[onnx.ModelProto, Reading, InsertPlan]:
    """A copy whose recurrent layers are split where that gives a site, its views, and the plan."""

    def attempt(chosen: Callable[[Op], bool]) -> tuple[onnx.ModelProto, Reading, InsertPlan]:
        copy = copied(model)
        notes = recurrent.split(copy, chosen)
        reading = read(copy, folder=folder)
        plan = plan_insert(reading.main.graph, policy)
        plan.notes.extend(notes)
        return copy, reading, plan

    tried = attempt(lambda op: wanted(op, policy))
    plan, ops = tried[2], tried[1].main.graph.ops
    bare = {s.node for s in plan.skipped if s.node in ops and ops[s.node].kind in RECURRENT}
    if not bare:
        return tried
    copy, reading, again = attempt(lambda op: op.name not in bare and wanted(op, policy))
    reasons = [skip for skip in plan.skipped if skip.node in bare]
    again.skipped.extend(reasons)
    return copy, reading, replace(again, nonlinearities=again.nonlinearities + len(reasons))


@dataclass
class Stripped:
    """A model without the operators that were asked for, and what was done."""

    model: onnx.ModelProto
    plan: StripPlan


def strip_model(
    model: onnx.ModelProto,
    what: Sequence[str] = ("lrn", "dropout"),
    *,
    dropout: float | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    folder: Path | None = None,
) -> Stripped:
    """Take LRN and Dropout out of the main graph; see :func:`bnpass.passes.strip.plan_strip`."""
    copy = copied(model)
    reading = read(copy, folder=folder)
    plan = plan_strip(reading.main.graph, what, dropout=dropout, only=only, skip=skip)
    apply_fold(reading, reading.main, plan.edits)
    return Stripped(copy, plan)


def _inside_bodies(reading: Reading) -> list[Skip]:
    return [
        Skip(scope.path + n.op.name, n.op.kind, "inside control flow")
        for scope in reading.scopes[1:]
        for n in find_nonlinearities(scope.graph)
    ]


def _refuse_quantized(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in _QUANTIZED:
            raise InputError(
                f"the model is quantised: {node.op_type} {node.name or node.output[0]!r}",
                "insert BatchNorms into the floating-point model and quantise the folded one",
            )
