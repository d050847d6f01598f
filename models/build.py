"""Write every reference model of this folder as ONNX: ``python models/build.py [NAME ...]``.

Each builder file beside this one has ``build(seed) -> nn.Module`` and ``INPUT_SHAPE``. The files
come from torch's exporter with its usual settings; the batch stays symbolic (``N``) and the
weights are in the file. Needs torch and onnxscript.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
NAMES = ("mnist_mlp", "deep_sigmoid_mlp", "deep_sigmoid_conv", "lenet", "inception")
OPSET = 20


class OnnxLRN(nn.Module):
    """Stands in for a LocalResponseNorm during export, which torch would spell out as a pool."""

    def __init__(self, source: nn.LocalResponseNorm) -> None:
        super().__init__()
        self.attributes = {
            "size": source.size,
            "alpha": source.alpha,
            "beta": source.beta,
            "bias": float(source.k),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return ONNX's LRN of x, the same shape."""
        return torch.onnx.ops.symbolic(
            "LRN", (x,), self.attributes, dtype=x.dtype, shape=x.shape, version=13
        )


class OnnxDropout(nn.Module):
    """Stands in for a Dropout during export, which torch would leave out in eval mode."""

    def __init__(self, source: nn.Dropout) -> None:
        super().__init__()
        self.register_buffer("ratio", torch.tensor(source.p))

    def forward(self, x: Tensor) -> Tensor:
        """Return ONNX's Dropout of x (off: it has no training_mode), the same shape."""
        return torch.onnx.ops.symbolic(
            "Dropout", (x, self.ratio), dtype=x.dtype, shape=x.shape, version=13
        )


def for_export(model: nn.Module) -> nn.Module:
    """Replace, in place, the layers that torch's exporter would not write as one ONNX node."""
    for name, child in model.named_children():
        if isinstance(child, nn.LocalResponseNorm):
            setattr(model, name, OnnxLRN(child))
        elif isinstance(child, nn.Dropout):
            setattr(model, name, OnnxDropout(child))
        else:
            for_export(child)
    return model


def has_dropout(model: nn.Module) -> bool:
    """Whether torch's graph optimizer must stay off: it removes a Dropout that is off."""
    return any(isinstance(layer, OnnxDropout) for layer in model.modules())


def export(name: str, seed: int = 0) -> onnx.ModelProto:
    """Return the ONNX model of one builder, e.g. ``lenet``, checked."""
    builder = importlib.import_module(name)
    model = for_export(builder.build(seed)).eval()
    example = torch.zeros(2, *builder.INPUT_SHAPE)
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        opset_version=OPSET,
        dynamo=True,
        optimize=not has_dropout(model),
        verbose=False,
    )
    proto = program.model_proto
    tidy(proto, name)
    name_stand_ins(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def tidy(proto: onnx.ModelProto, name: str) -> None:
    """Name the graph, and drop the notes on torch's source code: they hold paths of a machine."""
    proto.graph.name = name
    proto.producer_version = torch.__version__.split("+")[0]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for item in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]


def name_stand_ins(graph: onnx.GraphProto) -> None:
    """Rename what the stand-ins produced from ``_symbolic_2`` to ``dropout_2`` and the like."""
    renamed = {
        node.output[0]: node.output[0].replace("_symbolic", node.op_type.lower())
        for node in graph.node
        if node.output[0].startswith("_symbolic")
    }
    for node in graph.node:
        if node.output[0] in renamed:
            node.name = f"node_{renamed[node.output[0]]}"
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
    for info in graph.value_info:
        info.name = renamed.get(info.name, info.name)


def main(names: list[str]) -> int:
    """Write the named models, or all of them; return the exit code."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"error: no builder for {', '.join(unknown)}", file=sys.stderr)
        print(f"hint: there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        data = export(name).SerializeToString()
        (FOLDER / f"{name}.onnx").write_bytes(data)
        print(f"models/{name}.onnx  {len(data) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
