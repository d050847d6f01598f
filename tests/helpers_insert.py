"""Insert, and check all that must hold of any insertion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import bnpass
from bnpass.passes.insert import InsertPlan
from tests.helpers import assert_equal_bytes, assert_same, nodes, run


@dataclass(frozen=True)
class Inserted:
    """A model with BatchNorms beside its original, and the plan."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    plan: InsertPlan

    @property
    def sites(self) -> dict[str, tuple[str, ...]]:
        """Nonlinearities by the value that is normalised in front of them."""
        return {site.value: site.nonlinearities for site in self.plan.sites}

    @property
    def reasons(self) -> dict[str, str]:
        """Why a nonlinearity has no BatchNorm, by its name."""
        return {skip.node: skip.reason for skip in self.plan.skipped}

    @property
    def dropped(self) -> set[str]:
        """Operators that lost their bias."""
        return {name for site in self.plan.sites for name in site.dropped}

    def kinds(self) -> list[str]:
        """The operators in order."""
        return [node.op_type for node in self.after.graph.node]


def insert(
    model: onnx.ModelProto, *, foldable: bool = True, rtol: float = 2e-5, engine: Any = run,
    **options: Any,
) -> Inserted:  # fmt: skip
    """Insert with ``preserve``: the outputs stay, again nothing changes, all of it folds back."""
    data = model.SerializeToString(deterministic=True)
    plan = bnpass.insert(model, plan_only=True, **options)
    after = bnpass.insert(model, init="preserve", **options)
    assert model.SerializeToString(deterministic=True) == data, "the model given was changed"
    onnx.checker.check_model(after, full_check=True)
    assert_same(model, after, rtol, engine=engine)
    assert_equal_bytes(bnpass.insert(after, init="preserve", **options), after)
    names = {site.name for site in plan.sites}
    trained = with_statistics(after, names)
    folded = bnpass.fold(trained, verify=False)
    onnx.checker.check_model(folded, full_check=True)
    assert_same(trained, folded, rtol * 5, engine=engine)
    if foldable:
        left = {n.name for n in nodes(folded.graph) if n.op_type == "BatchNormalization"} & names
        assert not left
    return Inserted(model, after, plan)


def with_statistics(model: onnx.ModelProto, names: set[str], seed: int = 0) -> onnx.ModelProto:
    """A copy whose named BatchNorms have been trained: any gamma, beta, mean and variance."""
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {t.name: t for t in copy.graph.initializer}
    found = {n.name for n in copy.graph.node if n.op_type == "BatchNormalization"}
    assert names <= found
    for node in copy.graph.node:
        if node.name not in names:
            continue
        for place, name in enumerate(node.input[1:]):
            old = numpy_helper.to_array(tensors[name])
            new = rng.normal(size=old.shape) if place < 3 else rng.uniform(0.3, 2.0, old.shape)
            if place == 0:
                new[np.abs(new) < 0.2] = 0.0
            tensors[name].CopyFrom(numpy_helper.from_array(new.astype(old.dtype), name))
    return copy
