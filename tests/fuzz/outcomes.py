"""What comes of damaged files, by input and fault: ``python -m tests.fuzz.outcomes [N]``.

A table. Of everything that bnpass reads: N files (20) for each fault, each given to a command.
Counted are runs that were done (a fault may hit what nobody reads) and those that were refused, as
:mod:`tests.fuzz.damage` judges them; anything else ends the program with exit code 1.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import random
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from bnpass.onnx_model.storage import external
from tests.commands.helpers import CLASSES, FEATURES, add_norm, mlp
from tests.fuzz.damage import BYTE_FAULTS, WIRE_FAULTS, _bytes, _wire, outcome, run

Fault = Callable[[random.Random, bytes], bytes]


class Read(NamedTuple):
    """A file that is damaged, the files around it, and the command that reads them.

    Attributes:
        name: what it is.
        damaged: the file's name.
        files: all files' contents by name.
        command: the arguments.
        wire: whether the file is a protobuf message.
    """

    name: str
    damaged: str
    files: dict[str, bytes]
    command: list[str]
    wire: bool = False


def reads() -> Iterator[Read]:
    """Everything that is read."""
    model = add_norm(mlp())
    whole = {"m.onnx": model.SerializeToString()}
    fold = ["fold", "m.onnx", "-o", "o.onnx", "--no-verify"]
    yield Read("model", "m.onnx", whole, fold, wire=True)
    yield Read("model with external data", "e.onnx", _external(model),
               ["fold", "e.onnx", "-o", "o.onnx", "--no-verify"], wire=True)
    yield Read("external data", "e.data", _external(model),
               ["fold", "e.onnx", "-o", "o.onnx", "--no-verify"])
    yield Read("sidecar", "s.undo", _folded(whole), ["unfold", "f.onnx", "s.undo", "-o", "o.onnx"],
               wire=True)
    for name, (data, files) in _data().items():
        yield Read(name, next(iter(files)), {**whole, **files},
                   ["calibrate", "m.onnx", "--data", data, "-o", "o.onnx"])


def _external(model: onnx.ModelProto) -> dict[str, bytes]:
    light, content = onnx.ModelProto(), b""
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        raw = external.raw_bytes(tensor)
        external.point(tensor, "e.data", len(content), len(raw))
        content += raw
    return {"e.onnx": light.SerializeToString(), "e.data": content}


def _folded(whole: dict[str, bytes]) -> dict[str, bytes]:
    from bnpass.cli import main

    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        (folder / "m.onnx").write_bytes(whole["m.onnx"])
        assert main(["fold", str(folder / "m.onnx"), "-o", str(folder / "f.onnx"), "--sidecar",
                     str(folder / "s.undo"), "--no-verify", "-q"]) == 0
        return {"f.onnx": (folder / "f.onnx").read_bytes(),
                "s.undo": (folder / "s.undo").read_bytes()}


def _data() -> dict[str, tuple[str, dict[str, bytes]]]:
    """Data for a calibration, by what holds it: the option, and the files."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, 24)
    npz, npy, labels = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(npz, x=x, y=y)
    np.save(npy, x)
    np.save(labels, y)
    codes = (x * 20 + 128).clip(0, 255).astype(np.uint8)
    images = struct.pack(">4B2i", 0, 0, 8, 2, 24, FEATURES) + codes.tobytes()
    marks = struct.pack(">4Bi", 0, 0, 8, 1, 24) + y.astype(np.uint8).tobytes()
    names = ("train-images-idx2-ubyte", "train-labels-idx1-ubyte")
    packed = {f"{name}.gz": gzip.compress(content, mtime=0)
              for name, content in zip(names, (images, marks), strict=True)}
    return {"npz": ("d.npz", {"d.npz": npz.getvalue()}),
            "npy": ("x.npy,y.npy", {"x.npy": npy.getvalue(), "y.npy": labels.getvalue()}),
            "IDX": (".", dict(zip(names, (images, marks), strict=True))),
            "IDX in gzip": (".", packed)}


def faults(wire: bool) -> dict[str, Fault]:
    """The faults by their names, those of protobuf's fields only for messages."""
    found: dict[str, Fault] = {}
    for kind, name in enumerate(BYTE_FAULTS):
        found[name] = lambda rng, content, kind=kind: _bytes(rng, content, kind)  # type: ignore[misc]
    for kind, name in enumerate(WIRE_FAULTS if wire else ()):
        found[name] = lambda rng, content, kind=kind: _wire(rng, content, 0, kind)  # type: ignore[misc]
    return found


def judged(read: Read, fault: str, number: int, damage: Fault, folder: Path) -> str:
    """What came of one file."""
    rng = random.Random(f"{read.name}/{fault}/{number}")
    files = {**read.files, read.damaged: damage(rng, read.files[read.damaged])}
    place = folder / "case"
    place.mkdir()
    try:
        for name, content in files.items():
            (place / name).write_bytes(content)
        return outcome(place, run(place, read.command), files)
    finally:
        shutil.rmtree(place)


def main(arguments: list[str]) -> int:
    """Print the table."""
    count = int(arguments[0]) if arguments else 20
    folder, wrong = Path(tempfile.mkdtemp(prefix="bnpass-outcomes-")), 0
    print("| damaged | fault | files | done | refused | anything else |")
    print("|---|---|---:|---:|---:|---:|")
    listed = list(reads())
    gc.freeze()
    for read in listed:
        for name, damage in faults(read.wire).items():
            found = Counter(judged(read, name, n, damage, folder) for n in range(count))
            other = {what: times for what, times in found.items() if what not in ("ok", "clean")}
            print(f"| {read.name} | {name} | {count} | {found['ok']} | {found['clean']} | "
                  f"{sum(other.values())} |", flush=True)
            for what in other:
                print(f"{read.name}, {name}: {what}", file=sys.stderr)
            wrong += len(other)
    shutil.rmtree(folder)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
