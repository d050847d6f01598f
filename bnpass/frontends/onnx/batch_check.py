"""A freed batch size proven before anybody gets it: node by node, in float64."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx

from bnpass.errors import InputError
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.model import OnnxModel
from bnpass.passes.free_batch import BatchPlan

log = logging.getLogger("bnpass.verdict")

_SHOWN = 3


def check_batch(
    old: OnnxModel, new: OnnxModel, plan: BatchPlan, size: int, *, light: bool = False
) -> None:
    """Prove that every node makes of many samples what it makes of each.

    Nodes that cannot be evaluated are named in a warning.

    Args:
        old: the original, with the size that is to be free.
        new: the result.
        plan: what was done.
        size: the old batch size.
        light: the result holds no constants but its own: the others are those of the original.

    Raises:
        InputError: a node does not; it is named.
    """
    from bnpass.verdict.batches import BatchProof, prove_batch
    from bnpass.verdict.side import Side

    before = Side(old, old.proto.graph, (), None)
    after = Side(new, new.proto.graph, (), before if light else None)
    report = prove_batch(before, after, plan.values, size)
    for wrong in report.failures:
        assert isinstance(wrong, BatchProof)
        samples = "1 sample" if wrong.samples == 1 else f"{wrong.samples} samples"
        raise InputError(
            f"the batch size is fixed to {size} by {wrong.node!r}: with {samples} it does not make "
            f"of {wrong.value!r} what it makes of each",
            "export the model again with a dynamic batch axis, and report this",
        )
    if report.open:
        names = [repr(found.node) for found in report.open[:_SHOWN]]
        more = len(report.open) - len(names)
        log.warning(
            "the free batch size is not proven at %s%s: %s",
            ", ".join(names), f" and {more} more" if more else "", report.open[0].reason,
        )  # fmt: skip


def without_constants(model: onnx.ModelProto, folder: Path | None) -> OnnxModel:
    """A copy to be edited that leaves the main graph's initializers out; their names stay taken."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, constants = light.graph, {t.name for t in model.graph.initializer}
    graph.node.extend(copied(node) for node in model.graph.node)
    graph.input.extend(i for i in model.graph.input if i.name not in constants)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(onnx.ValueInfoProto(name=name) for name in constants)
    return OnnxModel(light, folder)
