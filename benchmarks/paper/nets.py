"""Networks that an experiment makes from a file of models/: plain edits on ONNX."""

from __future__ import annotations

from pathlib import Path

import onnx

from bnpass.files import load_model


def with_sigmoids(path: Path) -> onnx.ModelProto:
    """The model with a Sigmoid in the place of every Relu."""
    model = load_model(path)
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Sigmoid"
    model.graph.name = f"sigmoid_{model.graph.name}"
    return model
