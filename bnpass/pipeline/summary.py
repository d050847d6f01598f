"""The report of a run: one JSON document, and the curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnpass.report.curves import Curve, smooth

if TYPE_CHECKING:
    import onnx

    from bnpass.pipeline.arms import Arm
    from bnpass.pipeline.run import Job
    from bnpass.report.percentiles import Rows
    from bnpass.training import History


def count_norms(model: onnx.ModelProto) -> int:
    """BatchNormalization nodes in a model, nested graphs and functions included."""
    from bnpass.onnx_model.scopes import all_nodes

    return sum(node.op_type == "BatchNormalization" for node in all_nodes(model))


def summarise(job: Job) -> dict[str, Any]:
    """The report of a finished run; :func:`bnpass.report.document.to_json` writes it."""
    from bnpass import __version__

    assert job.trained is not None and job.deploy is not None  # noqa: PT018
    inserted = count_norms(job.inserted) - count_norms(job.model)
    return {
        "bnpass": __version__,
        "model": {"name": job.model.graph.name, "opset": _opset(job.model)},
        "data": {"recipe": job.train.recipe, "train": len(job.train),
                 "validation": len(job.validation), "test": len(job.test),
                 "test_is": job.test_is},
        "settings": job.config.train.to_dict(),
        "insert": {**job.plan.to_dict(), "inserted": inserted},
        "arms": [arm.to_dict() for arm in job.arms],
        "metric": next(iter(job.facts["metrics"]), None),
        **job.facts["metrics"],
        "loss": job.facts["loss"],
        "fold": {**job.facts["fold"], "left": count_norms(job.deploy)},
        "verify": job.facts["verify"],
        "determinism": job.facts["determinism"],
        "seconds": {step: round(took, 3) for step, took in job.seconds.items()},
    }


def _opset(model: onnx.ModelProto) -> int:
    from bnpass.onnx_model.attributes import opset_of

    return opset_of(model)


def curve_of(label: str, history: History) -> Curve:
    """Loss and validation metric of a training against steps."""
    losses = [(row.step, row.loss) for row in history.rows]
    name = history.metric or ""
    points = [(row.step, row.validation[name]) for row in history.validations
              if name in row.validation]
    return Curve(label, smooth(losses, 3), points, name or "accuracy")


def curves_of(arms: list[Arm]) -> list[Curve]:
    """One curve an arm."""
    return [curve_of(f"{arm.name} (lr {arm.lr:g})", arm.history) for arm in arms if arm.history]


def percentiles_of(arms: list[Arm]) -> dict[str, Rows]:
    """The percentiles of watched values by the arm's name."""
    return {arm.name: arm.history.percentiles for arm in arms if arm.history}
