"""The light models of the onnx package, with random weights in place of their constant ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test  # where its data lies
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from bnpass.importer import to_torch, write_back  # noqa: E402
from tests.importer.nets import ort_run, relative, take_one_step  # noqa: E402

FOLDER = Path(onnx.backend.test.__file__).parent / "data" / "light"
FAST = ("squeezenet", "shufflenet")
SLOW = (
    "inception_v1", "bvlc_alexnet", "resnet50", "densenet121", "inception_v2", "zfnet512", "vgg19",
)  # fmt: skip


def with_random_weights(path: Path) -> onnx.ModelProto:
    """The file's weights are ConstantOfShape nodes: make them initializers, seeded.

    He-scaled; drawn in float32, since vgg19 and alexnet have more than 60 million each.
    """
    model, rng = onnx.load(path), np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    statistics = {n.input[4] for n in model.graph.node if n.op_type == "BatchNormalization"}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(d) for d in shapes[node.input[0]])
        spread = np.sqrt(2.0 / max(1, np.prod(shape[1:]))) if len(shape) > 1 else 0.1
        value = rng.standard_normal(shape, dtype=np.float32)
        value *= np.float32(spread)
        if node.output[0] in statistics:
            value = rng.uniform(0.5, 2.0, size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        info = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape)
        model.graph.input.append(info)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def test_a_light_model(name: str) -> None:
    model = with_random_weights(FOLDER / f"light_{name}.onnx")
    gm = to_torch(model, batch="free").eval()
    x = np.random.default_rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        assert relative(gm(torch.from_numpy(x)), ort_run(model, x)[0]) < 1e-4
    take_one_step(gm, torch.from_numpy(x), freeze=True)
    with torch.no_grad():
        trained = ort_run(write_back(gm, model), x)[0]
        assert relative(gm(torch.from_numpy(x)), trained) < 1e-4
