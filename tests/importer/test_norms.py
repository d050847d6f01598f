"""BatchNormalization as files have it: computed, of mixed types, of vectors, of a wrong length."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402

import bnpass  # noqa: E402
from bnpass.errors import UnsupportedError  # noqa: E402
from tests.importer.nets import ort_run, relative  # noqa: E402
from tests.importer.test_parameters import model, norm, normal  # noqa: E402

COMPUTED = {
    "scale": ("s = Mul(two, ones)", "x, s, b, m, v"),
    "bias": ("s = Expand(half, four)", "x, g, s, m, v"),
    "mean": ("s = Expand(half, four)", "x, g, b, s, v"),
    "variance": ("s = ConstantOfShape <value = float[1] {0.7}> (four)", "x, g, b, m, s"),
    "statistics": (
        "s = ConstantOfShape <value = float[1] {0.7}> (four)  t = Mul(s, half)", "x, g, b, t, s"
    ),
}  # fmt: skip


def computed(which: str) -> onnx.ModelProto:
    made, inputs = COMPUTED[which]
    return model(
        f"""(float[N, 4, H, H] x) => (float[N, 4, H, H] y)
        {{ ones = ConstantOfShape <value = float[1] {{1.0}}> (four)  {made}
           n = BatchNormalization({inputs})  y = Relu(n) }}""",
        {**norm(4), "four": np.array([4]), "two": np.float32(2), "half": np.float32([0.5])},
        opset=17,
    )


@pytest.mark.parametrize("which", COMPUTED)
def test_parameters_that_the_model_computes(which: str) -> None:
    """They are what they are: not trained; statistics can be measured and written back."""
    proto, x = computed(which), normal(6, 4, 5, 5)
    gm = bnpass.to_torch(proto).eval()
    assert relative(gm(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-6
    assert sum(p.numel() for p in gm.parameters()) == (4 if which in ("scale", "bias") else 8)
    same = bnpass.write_back(gm, proto)
    assert same.SerializeToString() == proto.SerializeToString()


@pytest.mark.parametrize("which", COMPUTED)
def test_a_step_and_new_statistics_are_written_back(which: str) -> None:
    proto, x = computed(which), normal(6, 4, 5, 5)
    gm = copy.deepcopy(bnpass.to_torch(proto).train())
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.1)
    gm(torch.from_numpy(x)).square().sum().backward()
    optimizer.step()
    written = bnpass.write_back(gm.eval(), proto)
    onnx.checker.check_model(written, full_check=True)
    y = gm(torch.from_numpy(x))
    assert relative(y, ort_run(written, x)[0]) < 1e-5
    assert relative(y, ort_run(proto, x)[0]) > 0.01


def mixed(data: type, affine: type, statistics: type) -> onnx.ModelProto:
    names = {np.float16: "float16", np.float32: "float", np.float64: "double"}
    arrays = norm(4)
    kinds = dict(zip("gbmv", (affine, affine, statistics, statistics), strict=True))
    kind = names[data]
    return model(
        f"""({kind}[N, 4, H, H] x) => ({kind}[N, 4, H, H] y)
        {{ y = BatchNormalization(x, g, b, m, v) }}""",
        {name: array.astype(kinds[name]) for name, array in arrays.items()},
        opset=15,
    )


KINDS = [
    (np.float16, np.float16, np.float32),
    (np.float16, np.float32, np.float32),
    (np.float32, np.float32, np.float64),
    (np.float32, np.float16, np.float32),
    (np.float16, np.float32, np.float16),
]


@pytest.mark.parametrize("kinds", KINDS, ids=lambda k: "-".join(t.__name__ for t in k))
def test_data_scale_and_statistics_of_different_types(kinds: tuple[type, type, type]) -> None:
    """Against a BatchNorm of float64; the result has the data's type, in training as well."""
    proto = mixed(*kinds)
    gm = bnpass.to_torch(proto)
    x = torch.from_numpy(normal(6, 4, 5, 5).astype(kinds[0]))
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    exact = torch.nn.BatchNorm2d(4, eps=1e-5).double()
    state = dict(zip(("weight", "bias", "running_mean", "running_var"), "gbmv", strict=True))
    exact.load_state_dict(
        {k: torch.from_numpy(arrays[n].copy()) for k, n in state.items()}, strict=False
    )
    for training in (True, False):
        y = gm.train(training)(x)
        assert y.dtype == x.dtype
        wanted = exact.train(training)(x.double()).detach().numpy()
        assert relative(y, wanted) < 2e-3
    y.float().square().sum().backward()
    written = bnpass.write_back(gm, proto)
    for old, new in zip(proto.graph.initializer, written.graph.initializer, strict=True):
        assert old.data_type == new.data_type


def test_a_vector_is_one_channel() -> None:
    proto = model(
        "(float[N] x) => (float[N] y) { n = BatchNormalization(x, g, b, m, v)  y = Relu(n) }",
        norm(1), opset=17,
    )  # fmt: skip
    x = normal(9)
    gm = bnpass.to_torch(proto).eval()
    assert relative(gm(torch.from_numpy(x)), ort_run(proto, x)[0]) < 1e-6
    g, b, _, _ = (numpy_helper.to_array(t) for t in proto.graph.initializer)
    in_training = np.maximum((x - x.mean()) / np.sqrt(x.var() + 1e-5) * g + b, 0)
    assert relative(gm.train()(torch.from_numpy(x)), in_training) < 1e-5


@pytest.mark.parametrize("lengths", [(4, 4, 4, 5), (4, 4, 1, 1)])
def test_parameters_of_different_lengths_are_refused_by_name(lengths: tuple[int, ...]) -> None:
    proto = model(
        """(float[N, 4, H, H] x) => (float[N, 4, H, H] y)
        { y = BatchNormalization(x, g, b, m, v) }""",
        {name: np.ones(n, np.float32) for name, n in zip("gbmv", lengths, strict=True)},
    )
    with pytest.raises(UnsupportedError, match=r"BatchNormalization 'y'.*shapes"):
        bnpass.to_torch(proto)
