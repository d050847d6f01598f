"""Out of memory, for one command after another: one line, exit code 3, nothing half-written.

Each command runs again and again in forks with a few MiB more than they began with. Whatever the
limit: it is done right, or refused in one line; inputs and the earlier output are whole.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.faults.lab import EVERY, assert_clear, contents, job, said, served

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and limits")

WIDTH = 1500
"""Of the layers: each weight is 9 MB."""

COMMANDS = {
    "insert": ("insert", "plain.onnx", "-o", "o.onnx", "--force"),
    "strip": ("strip", "m.onnx", "-o", "o.onnx", "--force"),
    "fold": ("fold", "m.onnx", "-o", "o.onnx", "--force", "--no-verify"),
    "fold external": ("fold", "e.onnx", "-o", "o.onnx", "--force", "--no-verify"),
    "fold with a sidecar": ("fold", "m.onnx", "-o", "o.onnx", "--sidecar", "s.undo", "--force",
                            "--no-verify"),
    "unfold": ("unfold", "f.onnx", "f.undo", "-o", "o.onnx", "--force"),
    "collapse": ("collapse", "m.onnx", "-o", "o.onnx", "--force", "--no-verify"),
    "inspect": ("inspect", "m.onnx"),
    "draw": ("draw", "m.onnx", "-o", "o.dot", "--force"),
    "verify": ("verify", "m.onnx", "f.onnx"),
    "calibrate": ("calibrate", "m.onnx", "--data", "d.npz", "-o", "o.onnx", "--force"),
    "train": ("train", "m.onnx", "--data", "d.npz", "-o", "o.onnx", "--force", "--steps", "2",
              "--device", "cpu"),
    "run": ("run", "plain.onnx", "--data", "d.npz", "-o", "out", "--steps", "2", "--device",
            "cpu"),
}
LIBRARIES = (-11, -6, 127)
"""Protobuf and the C library end the process where they get no memory: that is as a kill."""

LIMITS = range(2, 130, 6) if EVERY else (2, 14, 40)
"""MiB above what the process has when the command begins."""


def layers(norm: bool) -> onnx.ModelProto:
    """Three layers of WIDTH sigmoids, the first with a BatchNormalization in front."""
    rng, nodes, tensors, value = np.random.default_rng(0), [], [], "x"
    for number in range(3):
        weight = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / np.sqrt(WIDTH)
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w{number}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [f"h{number}"]))
        value = f"h{number}"
        if norm:
            names = [f"{part}{number}" for part in ("g", "b", "m", "v")]
            tensors += [numpy_helper.from_array(rng.random(WIDTH).astype(np.float32) + 0.5, name)
                        for name in names]
            nodes.append(helper.make_node("BatchNormalization", [value, *names], [f"n{number}"]))
            value = f"n{number}"
        nodes.append(helper.make_node("Sigmoid", [value], [f"s{number}"]))
        value = f"s{number}"
    ports = [helper.make_tensor_value_info(name, 1, ["N", WIDTH]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose weights are large beside the limits, data, and an earlier output."""
    folder = tmp_path_factory.mktemp("large")
    onnx.save(layers(norm=False), folder / "plain.onnx")
    onnx.save(layers(norm=True), folder / "m.onnx")
    onnx.save(layers(norm=True), str(folder / "e.onnx"), save_as_external_data=True,
              location="e.data", size_threshold=0)
    rng = np.random.default_rng(1)
    np.savez(folder / "d.npz", x=rng.normal(size=(60, WIDTH)).astype(np.float32),
             y=rng.integers(0, WIDTH, 60))
    from bnpass.cli import main

    assert main(["fold", str(folder / "m.onnx"), "-o", str(folder / "f.onnx"), "--sidecar",
                 str(folder / "f.undo"), "--no-verify", "-q"]) == 0
    (folder / "o.onnx").write_bytes((folder / "f.onnx").read_bytes())
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_without_memory_a_command_is_refused_in_one_line(
    large: Path, tmp_path: Path, name: str
) -> None:
    before = contents(large)
    places = [tmp_path / f"{limit}" for limit in LIMITS]
    codes = served(tmp_path, [job(large, place, COMMANDS[name], memory=limit)
                              for place, limit in zip(places, LIMITS, strict=True)])
    for place, code in zip(places, codes, strict=True):
        where, found = f"{name} with {place.name} MiB, exit {code}", contents(place)
        if code:
            assert {key: found.get(key) for key in before} == before, where
        if code in LIBRARIES:
            continue
        assert code in (0, 3), f"{where}: {said(place)}"
        assert_clear(place, code, where)
        if code:
            assert "out of memory" in said(place), f"{where}: {said(place)}"
            left = {key for key in found if not key.startswith(("o.run/", "out/"))}
            assert left == before.keys(), where
            assert not [path for path in found if path.endswith(".tmp")], where
    assert 3 in codes, f"{name}: the limits are too wide"
    for place in places:
        shutil.rmtree(place)  # with every limit they are gigabytes
