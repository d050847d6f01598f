"""BatchNorms put into a ModelProto, LRN and Dropout taken out. The model given is never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx

from bnpass.errors import InputError
from bnpass.frontends.onnx.apply import apply_edits, apply_insert
from bnpass.frontends.onnx.growth import without_growth
from bnpass.frontends.onnx.numbers import Calculation
from bnpass.frontends.onnx.read import Reading, read
from bnpass.ir.graph import Op
from bnpass.ir.operators import RECURRENT, operator
from bnpass.onnx_model.attributes import is_onnx, node_name
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.model import OnnxModel
from bnpass.passes.branches import with_branches
from bnpass.passes.initial import initialised
from bnpass.passes.insert import plan_insert
from bnpass.passes.nonlinear import find_nonlinearities
from bnpass.passes.recurrent import SplitPlan, plan_split
from bnpass.passes.sites import InsertPlan, Policy, Site, Skip, wanted
from bnpass.passes.strip import StripPlan, plan_strip

Measure = Callable[[onnx.ModelProto, Sequence[Site]], dict[str, tuple[np.ndarray, np.ndarray]]]
"""(model, sites) -> mean and biased variance, (C,) each, of the sites' values by name."""


@dataclass(frozen=True)
class InsertOptions:
    """What an insertion is asked for; the names are those of :func:`bnpass.insert`."""

    policy: Policy = field(default_factory=Policy)
    init: str = "fresh"
    epsilon: float = 1e-5
    momentum: float = 0.1
    max_growth: float = 4.0
    freeze_inputs: bool = False
    branches: str = ""
    seed: int = 0


@dataclass
class Inserted:
    """A model with BatchNorms and what was done."""

    edited: OnnxModel
    plan: InsertPlan

    @property
    def model(self) -> onnx.ModelProto:
        """The model's proto."""
        return self.edited.proto


def insert_model(
    model: onnx.ModelProto,
    options: InsertOptions = InsertOptions(),
    *,
    moments: Measure | None = None,
    plan_only: bool = False,
) -> Inserted:
    """:func:`insert` into a copy; the model given, which holds its data, is unchanged."""
    return insert(OnnxModel.of(model).copy(), options, moments=moments, plan_only=plan_only)


def insert(
    model: OnnxModel,
    options: InsertOptions = InsertOptions(),
    *,
    moments: Measure | None = None,
    plan_only: bool = False,
) -> Inserted:
    """Insert a BatchNorm in front of every nonlinearity of the main graph, in place.

    Args:
        model: recurrent layers are split in it, where they are wanted, to make the plan.
        options: what is asked for.
        moments: measures values, for ``calibrated``.
        plan_only: plan, and insert nothing.

    Raises:
        InputError: the model is quantised, or older than opset 7.
    """
    _refuse_quantized(model.proto)
    reading, plan = _planned(model, options)
    within = _inside_bodies(reading)
    plan = replace(plan, skipped=[*plan.skipped, *within],
                   nonlinearities=plan.nonlinearities + len(within))  # fmt: skip
    plan = without_growth(reading, _marked(reading, plan, options), options.max_growth)
    if options.branches:
        plan = with_branches(plan, reading.main.graph, options.branches)
    if plan_only or not plan.sites:
        return Inserted(model, plan)
    plan = initialised(
        plan,
        options.init,
        epsilon=options.epsilon,
        momentum=options.momentum,
        moments=None if moments is None else partial(moments, model.proto),
        seed=options.seed,
    )
    apply_insert(model, reading.main, plan.edits.norms)
    return Inserted(model, plan)


def _planned(model: OnnxModel, options: InsertOptions) -> tuple[Reading, InsertPlan]:
    """The views and the plan of a model whose recurrent layers are split where that gives a site.

    A first attempt, on a copy, tells which of them would stay without one.
    """
    bare: dict[str, Skip] = {}
    policy = options.policy
    if any(node.op_type in RECURRENT for node in model.proto.graph.node):
        reading, tried = _attempt(
            OnnxModel(model.copy().proto, model.folder), options, lambda op: wanted(op, policy)
        )
        ops = reading.main.graph.ops
        recurrences = (s for s in tried.skipped if s.node in ops and ops[s.node].kind in RECURRENT)
        bare = {skip.node: skip for skip in recurrences}
    reading, plan = _attempt(
        model, options, lambda op: op.name not in bare and wanted(op, policy)
    )
    plan.skipped.extend(bare.values())
    return reading, replace(plan, nonlinearities=plan.nonlinearities + len(bare))


def _attempt(
    model: OnnxModel, options: InsertOptions, chosen: Callable[[Op], bool]
) -> tuple[Reading, InsertPlan]:
    split = _split(model, chosen)
    reading = read(model, freeze_inputs=options.freeze_inputs)
    plan = plan_insert(reading.main.graph, options.policy)
    plan.notes.extend(split.notes)
    return reading, replace(plan, split=tuple(e for e in split.entries if not e.reason))


def _split(model: OnnxModel, chosen: Callable[[Op], bool]) -> SplitPlan:
    """Split recurrent layers of the main graph, in place."""
    if not any(node.op_type in RECURRENT for node in model.proto.graph.node):
        return SplitPlan()
    reading = read(model)
    plan = plan_split(reading.main.graph, chosen)
    numbers = Calculation(reading).numbers(reading.main, plan.edits)
    apply_edits(model, reading.main, plan.edits, numbers)
    return plan


def _marked(reading: Reading, plan: InsertPlan, options: InsertOptions) -> InsertPlan:
    """The plan; sites that are none where the file's own word for shapes does not count marked."""
    if not reading.model.stated or not plan.sites:
        return plan
    doubting = read(reading.model.doubting(), freeze_inputs=options.freeze_inputs)
    sure = {site.value for site in plan_insert(doubting.main.graph, options.policy).sites}
    return replace(plan, sites=[replace(s, declared=s.value not in sure) for s in plan.sites])


@dataclass
class Stripped:
    """A model without the operators that were asked for, and what was done."""

    edited: OnnxModel
    plan: StripPlan

    @property
    def model(self) -> onnx.ModelProto:
        """The model's proto."""
        return self.edited.proto


@dataclass(frozen=True)
class StripOptions:
    """What is taken out; the names are those of :func:`bnpass.strip`."""

    what: Sequence[str] = ("lrn", "dropout")
    dropout: float | None = None
    only: Sequence[str] = ()
    skip: Sequence[str] = ()


def strip_model(model: onnx.ModelProto, options: StripOptions = StripOptions()) -> Stripped:
    """:func:`strip` of a copy; the model given, which holds its data, is unchanged."""
    return strip(OnnxModel.of(model).copy(), options)


def strip(model: OnnxModel, options: StripOptions = StripOptions()) -> Stripped:
    """Take LRN and Dropout out of the main graph, in place.

    See :func:`bnpass.passes.strip.plan_strip`.
    """
    reading = read(model)
    plan = plan_strip(
        reading.main.graph,
        options.what,
        dropout=options.dropout,
        only=options.only,
        skip=options.skip,
    )
    numbers = Calculation(reading).numbers(reading.main, plan.edits)
    apply_edits(model, reading.main, plan.edits, numbers)
    return Stripped(model, plan)


def without_norms(model: onnx.ModelProto, plan: StripPlan) -> onnx.ModelProto:
    """What a stripped model has to compute: a copy whose LRNs that go pass on what they read."""
    copy = copied(model)
    for node in copy.graph.node:
        if is_onnx(node, "LRN") and node_name(node) in plan.norms:
            node.op_type = "Identity"
            del node.attribute[:]
    return copy


def _inside_bodies(reading: Reading) -> list[Skip]:
    return [
        Skip(scope.path + n.op.name, n.op.kind, "inside control flow")
        for scope in reading.scopes[1:]
        for n in find_nonlinearities(scope.graph)
    ]


def _refuse_quantized(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if operator(node.op_type).quantised:
            raise InputError(
                f"the model is quantised: {node.op_type} {node.name or node.output[0]!r}",
                "insert BatchNorms into the floating-point model and quantise the folded one",
            )
