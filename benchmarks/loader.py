"""Image folders and large arrays: how fast samples come, how soon the first, in what memory.

A pass over a folder of PNGs beside torch's DataLoader with Pillow (each with two
workers, turn by turn, the same images in the same batches), the time from the end of the imports to
the end of the first training step, and a training from a uint8 .npy that is larger than what its
process may allocate with a float copy of it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, heading, machine, measure, parser, save, table
from bnpass.data import open_data
from bnpass.data.spec import InputSpec
from bnpass.training import TrainConfig
from bnpass.training.feed import Feed

SIDE, CLASSES, BATCH, WORKERS = 64, 10, 64, 2
LIMIT = 1_500_000_000
"""Bytes of RLIMIT_DATA."""

NET = """<ir_version: 9, opset_import: ["" : 17]> net (float[N, 3, 64, 64] x) => (float[N, 10] y) {
  h = Conv<strides = [4, 4]>(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p)
  y = MatMul(f, c)
}"""

FIRST = """
import json, sys, time
import numpy, torch, PIL.Image
import bnpass
from bnpass.data import open_data
from bnpass.data.spec import InputSpec
from bnpass.training import TrainConfig, train
from torch import nn
torch.set_num_threads(1)
net = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(),
                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
start, used = time.perf_counter(), time.process_time()
data = open_data(sys.argv[1], inputs=InputSpec(("N", 3, 64, 64)))
train(net, data, None, TrainConfig(steps=1, batch_size=64, lr=0.1, device="cpu"))
print(json.dumps({"seconds": time.perf_counter() - start,
                  "CPU seconds": time.process_time() - used, "images": len(data)}))
"""

TRAIN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
from bnpass.cli import main
sys.exit(main(sys.argv[2:]))
"""


def write_images(folder: Path, count: int) -> None:
    """PNGs of soft noise, ``count`` in all, in one folder a class."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (256, 9, 9, 3), dtype=np.uint8)
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)

    def write(number: int) -> None:
        picture = Image.fromarray(small[number % 256]).resize((SIDE, SIDE), Image.BILINEAR)
        picture.save(folder / f"class{number % CLASSES}" / f"{number:06}.png")

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(write, range(count)))


def ours(folder: Path) -> Iterator[tuple[Any, Any]]:
    """A shuffled pass as training takes it."""
    data = open_data(folder, inputs=InputSpec(("N", 3, SIDE, SIDE)), workers=WORKERS)
    feed = Feed(data, TrainConfig(batch_size=BATCH, steps=1, device="cpu"), torch.device("cpu"))
    for _, parts in feed.steps(0, feed.per_epoch):
        yield from parts


def peer(folder: Path) -> Iterator[tuple[Any, Any]]:
    """The same of torch's DataLoader and Pillow."""
    class Images(Dataset[Any]):
        def __init__(self) -> None:
            self.paths = sorted(folder.glob("*/*.png"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            path = self.paths[index]
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
            return x, int(path.parent.name[-1])

    yield from DataLoader(Images(), batch_size=BATCH, shuffle=True, num_workers=WORKERS,
                          drop_last=True)


def rate(walk: Callable[[Path], Iterator[tuple[Any, Any]]], folder: Path) -> float:
    """Images a second in one pass."""
    start, seen = time.perf_counter(), 0
    for x, y in walk(folder):
        assert x.shape[1:] == (3, SIDE, SIDE)
        assert len(y) == len(x)
        seen += len(x)
    return seen / (time.perf_counter() - start)


def throughput(folder: Path, repeats: int) -> dict[str, Any]:
    """Median rates, turn by turn, and the median of the ratios."""
    pairs = [(rate(ours, folder), rate(peer, folder)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    return {"bnpass": mine, "DataLoader": theirs, "ratio": statistics.median(ratios),
            "lowest": ratios[0], "highest": ratios[-1]}


def first_step(folder: Path) -> dict[str, Any]:
    """Seconds from the imports' end to the end of the first step."""
    done = subprocess.run([sys.executable, "-c", FIRST, str(folder)], check=True, text=True,
                          capture_output=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory(folder: Path, size: int) -> dict[str, Any]:
    """Peak of a training from a uint8 array of so many bytes, under the limit."""
    import onnx

    count = size // (3 * SIDE * SIDE)
    rng = np.random.default_rng(0)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    for start in range(0, count, 1000):
        x[start : start + 1000] = rng.integers(0, 256, x[start : start + 1000].shape, np.uint8)
    x.flush()
    np.save(folder / "y.npy", rng.integers(0, CLASSES, count))
    model = onnx.parser.parse_model(NET)
    for name, shape in (("w", (8, 3, 4, 4)), ("c", (8, CLASSES))):
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, folder / "net.onnx")
    command = [sys.executable, "-c", TRAIN, str(LIMIT), "train", str(folder / "net.onnx"),
               "--data", f"{folder / 'x.npy'},{folder / 'y.npy'}", "-o",
               str(folder / "trained.onnx"), "--epochs", "1", "--device", "cpu", "-q"]
    cost = measure(command, limit=600)
    return {"array MB": x.nbytes / 1e6, "samples": count, "peak MiB": cost.peak,
            "wall s": cost.wall, "failed": cost.failed}


def main() -> int:
    """Measure, print, write."""
    args = parser(__doc__).parse_args()
    count, repeats, size = (640, 1, 10_000_000) if args.quick else (20_000, 3, 250_000_000)
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        images, arrays = Path(name) / "images", Path(name) / "arrays"
        arrays.mkdir()
        write_images(images, count)
        heading(f"{count} PNGs of {SIDE} x {SIDE}, batches of {BATCH}, {WORKERS} workers")
        found = results["throughput"] = throughput(images, repeats)
        table(("images/s", "bnpass", "DataLoader + Pillow", "ratio", "lowest", "highest"),
              [("a pass", *found.values())])
        heading("The first training step, from the end of the imports")
        found = results["first step"] = first_step(images)
        table(("", *found), [("one step", *found.values())])
        heading(f"An epoch from a uint8 .npy with RLIMIT_DATA of {LIMIT / 1e9} GB")
        found = results["memory"] = memory(arrays, size)
        table(("", *found), [("bnpass train", *found.values())])
    save(args.output, results)
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
