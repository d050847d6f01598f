"""What the tests of commands share: results, models, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx

CLASSES = 3
FEATURES = 6


@dataclass
class Result:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that are no log."""
        return [line for line in self.err.splitlines() if line.startswith(("error:", "hint:"))]

    def assert_refused(self, code: int, error: str, hint: str = "") -> None:
        """One line ``error:``, one line ``hint:``, nothing on stdout, no traceback."""
        assert self.code == code, self.err
        assert [line.split(":")[0] for line in self.errors] == ["error", "hint"], self.err
        assert error in self.errors[0]
        assert hint in self.errors[1]
        assert "Traceback" not in self.err
        assert self.out == ""


Run = Callable[..., Result]


def mlp(
    *, kind: str = "Sigmoid", ending: str = "", layers: int = 2, seed: int = 0
) -> onnx.ModelProto:
    """Gemm, a nonlinearity, Gemm ...: (N, 6) to (N, 3)."""
    rng = np.random.default_rng(seed)
    sizes = [FEATURES, *[8] * (layers - 1), CLASSES]
    nodes, tensors, value = [], [], "x"
    for index, (m, n) in enumerate(pairwise(sizes)):
        weight = (rng.normal(size=(m, n)) / np.sqrt(m)).astype(np.float32)
        bias = (rng.normal(size=n) / 10).astype(np.float32)
        tensors += [onnx.numpy_helper.from_array(weight, f"w{index}"),
                    onnx.numpy_helper.from_array(bias, f"b{index}")]
        nodes.append(onnx.helper.make_node("Gemm", [value, f"w{index}", f"b{index}"],
                                           [f"h{index}"], name=f"fc{index}"))
        value = f"h{index}"
        if index < len(sizes) - 2 and kind:
            nodes.append(onnx.helper.make_node(kind, [value], [f"a{index}"], name=f"act{index}"))
            value = f"a{index}"
    if ending:
        nodes.append(onnx.helper.make_node(ending, [value], ["end"], name="end"))
        value = "end"
    port = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "mlp", [port("x", onnx.TensorProto.FLOAT, ["N", FEATURES])],
        [port(value, onnx.TensorProto.FLOAT, ["N", CLASSES])], tensors,
    )
    return onnx.helper.make_model(graph, ir_version=8,
                                  opset_imports=[onnx.helper.make_opsetid("", 17)])


def add_norm(model: onnx.ModelProto, after: str = "h0", channels: int = 8) -> onnx.ModelProto:
    """Put a BatchNormalization with arbitrary statistics behind a value."""
    rng = np.random.default_rng(1)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == after:
                node.input[index] = f"{after}_bn"
    names = [f"{after}_{part}" for part in ("gamma", "beta", "mean", "var")]
    values = [rng.normal(size=channels), rng.normal(size=channels), rng.normal(size=channels),
              rng.uniform(0.5, 2, channels)]
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(v.astype(np.float32), n)
        for n, v in zip(names, values, strict=True)
    )
    norm = onnx.helper.make_node("BatchNormalization", [after, *names], [f"{after}_bn"], name="bn")
    position = next(i for i, n in enumerate(model.graph.node) if after in n.output)
    model.graph.node.insert(position + 1, norm)
    return model


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
