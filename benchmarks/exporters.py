"""Files of other tools, all the way round: ``python benchmarks/exporters.py [--only NAME]``.

Small networks of the common families are written by Keras (tf2onnx), Paddle2ONNX, skl2onnx and both
exporters of torch, each in the forms that it has. Then, file by file:

- fold: no BatchNorm is left, and the outputs are what onnxruntime makes of the file;
- insert: BatchNorms go in (``preserve``), the outputs stay, and all of them fold away again;
- import: ``to_torch`` computes the same;
- train: one step of SGD, ``write_back``, and onnxruntime agrees with the module.

Exporters that are not installed are left out and named (``pip install --group exporters``).
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# no exporter installs packages, as Paddle2ONNX would by a helper of its own
os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"
os.environ["PIP_NO_INDEX"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import logging
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import util
from itertools import islice
from typing import Any

import numpy as np
import onnx

import bnpass
from benchmarks import common

Write = Callable[[Path], None]
"""Writes one network to a file."""

STEPS = ("fold", "insert", "import", "train")


@dataclass
class Row:
    """What became of one network's file.

    Attributes:
        exporter, net: which.
        steps: by step: ``ok``, ``none`` (nothing to do), or why not.
        norms: BatchNormalizations in the file.
    """

    exporter: str
    net: str
    norms: int = 0
    steps: dict[str, str] = field(default_factory=dict)


# --- torch


def _torch_nets() -> dict[str, tuple[Any, tuple[int, ...]]]:
    from torch import nn

    def block(a: int, b: int, act: Any, bias: bool = False) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, bias=bias), nn.BatchNorm2d(b), act]

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(*block(3, 8, nn.ReLU()))
            self.body = nn.Sequential(*block(8, 8, nn.ReLU()), nn.Conv2d(8, 8, 3, padding=1),
                                      nn.BatchNorm2d(8))
            self.head = nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            y = self.stem(x)
            return self.head((y + self.body(y)).relu().mean((2, 3)))

    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(*block(3, 8, nn.ReLU()))
            self.b, self.n = nn.Conv2d(8, 8, 1, groups=2, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: Any) -> Any:
            y = self.b(self.a(x))
            n, c, h, w = y.shape
            y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            return self.n(y).relu().flatten(1)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 5)
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x: Any) -> Any:
            y = self.head(self.rnn(x)[0])
            return self.norm(y.transpose(1, 2)).tanh()

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            return self.b(self.n(self.a(x).reshape(b * t, -1)).relu()).reshape(b, t, -1)

    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 16, bias=False), nn.Tanh(), nn.Linear(16, 5),
    )  # fmt: skip
    image = (2, 3, 16, 16)
    return {
        "plain": (plain, image),
        "residual": (Residual(), image),
        "silu": (nn.Sequential(*block(3, 8, nn.SiLU()), *block(8, 8, nn.Hardswish()),
                               nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), image),
        "decoder": (nn.Sequential(nn.ConvTranspose2d(3, 8, 2, stride=2, bias=False),
                                  nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)), image),
        "mlp": (nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
                              nn.Linear(8, 4)), (3, 6)),
        "shuffle": (Shuffle(), image),
        "tagger": (Tagger(), (2, 5, 6)),
        "tokens": (Tokens(), (2, 5, 6)),
    }  # fmt: skip


def _torch(dynamo: bool, **options: Any) -> Iterator[tuple[str, Write]]:
    import torch

    for name, (net, shape) in _torch_nets().items():
        _disturb(net)
        free: dict[str, Any] = {"dynamic_axes": {"x": {0: "N"}}}
        if dynamo:
            free = {"dynamic_shapes": ({0: torch.export.Dim("N", min=2)},)}

        def write(path: Path, net: Any = net, shape: Any = shape, free: Any = free) -> None:
            torch.onnx.export(
                net.eval(), (torch.randn(*shape),), path, dynamo=dynamo, input_names=["x"],
                verbose=False, **free, **options,
            )  # fmt: skip

        yield name, write


def _disturb(net: Any) -> None:
    """Statistics and scales that a forgotten fold would show."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if hasattr(module, "running_var") and module.running_var is not None:
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + 0.3)
            module.running_var.copy_(torch.rand(len(module.running_var), generator=generator) + 0.5)


# --- keras


def _keras() -> Iterator[tuple[str, Write]]:
    import keras
    from keras import layers as k

    keras.utils.set_random_seed(0)

    def norm(x: Any) -> Any:
        layer = k.BatchNormalization()
        y = layer(x)
        rng = np.random.default_rng(0)
        shapes = [w.shape for w in layer.weights]
        layer.set_weights([rng.uniform(0.5, 1.5, s).astype(np.float32) for s in shapes])
        return y

    def image() -> Any:
        return keras.Input((16, 16, 3), name="x")

    x = image()
    y = k.ReLU()(norm(k.Conv2D(8, 3, padding="same", use_bias=False)(x)))
    z = norm(k.Conv2D(8, 3, padding="same")(y))
    residual = k.Dense(5)(k.GlobalAveragePooling2D()(k.ReLU()(k.Add()([y, z]))))
    yield "residual", _keras_writer(keras.Model(x, residual))
    x = image()
    y = k.Conv2D(8, 3, activation="sigmoid")(x)
    y = k.MaxPooling2D()(k.Conv2D(8, 3, activation="relu")(y))
    y = k.Dense(5)(k.Dense(16, activation="tanh")(k.Flatten()(y)))
    yield "plain", _keras_writer(keras.Model(x, y))
    x = image()
    y = k.ReLU(6.0)(norm(k.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
    y = k.Activation("swish")(norm(k.Conv2D(8, 1, use_bias=False)(y)))
    yield "separable", _keras_writer(keras.Model(x, k.Dense(5)(k.GlobalAveragePooling2D()(y))))
    x = image()
    y = k.ReLU()(norm(k.Conv2DTranspose(4, 2, strides=2)(x)))
    yield "decoder", _keras_writer(keras.Model(x, k.Conv2D(2, 1)(y)))
    x = keras.Input((6,), name="x")
    y = k.Dense(4)(k.ReLU()(norm(k.Dense(8, use_bias=False)(x))))
    yield "mlp", _keras_writer(keras.Model(x, y))
    x = keras.Input((5, 6), name="x")
    y = k.Activation("tanh")(norm(k.Dense(8)(x)))
    yield "steps", _keras_writer(keras.Model(x, k.Dense(3)(y)))
    x = keras.Input((5, 6), name="x")
    y = k.Dense(3)(k.ReLU()(norm(k.Conv1D(8, 3)(x))))
    yield "conv1d", _keras_writer(keras.Model(x, y))


def _keras_writer(model: Any) -> Write:
    def write(path: Path) -> None:
        model(np.zeros((1, *model.input_shape[1:]), np.float32))  # it wants to have been called
        model.export(path, format="onnx", verbose=False)

    return write


# --- paddle


def _paddle() -> Iterator[tuple[str, Write]]:
    import paddle
    from paddle import nn

    paddle.seed(0)
    image = [None, 3, 16, 16]
    nets: dict[str, tuple[Any, list[Any]]] = {
        "conv": (nn.Sequential(nn.Conv2D(3, 8, 3, padding=1, bias_attr=False), nn.BatchNorm2D(8),
                               nn.ReLU(), nn.Conv2D(8, 4, 3), nn.BatchNorm2D(4), nn.Hardswish(),
                               nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(4, 5)), image),
        "plain": (nn.Sequential(nn.Conv2D(3, 8, 3), nn.Sigmoid(), nn.MaxPool2D(2), nn.Flatten(),
                                nn.Linear(8 * 49, 16), nn.Tanh(), nn.Linear(16, 5)), image),
        "decoder": (nn.Sequential(nn.Conv2DTranspose(3, 8, 2, stride=2), nn.BatchNorm2D(8),
                                  nn.ReLU(), nn.Conv2D(8, 2, 1)), image),
        "depthwise": (nn.Sequential(nn.Conv2D(3, 6, 3, groups=3, padding=1), nn.BatchNorm2D(6),
                                    nn.ReLU6(), nn.Conv2D(6, 8, 1), nn.BatchNorm2D(8), nn.Swish()),
                      image),
        "mlp": (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1D(8), nn.ReLU(), nn.Linear(8, 4)),
                [None, 6]),
    }  # fmt: skip
    for name, (net, shape) in nets.items():
        net.eval()

        def write(path: Path, net: Any = net, shape: Any = shape) -> None:
            spec = [paddle.static.InputSpec(shape, "float32", "x")]
            paddle.onnx.export(
                net, str(path.with_suffix("")), input_spec=spec, opset_version=13,
                optimize_tool="None",
            )  # fmt: skip

        yield name, write


# --- scikit-learn


def _sklearn() -> Iterator[tuple[str, Write]]:
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    labels, values = (x[:, 0] > 0).astype(np.int64), x @ rng.normal(size=5)
    short = {"max_iter": 20, "hidden_layer_sizes": (8, 8), "random_state": 0}
    models = {
        "mlp": MLPRegressor(activation="tanh", **short).fit(x, values),
        "scaled_mlp": make_pipeline(StandardScaler(), MLPRegressor(**short)).fit(x, values),
        "min_max_mlp": make_pipeline(MinMaxScaler(), MLPRegressor(**short)).fit(x, values),
        "classifier": make_pipeline(StandardScaler(), MLPClassifier(**short)).fit(x, labels),
    }
    for name, model in models.items():

        def write(path: Path, model: Any = model) -> None:
            from skl2onnx import to_onnx

            final = model.steps[-1][1] if hasattr(model, "steps") else model
            options = {id(final): {"zipmap": False}} if isinstance(final, MLPClassifier) else None
            path.write_bytes(to_onnx(model, x[:1], options=options).SerializeToString())

        yield name, write


EXPORTERS: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[tuple[str, Write]]]]] = {
    "torch dynamo": (("torch", "onnxscript"), lambda: _torch(True)),
    "torch dynamo, optimize=False": (
        ("torch", "onnxscript"), lambda: _torch(True, optimize=False)
    ),
    "torch legacy": (
        ("torch",), lambda: _torch(False, do_constant_folding=False, opset_version=17)
    ),
    "keras, tf2onnx": (("keras", "tensorflow", "tf2onnx"), _keras),
    "paddle2onnx": (("paddle", "paddle2onnx"), _paddle),
    "skl2onnx": (("sklearn", "skl2onnx"), _sklearn),
}  # fmt: skip


# --- the round trip


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])


def _feeds(session: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = {i.name: [d if isinstance(d, int) and d > 0 else 3 for d in i.shape]
             for i in session.get_inputs()}  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}


def _error(model: onnx.ModelProto, wanted: list[Any], feeds: dict[str, np.ndarray]) -> float:
    got = _session(model).run(None, feeds)
    return max(_relative(a, b) for a, b in zip(got, wanted, strict=True))


def _relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-6))


def _norms(model: onnx.ModelProto) -> int:
    from bnpass.onnx_model.scopes import all_nodes

    return sum(node.op_type == "BatchNormalization" for node in all_nodes(model))


def _judged(error: float, limit: float = 2e-5) -> str:
    return "ok" if error <= limit else f"WRONG by {error:.1e}"


class Trip:
    """The steps of one file."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, onnx.load(path)
        session = _session(self.model)
        self.feeds = _feeds(session)
        self.wanted = session.run(None, self.feeds)

    def fold(self) -> str:
        if not bnpass.fold(self.path, plan_only=True).folded:
            return f"{_norms(self.model)} BN left" if _norms(self.model) else "none"
        folded = bnpass.fold(self.path)
        left = _norms(folded)
        return f"{left} BN left" if left else _judged(_error(folded, self.wanted, self.feeds))

    def insert(self) -> str:
        inserted = bnpass.insert(self.path, init="preserve")
        new = _norms(inserted) - _norms(self.model)
        if not new:
            return "none"
        error = _error(inserted, self.wanted, self.feeds)
        folded = bnpass.fold(inserted)
        left = _norms(folded)
        if left:
            return f"{left} BN do not fold back"
        return _judged(max(error, _error(folded, self.wanted, self.feeds)))

    def torch(self, train: bool) -> str:
        import torch

        gm = bnpass.to_torch(self.path).eval()
        inputs = [torch.from_numpy(self.feeds[name]) for name in gm.meta["bnpass"]["inputs"]]
        if train:
            optimizer = torch.optim.SGD(gm.train().parameters(), lr=1e-3)
            made = gm(*inputs)
            (made[-1] if isinstance(made, tuple) else made).square().mean().backward()
            optimizer.step()
            gm.eval()
        with torch.no_grad():
            made = gm(*inputs)
        outputs = [np.asarray(o) for o in (made if isinstance(made, tuple) else (made,))]
        if not train:
            return _judged(max(map(_relative, outputs, self.wanted)))
        return _judged(_error(bnpass.write_back(gm, self.path), outputs, self.feeds))


def row(exporter: str, name: str, write: Write, folder: Path) -> Row:
    """Export one network and take its file round."""
    found, path = Row(exporter, name), folder / f"{name}.onnx"
    try:
        write(path)
        trip = Trip(path)
    except Exception as error:  # noqa: BLE001 - exporters raise anything
        found.steps["export"] = _short(error)
        return found
    found.steps["export"], found.norms = "ok", _norms(trip.model)
    attempts = (trip.fold, trip.insert, lambda: trip.torch(False), lambda: trip.torch(True))
    for step, attempt in zip(STEPS, attempts, strict=True):
        try:
            found.steps[step] = attempt()
        except Exception as error:  # noqa: BLE001 - what goes wrong is the result
            found.steps[step] = _short(error)
    return found


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"


def rows(only: str, keep: Path) -> Iterator[Row]:
    """Every network of one exporter, if it is installed; its files lie in ``keep`` then."""
    for exporter, (packages, nets) in EXPORTERS.items():
        if only != exporter:
            continue
        missing = [name for name in packages if util.find_spec(name) is None]
        if missing:
            print(f"{exporter}: {', '.join(missing)} not installed", flush=True)
            continue
        folder = keep / exporter.replace(", ", "-").replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in nets():
            yield row(exporter, name, write, folder)


def show(found: list[Row]) -> None:
    """A line an exporter, and then everything that is not right."""
    common.heading("files of other tools, by exporter and step")
    exporters = list(dict.fromkeys(r.exporter for r in found))
    table = []
    for exporter in exporters:
        mine = [r for r in found if r.exporter == exporter]
        cells: list[Any] = [exporter, len(mine), sum(r.norms for r in mine)]
        for step in ("export", *STEPS):
            tried = [r.steps[step] for r in mine if r.steps.get(step, "none") != "none"]
            cells.append(f"{tried.count('ok')} of {len(tried)}")
        table.append(cells)
    common.table(("exporter", "nets", "BN", "export", *STEPS), table)
    for r in found:
        for step, text in r.steps.items():
            if text not in ("ok", "none"):
                print(f"{r.exporter} / {r.net}, {step}: {text}")


def alone(exporter: str, keep: Path, quick: bool) -> list[Row]:
    """One exporter's networks, here."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found = []
    for one in islice(rows(exporter, keep), 2 if quick else None):
        found.append(one)
        print(f"{one.exporter} / {one.net}: {one.steps}", flush=True)
    return found


def apart(exporter: str, keep: Path, quick: bool) -> list[Row]:
    """One exporter's networks in a process of their own: TensorFlow and Paddle bear no other."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        words = [sys.executable, __file__, "--alone", exporter, "--keep", str(keep), "-o", str(out)]
        code = subprocess.run([*words, *(["--quick"] if quick else [])], check=False).returncode
        if code or not out.exists():
            return [Row(exporter, "all", steps={"export": f"the process ended with {code}"})]
        return [Row(**one) for one in json.loads(out.read_text(encoding="utf-8"))["rows"]]


def main() -> None:
    """Run and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", metavar="NAME", help="exporters whose name contains this")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the files there")
    parser.add_argument("--alone", metavar="NAME", help=argparse.SUPPRESS)  # in a child process
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keep = args.keep or Path(folder)
        if args.alone is not None:
            found = alone(args.alone, keep, args.quick)
        else:
            found = [
                one for name in EXPORTERS if not args.only or args.only in name
                for one in apart(name, keep, args.quick)
            ]  # fmt: skip
            show(found)
    common.save(args.output, {"machine": common.machine(), "rows": [asdict(r) for r in found]})


if __name__ == "__main__":
    main()
