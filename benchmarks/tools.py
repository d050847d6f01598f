"""bnpass and its peers, each as one function from a model file to a model file.

Also a program, so that whole processes can be measured: python -m benchmarks.tools TOOL IN OUT
"""

from __future__ import annotations

import sys
from collections.abc import Callable

Tool = Callable[[str, str], None]


def load_save(source: str, target: str) -> None:
    """A bare load and save: what every tool has to do at least."""
    import onnx

    onnx.save(onnx.load(source), target)


def bnpass(source: str, target: str) -> None:
    """bnpass.fold without its verification."""
    import bnpass

    bnpass.fold(source, output=target, verify=False, force=True)


def onnxruntime(source: str, target: str) -> None:
    """onnxruntime's offline optimization, basic level: what it may write for any provider."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = target
    options.log_severity_level = 3
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def onnxsim(source: str, target: str) -> None:
    """onnxsim.simplify without its check."""
    import onnx
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(source), check_n=0)
    onnx.save(simplified, target)


def onnxslim(source: str, target: str) -> None:
    """onnxslim.slim."""
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def onnxscript(source: str, target: str) -> None:
    """onnxscript's optimizer and its default rewrite rules."""
    import onnx_ir
    from onnxscript import rewriter

    model = onnx_ir.load(source)
    onnx_ir.save(rewriter.rewrite(model), target)


def onnxoptimizer(source: str, target: str) -> None:
    """onnxoptimizer's pass fuse_bn_into_conv, and the passes that clean up behind it."""
    import onnx
    import onnxoptimizer

    passes = ["fuse_bn_into_conv", "fuse_add_bias_into_conv", "eliminate_identity",
              "eliminate_deadend", "eliminate_unused_initializer"]
    onnx.save(onnxoptimizer.optimize(onnx.load(source), passes), target)


def aimet(source: str, target: str) -> None:
    """aimet_onnx's fold_all_batch_norms_to_weight."""
    import onnx
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load(source))
    fold_all_batch_norms_to_weight(model)
    onnx.save(model.model, target)


PEERS: dict[str, tuple[str, Tool]] = {
    "onnxruntime": ("onnxruntime", onnxruntime),
    "onnxscript": ("onnxscript", onnxscript),
    "onnxoptimizer": ("onnxoptimizer", onnxoptimizer),
    "onnxsim": ("onnxsim", onnxsim),
    "onnxslim": ("onnxslim", onnxslim),
    "aimet": ("aimet_onnx", aimet),
}
"""Name -> (the package that it needs, the function)."""

TOOLS: dict[str, Tool] = {
    "load+save": load_save,
    "bnpass": bnpass,
    **{name: tool for name, (_, tool) in PEERS.items()},
}


def installed(name: str) -> bool:
    """Whether a tool's package is here."""
    from importlib.util import find_spec

    return name not in PEERS or find_spec(PEERS[name][0]) is not None


def missing() -> list[str]:
    """The peers that are not installed."""
    return [name for name in PEERS if not installed(name)]


if __name__ == "__main__":
    TOOLS[sys.argv[1]](sys.argv[2], sys.argv[3])
