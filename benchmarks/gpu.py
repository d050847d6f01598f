"""The whole job on a GPU, side by side: ``python benchmarks/gpu.py [--quick] [-o result.json]``.

A GoogLeNet on synthetic images, made on the device: insert BN, train under autocast to bf16,
calibrate, fold, export, verify on the CUDA provider, determinism, bench. One table at the end.
Without CUDA, or with an onnxruntime for the CPU only, it says so and does the rest. No network.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_job.result import Result
from bnpass.files import atomic_write
from bnpass.report.document import to_json
from bnpass.report.tables import render
from bnpass.runtime.environment import Environment, environment
from bnpass.runtime.ort import onnxruntime

if TYPE_CHECKING:
    import torch
    from torch import nn

    from benchmarks.gpu_job.network import Images

COMPILING = 140.0  # seconds that torch.compile takes for two networks of this size on 16 cores


@dataclass(frozen=True)
class Settings:
    """Sizes of the job; the defaults are for a GPU.

    Attributes:
        size: height and width of the images.
        divisor: divides GoogLeNet's channels.
        batch: images a training step.
        steps: of the training that is deployed.
        rounds: timed steps of each network in a mode.
        samples: images for the population statistics.
        modes: of the throughput, see :func:`benchmarks.gpu_job.training.throughput`.
        batches: batch sizes on onnxruntime.
        checked: batch sizes of the determinism report.
        seconds: bound of the whole; a setting is left out where it would not fit.
        each: time limit of one setting.
    """

    size: int = 224
    divisor: int = 1
    batch: int = 128
    steps: int = 60
    rounds: int = 30
    samples: int = 2048
    modes: tuple[str, ...] = ("eager", "channels_last", "compile")
    batches: tuple[int, ...] = (1, 32)
    checked: tuple[int, ...] = (1, 2, 3, 7, 64)
    seconds: float = 360.0
    each: float = 6.0


QUICK = Settings(
    size=64, divisor=8, batch=8, steps=12, rounds=4, samples=64, modes=("eager",), batches=(2,),
    checked=(1, 2, 3), seconds=60.0, each=1.0,
)  # fmt: skip


class Made(dict[str, Any]):
    """What earlier steps made, by name."""

    def __missing__(self, key: str) -> Any:
        raise RuntimeError(f"left out: there is no {key!r}, an earlier step failed")


class Job:
    """The steps, in order; each leaves what the next ones need.

    Args:
        settings: sizes.
        folder: where the files go.
        device: of torch.
        found: facts on the machine.
    """

    def __init__(
        self, settings: Settings, folder: Path, device: torch.device, found: Environment
    ) -> None:
        from benchmarks.gpu_job.network import Images

        self.settings, self.folder, self.device = settings, folder, device
        working = {p.name for p in found.providers if p.works}
        self.providers = [name for name in ("cuda", "cpu") if name in working]
        self.result = Result(settings.seconds)
        self.images: Images = Images(settings.size, 10, device)
        self.nets = Made()
        self.files = Made()

    def run(self) -> Result:
        """Do everything; a step that fails is noted, and the others still run."""
        steps = (
            self.insert, self.train, self.calibrate_and_fold, self.export, self.verify,
            self.determinism, self.bench, self.compare, self.loop, self.compiled,
        )  # fmt: skip
        for step in steps:
            with self.result.part(step.__name__.replace("_", " "), log):
                step()
        return self.result

    def insert(self) -> None:
        """Insert a BN in front of every ReLU of the network without."""
        import torch

        import bnpass
        from benchmarks.gpu_job.network import GoogLeNet
        from bnpass.nn.norms import batch_norms

        torch.manual_seed(0)
        plain = GoogLeNet(self.settings.divisor).to(self.device)
        by_hand = GoogLeNet(self.settings.divisor, bn=True).to(self.device)
        x, _ = self.images.batch(2)
        bnpass.insert(GoogLeNet(16), (x.cpu(),))  # imports and caches
        begin = time.perf_counter()
        inserted = bnpass.insert(plain, (x,))
        count = len(batch_norms(inserted))
        weights = sum(p.numel() for p in plain.parameters())
        self.result.add("insert", f"{weights:,} weights", f"{count} BN, {since(begin)}")
        if count != len(batch_norms(by_hand)):
            raise RuntimeError(f"{count} BNs, by hand there are {len(batch_norms(by_hand))}")
        self.nets |= {"no BN": plain, "BN by hand": by_hand, "BN inserted": inserted}

    def train(self) -> None:
        """Train the network with BN, as its owner would."""
        from benchmarks.gpu_job.training import fit

        s = self.settings
        begin = time.perf_counter()
        first, last = fit(self.nets["BN inserted"], self.images, s.batch, s.steps)
        what = f"{s.steps} steps of {s.batch}, loss at the start and at the end"
        self.result.add("train bf16", what, f"{first:.3f}, {last:.3f}, {since(begin)}")
        if not last < first:
            raise RuntimeError(f"the loss did not fall: {first} to {last}")

    def calibrate_and_fold(self) -> None:
        """Measure the population statistics, fold, and compare the two networks in torch."""
        import bnpass
        from benchmarks.gpu_job.training import accuracy, exact_float32, inference
        from bnpass.nn.norms import batch_norms

        s, net = self.settings, self.nets["BN inserted"]
        begin = time.perf_counter()
        bnpass.calibrate(net, self.images.batches(s.batch, -(-s.samples // s.batch)))
        seconds = time.perf_counter() - begin
        rate = f"{s.samples / seconds:,.0f} images/s"
        self.result.add("calibrate", f"{s.samples} images, float32", rate)
        begin = time.perf_counter()
        folded = bnpass.fold(net)
        left = len(batch_norms(folded))
        self.result.add("fold", "torch module on its device", f"{left} BN left, {since(begin)}")
        if left:
            raise RuntimeError(f"{left} BNs are left")
        x, y = self.images.batch(s.batch)
        with exact_float32():
            before, after = accuracy(net, x, y), accuracy(folded, x, y)
            self.result.add("fold", "accuracy with BN, folded", f"{before:.3f}, {after:.3f}")
            self._difference(net, folded, x)
        inference(self.result, {"with BN": net, "folded": folded}, x, rounds=s.rounds,
                  seconds=s.each)  # fmt: skip
        self.nets["folded"] = folded

    def _difference(self, net: nn.Module, folded: nn.Module, x: torch.Tensor) -> None:
        import torch

        with torch.no_grad():
            a, b = net(x).double(), folded(x).double()
        worst = float((a - b).abs().max() / a.abs().max())
        self.result.add("fold", "largest relative difference, torch float32", f"{worst:.1e}")
        if not worst < 1e-4:
            raise RuntimeError(f"the folded network differs by {worst:.1e}")

    def export(self) -> None:
        """Write the file with BN and the folded ones, and import the former for training."""
        import bnpass

        x, _ = self.images.batch(2)
        with_bn, folded = self.folder / "with_bn.onnx", self.folder / "folded.onnx"
        begin = time.perf_counter()
        bnpass.export(self.nets["BN inserted"], (x,), with_bn)
        self.result.add("export", "with BN, checked on onnxruntime", since(begin))
        self.files["with BN"] = with_bn
        begin = time.perf_counter()
        bnpass.export(self.nets["folded"], (x,), self.folder / "torch_folded.onnx")
        self.result.add("export", "folded in torch, checked on onnxruntime", since(begin))
        self.files["folded in torch"] = self.folder / "torch_folded.onnx"
        begin = time.perf_counter()
        bnpass.fold(with_bn, output=folded)
        self.result.add("fold", "the ONNX file, verified", since(begin))
        self.files["folded"] = folded
        begin = time.perf_counter()
        self.nets["BN inserted, exported, imported"] = bnpass.to_torch(with_bn).to(self.device)
        self.result.add("import", "the file with BN, to train on", since(begin))

    def loop(self) -> None:
        """Train some steps in the library's own loop."""
        from copy import deepcopy

        from benchmarks.gpu_job.training import library_loop

        s = self.settings
        net = deepcopy(self.nets["BN inserted"])
        library_loop(self.result, net, self.images, s.batch, max(4, s.rounds // 2), self.device)

    def compare(self) -> None:
        """Training throughput side by side, without torch.compile."""
        for mode in self.settings.modes:
            if mode != "compile":
                self._throughput(mode, dict(self.nets))

    def compiled(self) -> None:
        """The same with torch.compile, where the time allows."""
        if "compile" not in self.settings.modes:
            return
        if self.result.left() < COMPILING:
            left = max(0.0, self.result.left())
            self.result.notes.append(f"torch.compile left out: {left:.0f} s left of the budget")
            return
        names = ("BN by hand", "BN inserted")
        self._throughput("compile", {k: v for k, v in self.nets.items() if k in names})

    def _throughput(self, mode: str, nets: dict[str, Any]) -> None:
        from benchmarks.gpu_job.training import throughput

        s = self.settings
        nets.pop("folded", None)
        throughput(self.result, nets, self.images, s.batch, mode=mode, rounds=s.rounds,
                   seconds=s.each)  # fmt: skip

    def verify(self) -> None:
        """Compare the folded files with the one that has BNs, on every provider."""
        from benchmarks.gpu_job.deployment import verified

        for provider in self.providers:
            verified(self.result, self.files, provider)

    def determinism(self) -> None:
        """Check which surroundings change a bit."""
        from benchmarks.gpu_job.deployment import deterministic

        deterministic(self.result, self.files["folded"], self.providers[0], self.settings.checked)

    def bench(self) -> None:
        """Time the files on every provider."""
        from benchmarks.gpu_job.deployment import benched, cuda_against_cpu, load_times

        s = self.settings
        found = {}
        for name in self.providers:
            found[name] = benched(self.result, self.files, name, batches=s.batches, runs=s.rounds,
                                  seconds=s.each)  # fmt: skip
        load_times(self.result, self.files, self.providers[0], 5)
        if "cuda" in found and "cpu" in found:
            cuda_against_cpu(self.result, found["cuda"], found["cpu"])


def since(begin: float) -> str:
    """Return the seconds since then, as a cell."""
    return f"{time.perf_counter() - begin:.2f} s"


def log(text: str) -> None:
    """One line on stderr about what is being done."""
    print(text, file=sys.stderr, flush=True)


def describe(found: Environment, device: torch.device) -> list[str]:
    """Say which machine this is, and what of the job it cannot do."""
    names = found.torch.get("devices") or [f"{found.system}, no CUDA GPU that torch can use"]
    wanted = ("torch", "onnx", "onnxscript", "numpy")
    versions = [f"{n} {found.packages[n]}" for n in wanted if found.packages.get(n)]
    versions.append(f"onnxruntime {onnxruntime().__version__}")
    lines = [
        f"{names[0]}, {found.cores} CPU cores, Python {found.python}",
        ", ".join(versions),
    ]
    if device.type != "cuda":
        lines.append("torch runs on the CPU: its rows are the CPU's")
    cuda = next(p for p in found.providers if p.name == "cuda")
    if not cuda.works:
        lines.append(f"onnxruntime runs on the CPU only: {cuda.reason}")
    return lines


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Settings]:
    """Read the command line; options that are not given keep the settings' value."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute on a CPU")
    parser.add_argument("-o", "--output", type=Path, help="write the result as JSON too")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--modes", help="of the training throughput: eager,channels_last,compile")
    parser.add_argument("--batches", help="batch sizes on onnxruntime, e.g. 1,32")
    for name in ("size", "divisor", "batch", "steps", "rounds", "samples"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("seconds", "each"):
        parser.add_argument(f"--{name}", type=float)
    given = parser.parse_args(arguments)
    settings = QUICK if given.quick else Settings()
    changes = {k: v for k, v in vars(given).items() if k in asdict(settings) and v is not None}
    if "modes" in changes:
        changes["modes"] = tuple(changes["modes"].split(","))
    if "batches" in changes:
        changes["batches"] = tuple(int(b) for b in changes["batches"].split(","))
    return given, replace(settings, **changes)


def main(arguments: list[str] | None = None) -> int:
    """Run the job; 0 when every step did what it has to, 1 otherwise."""
    given, settings = parse(arguments)
    from bnpass.training.devices import pick_device

    device = pick_device(given.device)
    found = environment()
    machine = describe(found, device)
    for line in machine:
        log(line)
    with tempfile.TemporaryDirectory(prefix="bnpass-") as folder:
        result = Job(settings, Path(folder), device, found).run()
    result.notes[:0] = machine
    render(result.table(f"GoogLeNet at {settings.size} pixels, {device.type}"), sys.stdout)
    for line in (*result.notes, *(f"FAILED {text}" for text in result.failures)):
        print(line)
    if given.output:
        facts = {"settings": asdict(settings), "device": device.type, "machine": found.to_dict()}
        atomic_write(given.output, to_json({**result.to_dict(), **facts}) + "\n")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
