"""Time and memory of small files that ask for much: ``python benchmarks/worst_files.py``.

Each file of a few bytes to a few MB declares, repeats or nests far more than it holds. A command
reads it in a process of its own, under a limit of 8 GiB and two minutes; the table shows what the
process took at most and what came of it, the dearest file first.
"""

from __future__ import annotations

import gzip
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
MEMORY, SECONDS = 8 << 30, 120
FOLD = ["fold", "m.onnx", "-o", "o.onnx"]
CALIBRATE = ["calibrate", "m.onnx", "-o", "o.onnx", "--data"]


class Case(NamedTuple):
    """A file, and the command that reads it.

    Attributes:
        name: what it does.
        write: writes it into a folder.
        command: the arguments.
    """

    name: str
    write: Callable[[Path], None]
    command: list[str]


class Outcome(NamedTuple):
    """What a command took and said."""

    seconds: float
    on_a_core: float
    peak: int
    said: str


def net(front: list[onnx.NodeProto] | None = None, reads: str = "h", shape: object = None,
        **tensors: np.ndarray) -> onnx.ModelProto:
    """Conv, whatever comes behind it, BatchNormalization, Relu."""
    rng = np.random.default_rng(0)
    arrays = {"W": rng.normal(size=(4, 3, 3, 3)), **{k: rng.random(4) + 0.5 for k in "gbmv"}}
    held = [numpy_helper.from_array(a.astype(np.float32), k) for k, a in arrays.items()]
    held += [numpy_helper.from_array(a, k) for k, a in tensors.items()]
    nodes = [helper.make_node("Conv", ["x", "W"], ["h"], "conv", pads=[1, 1, 1, 1]), *(front or []),
             helper.make_node("BatchNormalization", [reads, *"gbmv"], ["n"], "bn"),
             helper.make_node("Relu", ["n"], ["y"], "relu")]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [info("x", 1, shape or ["N", 3, 6, 6])],
                              [info("y", 1, None)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(model: onnx.ModelProto) -> Callable[[Path], None]:
    """Writes a model as m.onnx."""
    return lambda folder: onnx.save(model, folder / "m.onnx") and None


def functions(depth: int = 30) -> onnx.ModelProto:
    """Functions that call each other twice: 2 ** depth nodes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("loc", 1)]
    model = net([helper.make_node("f0", ["h"], ["k"], "call", domain="loc")], "k")
    for level in range(depth):
        inner = [("f" + str(level + 1), "loc")] * 2 if level < depth - 1 else [("Relu", "")]
        names = ["x", "t", "y"] if len(inner) == 2 else ["x", "y"]
        body = [helper.make_node(kind, [names[i]], [names[i + 1]], domain=domain)
                for i, (kind, domain) in enumerate(inner)]
        model.functions.append(helper.make_function("loc", f"f{level}", ["x"], ["y"], body, opsets))
    model.opset_import.add(domain="loc", version=1)
    return model


def doubling() -> onnx.ModelProto:
    """A constant that Concat doubles 34 times, and adds to the layer."""
    nodes, value = [], "one"
    for level in range(34):
        nodes.append(helper.make_node("Concat", [value, value], [f"c{level}"], f"twice{level}",
                                      axis=0))
        value = f"c{level}"
    nodes.append(helper.make_node("ReduceMean", [value], ["mean"], "reduce", keepdims=0))
    nodes.append(helper.make_node("Add", ["h", "mean"], ["k"], "add"))
    return net(nodes, "k", one=np.ones(1, np.float32))


def expanded() -> onnx.ModelProto:
    """A constant of 1e10 numbers by Expand."""
    nodes = [helper.make_node("Expand", ["one", "size"], ["e"], "expand"),
             helper.make_node("ReduceMean", ["e"], ["mean"], "reduce", keepdims=0),
             helper.make_node("Add", ["h", "mean"], ["k"], "add")]
    return net(nodes, "k", one=np.ones(1, np.float32), size=np.array([10**10]))


def endless() -> onnx.ModelProto:
    """A Loop of 2 ** 62 rounds."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Identity", ["go"], ["on"])],
        "body", [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []),
                 info("a", 1, None)], [info("on", TensorProto.BOOL, []), info("b", 1, None)])
    nodes = [helper.make_node("Loop", ["trip", "yes", "h"], ["k"], "loop", body=body)]
    return net(nodes, "k", trip=np.array(2**62), yes=np.array(True))


def long_names() -> onnx.ModelProto:
    """Every node with a name of 1 MB."""
    model = net()
    for number, node in enumerate(model.graph.node):
        node.name = f"{number}" + "N" * 1_000_000
    return model


def alike(count: int = 20_000) -> onnx.ModelProto:
    """Thousands of nodes of one name."""
    model = net()
    for number in range(count):
        model.graph.node.add(op_type="Relu", name="a", input=["h"], output=[f"r{number}"])
    return model


def one_culprit(count: int = 1000) -> onnx.ModelProto:
    """A node with a name of 1 MB that stops a thousand BatchNormalizations."""
    model = net([helper.make_node("Softmax", ["h"], ["s"], "N" * 1_000_000)], "s")
    for number in range(count):
        node = model.graph.node.add(op_type="BatchNormalization", output=[f"m{number}"])
        node.input.extend(["s", *"gbmv"])
    return model


def sparse(folder: Path) -> None:
    """External data of 4 TiB of which 1 kB is used."""
    model, content = net(), b""
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.data"), ("offset", len(content)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        content += raw
    (folder / "w.data").write_bytes(content)
    os.truncate(folder / "w.data", 1 << 42)
    onnx.save(model, folder / "m.onnx")


def zeros(folder: Path) -> None:
    """IDX images in gzip: 8 GB of zeros in 8 MB."""
    saved(net())(folder)
    with gzip.open(folder / "train-images-idx4-ubyte.gz", "wb", 9) as file:
        file.write(struct.pack(">4B4i", 0, 0, 8, 4, 74_000_000, 3, 6, 6))
        for _ in range(8000):
            file.write(bytes(1_000_000))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4Bi", 0, 0, 8, 1, 4) + bytes(4))


def declared(folder: Path) -> None:
    """An .npy that says it has 2 ** 40 rows."""
    saved(net())(folder)
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 3, 6, 6), }"
    head = head.ljust(117) + b"\n"
    (folder / "x.npy").write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head)
    np.save(folder / "y.npy", np.zeros(4, np.int64))


def cases() -> Iterator[Case]:
    """The files."""
    yield Case("30 functions that call each other twice", saved(functions()), FOLD)
    yield Case("a constant doubled 34 times", saved(doubling()), FOLD)
    yield Case("a constant expanded to 1e10 numbers", saved(expanded()), FOLD)
    yield Case("a loop of 2^62 rounds", saved(endless()), FOLD)
    yield Case("an input of 3 x 10^5 x 10^5", saved(net(shape=[1, 3, 10**5, 10**5])), FOLD)
    yield Case("an input with an axis of 2^31", saved(net(shape=["N", 3, 6, 2**31])),
               ["inspect", "m.onnx"])
    yield Case("names of 1 MB", saved(long_names()), FOLD)
    yield Case("20,000 nodes of one name", saved(alike()), ["inspect", "m.onnx"])
    yield Case("1,000 norms stopped by a node with a name of 1 MB", saved(one_culprit()),
               ["fold", "m.onnx", "--dry-run", "--explain"])
    yield Case("external data of 4 TiB with holes", sparse, [*FOLD, "--no-verify"])
    yield Case("8 GB of zeros in gzip", zeros, [*CALIBRATE, "."])
    yield Case(".npy that declares 2^40 rows", declared, [*CALIBRATE, "x.npy,y.npy"])


def measured(folder: Path, command: list[str]) -> Outcome:
    """Run a command and wait for it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        [sys.executable, "-m", "bnpass", *command], cwd=folder, stdout=subprocess.DEVNULL,
        stderr=errors, env=environment,
    ) as process:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() - start > SECONDS:
                process.kill()
            time.sleep(0.01)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").splitlines()
    said = next((line for line in lines if line.startswith("error:")), "done")
    return Outcome(time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss << 10,
                   f"{process.returncode}, {said.removeprefix('error: ')}")


def size_of(folder: Path) -> int:
    """Bytes on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def main() -> int:
    """Print the table."""
    rows = []
    for case in cases():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            case.write(folder)
            rows.append((case, size_of(folder), measured(folder, case.command)))
    rows.sort(key=lambda row: -row[2].on_a_core)
    print("| file | on disk | command | seconds | of a core | peak | exit code, message |")
    print("|---|---:|---|---:|---:|---:|---|")
    for case, size, (seconds, on_a_core, peak, said) in rows:
        said = said if len(said) < 130 else f"{said[:127]}..."
        print(f"| {case.name} | {size >> 10:,} kB | {case.command[0]} | {seconds:.1f} | "
              f"{on_a_core:.1f} | {peak >> 20} MiB | {said} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
