"""Question 3: does onnxruntime's optimizer keep what the model computes?

The result optimized against itself plain, and the original likewise, in one yardstick. What the
original has too is onnxruntime's own; what only the result has comes from integer kernels that it
has made possible, or from a fusion that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bnpass.runtime.compare import jsonable

OPTIMIZERS = (
    "MatMul_BatchNormalization_Fusion", "ConvBNFusion", "ConvMulFusion", "ConvAddFusion",
    "Pad_Fusion",
    "QDQSelectorActionTransformer", "DynamicQuantizeMatMulFusion", "MatMulIntegerToFloatFusion",
    "MatMulAddFusion", "MatMulScaleFusion", "MatMulActivationFusion", "MatMulNBitsFusion",
    "GemmActivationFusion", "GemmSumFusion", "GemmTransposeFusion", "ConvActivationFusion",
    "ConvAddActivationFusion", "ClipQuantRewrite", "ReluQuantRewrite", "FuseReluClip",
    "WeightBiasQuantization", "EnsureUniqueDQForNodeUnit", "QDQPropagationTransformer",
    "DoubleQDQPairsRemover", "QDQFinalCleanupTransformer", "QDQS8ToU8Transformer",
    "GeluFusionL1", "GeluFusionL2", "GeluFusion", "BiasGeluFusion", "FastGeluFusion",
    "QuickGeluFusion", "LayerNormFusionL1", "LayerNormFusionL2", "LayerNormFusion",
    "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "BiasSkipLayerNormFusion",
    "AttentionFusion", "EmbedLayerNormFusion", "BiasSoftmaxFusion", "BiasDropoutFusion",
    "GroupQueryAttentionFusion", "ConstantFolding", "ConstantSharing",
    "CommonSubexpressionElimination", "TransposeOptimizer", "TransposeOptimizer_CPU",
    "TransposeOptimizer_CPUExecutionProvider", "ReshapeFusion", "GatherSliceToSplitFusion",
    "GatherToSliceFusion", "GatherToSplitFusion", "NchwcTransformer", "NhwcTransformer",
    "NotWhereFusion", "DivMulFusion", "EliminateIdentity", "EliminateSlice", "EliminateDropout",
    "UnsqueezeElimination", "ExpandElimination", "CastElimination", "CastChainElimination",
    "NoopElimination", "PreShapeNodeElimination", "IsInfReduceSumFusion", "ConcatSliceElimination",
    "MatmulTransposeFusion", "SliceConcatToSpaceToDepthFusion", "Avx2WeightS8ToU8Transformer",
    "DQMatMulNBitsFusion", "LabelEncoderFusion", "PropagateCastOps", "Level1_RuleBasedTransformer",
    "Level2_RuleBasedTransformer",
)  # fmt: skip
"""onnxruntime's graph optimizers by name; it takes unknown ones without a word."""

INTEGER = frozenset({
    "QDQSelectorActionTransformer", "DynamicQuantizeMatMulFusion", "MatMulIntegerToFloatFusion",
    "MatMulNBitsFusion", "ClipQuantRewrite", "ReluQuantRewrite", "WeightBiasQuantization",
    "QDQPropagationTransformer", "DoubleQDQPairsRemover", "QDQS8ToU8Transformer",
    "QDQFinalCleanupTransformer", "EnsureUniqueDQForNodeUnit", "Avx2WeightS8ToU8Transformer",
    "DQMatMulNBitsFusion",
})  # fmt: skip
"""Those that put kernels on integer codes in place of float ones."""


@dataclass
class OptimizerReport:
    """The answer to question 3.

    Attributes:
        passed: nothing differs, or it is not the result's fault.
        difference: the result's largest difference from itself plain, in units of what is allowed.
        reference: the same of the original; None where it was not needed.
        optimizer: the one that makes the difference; empty where none does alone.
        cause: ``""``, ``"onnxruntime"`` (the original has it too), ``"integer kernels"`` or
            ``"fusion"``.
        output: where it is largest.
    """

    passed: bool = True
    difference: float = 0.0
    reference: float | None = None
    optimizer: str = ""
    cause: str = ""
    output: str = ""
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {k: jsonable(v) for k, v in asdict(self).items()}


Gap = Callable[[Sequence[str]], tuple[float, str]]
"""(optimizers left out) -> (difference in units of what is allowed, the output)."""


def ask(result: Gap, original: Gap | None, go_on: Callable[[], bool]) -> OptimizerReport:
    """Ask the question.

    Args:
        result: of the result; the original's likewise, None where it cannot be asked.
        original: see there.
        go_on: whether there is time for another session.
    """
    difference, output = result(())
    report = OptimizerReport(difference=difference, output=output)
    if difference <= 1:
        return report
    if original is not None:
        report.reference, _ = original(())
    if report.reference is not None and report.reference > 1:
        report.cause = "onnxruntime"
    report.optimizer = culprit(result, go_on)
    named = report.optimizer or "an optimizer"
    if report.cause == "onnxruntime":
        report.notes.append(
            f"onnxruntime's {named} changes output {output!r} by {difference:.3g} times what is "
            f"allowed, and the original's by {report.reference:.3g}: it is its own, not the "
            "rewrite's"
        )
    elif report.optimizer in INTEGER:
        report.cause = "integer kernels"
        report.notes.append(
            f"onnxruntime's {named} computes with integer kernels now: output {output!r} is off "
            f"by {difference:.3g} times what is allowed ({instructions()})"
        )
    else:
        report.cause, report.passed = "fusion", False
    return report


def culprit(gap: Gap, go_on: Callable[[], bool]) -> str:
    """The optimizer without which nothing differs, by halving; empty where no single one is."""
    suspects = list(OPTIMIZERS)
    if gap(suspects)[0] > 1:
        return ""
    while len(suspects) > 1 and go_on():
        half = suspects[: len(suspects) // 2]
        suspects = half if gap(half)[0] <= 1 else suspects[len(half) :]
    if len(suspects) > 1 or gap(suspects)[0] > 1:
        return ""
    return suspects[0]


def instructions() -> str:
    """What the processor has for products of 8-bit integers."""
    try:
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line[:10]
        ).split()
    except (OSError, StopIteration):
        return "the processor's instruction set is not known"
    for name in ("amx_int8", "avx512_vnni", "avx_vnni"):
        if name in flags:
            return f"this processor has {name.upper()}; without VNNI u8*s8 saturates"
    wide = next((n for n in ("avx512bw", "avx2") if n in flags), "no vectors")
    return f"this processor has {wide.upper()} and no VNNI: u8*s8 saturates"
