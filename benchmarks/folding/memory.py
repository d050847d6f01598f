"""Part 3: models of 2 GB: external data beside the file, and all in one protobuf."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from benchmarks.common import Cost, heading, measure, table
from benchmarks.folding.speed import commands, print_failures

CHANNELS = 512  # a 3x3 Conv then has 9.4 MB of weights
LIMIT = 400.0
NEAR_LIMIT = 207  # layers: 1.95 GB, just below what one protobuf holds


def run(quick: bool, folder: Path | None = None) -> dict[str, Any]:
    """Print memory and time; return them. The files are deleted afterwards."""
    layers = 8 if quick else 227
    need = 4 * layers * CHANNELS * CHANNELS * 36
    place = folder or Path(tempfile.gettempdir())
    if shutil.disk_usage(place).free < need:
        print(f"\nmemory: left out, {place} has less than {need / 2**30:.0f} GiB free")
        return {"left_out": "too little disk"}
    with tempfile.TemporaryDirectory(dir=place) as name:
        external = _external(Path(name), layers)
    with tempfile.TemporaryDirectory(dir=place) as name:
        single = _single(Path(name), 8 if quick else NEAR_LIMIT)
    return {"external": external, "single": single}


def _external(folder: Path, layers: int) -> dict[str, Any]:
    source, target = folder / "big.onnx", folder / "out" / "big.onnx"
    target.parent.mkdir()
    size = write_external(source, layers)
    data = source.with_name("big.onnx.data")
    found = _copies(data, folder)
    for tool, command in commands(source, target).items():
        if tool == "bnpass (verified)":
            continue
        found[tool] = _best(command, folder, 2 if "bnpass" in tool else 1)
    heading(f"Memory: a chain of {layers} Convs with BN, {size / 1e9:.2f} GB of external data")
    table(["tool", *COLUMNS], [[tool, *_row(cost, found)] for tool, cost in found.items()])
    print_failures(found)
    return {"bytes": size, **{tool: vars(cost) for tool, cost in found.items()}}


def _copies(source: Path, folder: Path) -> dict[str, Cost]:
    """cp, which leaves the bytes in memory, and with fsync: bnpass's files are on the disk."""
    ends = [str(source), str(folder / "copy")]
    return {"cp": _best(["cp", *ends], folder, 2),
            "cp, fsync": _best(["sh", "-c", 'cp "$0" "$1" && sync "$1"', *ends], folder, 2)}


COLUMNS = ["wall s", "over cp", "over cp, fsync", "CPU s", "over cp", "peak MiB"]


def _row(cost: Cost, found: dict[str, Cost]) -> list[Any]:
    if cost.failed:
        return ["fails", *[""] * (len(COLUMNS) - 1)]
    copy, lasting = found["cp"], found["cp, fsync"]
    return [cost.wall, f"{cost.wall / copy.wall:.2f}x", f"{cost.wall / lasting.wall:.2f}x",
            cost.cpu, f"{cost.cpu / copy.cpu:.2f}x", cost.peak]


def _best(command: list[str], folder: Path, repeats: int) -> Cost:
    """The fastest run; what it wrote goes before the next."""
    found = []
    for _ in range(repeats):
        cost = measure(command, limit=LIMIT)
        for written in ((folder / "copy"), *(folder / "out").glob("*")):
            written.unlink(missing_ok=True)
        if cost.failed:
            return cost
        found.append(cost)
    return min(found, key=lambda cost: cost.wall)


def _single(folder: Path, layers: int) -> dict[str, Any]:
    source, target = folder / "single.onnx", folder / "out.onnx"
    size = write_single(source, layers)
    found = _copies(source, folder)
    near = measure(commands(source, target)["bnpass --no-verify"], limit=LIMIT)
    target.unlink(missing_ok=True)
    beyond = folder / "beyond.onnx"
    with beyond.open("wb") as file:  # sparse: its size is what must be noticed
        file.truncate(2**31 + 1)
    refused = measure(commands(beyond, target)["bnpass --no-verify"], limit=LIMIT)
    heading(f"One protobuf of {size / 1e9:.2f} GB, and a file beyond 2 GiB")
    found[f"bnpass, {size / 1e9:.2f} GB"] = near
    table(["tool", *COLUMNS], [[tool, *_row(cost, found)] for tool, cost in found.items()])
    print(f"\n2.15 GB: {refused.failed or 'folded?'}")
    return {"bytes": size, **{k: vars(c) for k, c in found.items()}, "beyond": refused.failed}


def _layers(count: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """The nodes of the big chain and its small tensors; W0, W1 ... are left to the caller."""
    rng = np.random.default_rng(0)
    nodes, small, value = [], {}, "x"
    for i in range(count):
        names = [f"{part}{i}" for part in ("scale", "shift", "mean", "var")]
        for name in names:
            small[name] = rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
        nodes.append(helper.make_node("Conv", [value, f"W{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *names], [f"n{i}"]))
        value = f"r{i}"
        nodes.append(helper.make_node("Relu", [f"n{i}"], [value]))
    shape = ["N", CHANNELS, 8, 8]
    ports = [helper.make_tensor_value_info(name, 1, shape) for name in ("x", value)]
    graph = helper.make_graph(nodes, "big", ports[:1], ports[1:])
    for name, array in small.items():
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8), small


def _weights(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = (CHANNELS, CHANNELS, 3, 3)
    return rng.standard_normal(shape, np.float32) * np.float32((2 / (9 * CHANNELS)) ** 0.5)


def write_external(path: Path, layers: int) -> int:
    """Write the chain with its kernels in a data file beside it; return that file's size."""
    model, _ = _layers(layers)
    rng, end = np.random.default_rng(1), 0
    with path.with_name(f"{path.name}.data").open("wb") as file:
        for i in range(layers):
            data = _weights(rng).tobytes()
            tensor = model.graph.initializer.add(name=f"W{i}", data_type=1,
                                                 dims=(CHANNELS, CHANNELS, 3, 3), data_location=1)
            facts = {"location": f"{path.name}.data", "offset": end, "length": len(data)}
            for key, value in facts.items():
                tensor.external_data.add(key=key, value=str(value))
            end += file.write(data)
    onnx.save(model, path)
    return end


def write_single(path: Path, layers: int) -> int:
    """Write the chain into one file, kernel by kernel; return its size."""
    model, _ = _layers(layers)
    rng = np.random.default_rng(1)
    for i in range(layers):
        model.graph.initializer.add(name=f"W{i}", data_type=1, dims=(CHANNELS, CHANNELS, 3, 3),
                                    raw_data=_weights(rng).tobytes())
    path.write_bytes(model.SerializeToString())
    return path.stat().st_size
