"""Does a deployed model give the same bits, whatever surrounds a sample? A report."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnpass.errors import BnpassError, InputError
from bnpass.ir.operators import kinds
from bnpass.onnx_model.attributes import node_name
from bnpass.onnx_model.scopes import all_nodes
from bnpass.onnx_model.signature import Port, inputs_of
from bnpass.report.shown import Shown
from bnpass.report.tables import Table
from bnpass.report.verdicts import shown_determinism
from bnpass.runtime.batchnorm import in_training_mode
from bnpass.runtime.compare import jsonable
from bnpass.runtime.engines import Loaded
from bnpass.runtime.inputs import SIZES, Draw, Feeds, feeds_of, free_batch_of, random_inputs
from bnpass.runtime.session import run

Array = np.ndarray[Any, Any]
BATCHES = (1, 2, 3, 7, 64)
_RANDOM = kinds(lambda row: row.random)


@dataclass
class Check:
    """One comparison.

    Attributes:
        name: what was varied.
        equal: every bit the same; None where the check could not be made.
        max_abs: largest difference otherwise.
        max_rel: the same over the largest magnitude of that output.
        reason: why it could not be made.
    """

    name: str
    equal: bool | None = True
    max_abs: float = 0.0
    max_rel: float = 0.0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; JSON-able."""
        return {k: jsonable(v) for k, v in asdict(self).items()}


@dataclass(repr=False)
class DeterminismReport(Shown):
    """All checks of one model.

    Attributes:
        passed: every check that could be made found equal bits, and no BN is in training mode.
        checks: one each for the same input twice, another batch position, each batch size, threads,
            a fresh process.
        reasons: what in the model makes it depend on the batch or on chance.
        provider: where it ran.
        seconds: wall clock.
    """

    passed: bool
    checks: list[Check]
    reasons: list[str] = field(default_factory=list)
    provider: str = "cpu"
    seconds: float = 0.0

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_determinism(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the report; JSON-able."""
        return {
            "passed": self.passed,
            "checks": [c.to_dict() for c in self.checks],
            "reasons": self.reasons,
            "provider": self.provider,
            "seconds": round(self.seconds, 3),
        }


def determinism(
    model: str | os.PathLike[str] | onnx.ModelProto,
    inputs: Any = None,
    *,
    provider: str = "cpu",
    batches: Sequence[int] = BATCHES,
    threads: Sequence[int] = (1, 2),
    seed: int = 0,
    fresh_process: bool = True,
) -> DeterminismReport:
    """Run a model on the same samples in different surroundings and compare the bits.

    A model that still has a BN in training mode fails at once: its output for a sample depends on
    the other samples of the batch.

    Args:
        model: a path or a ModelProto.
        inputs: one batch (array, tuple or mapping by input name) of at least as many samples as the
            largest of ``batches``; None draws one.
        provider: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        batches: the batch sizes.
        threads: the numbers of threads, all compared with the first.
        seed: of the drawn inputs.
        fresh_process: also run in a new Python process.

    Raises:
        InputError: no legal input, or ``inputs`` does not fit.
        MissingDependencyError: onnxruntime or the provider is missing.
    """
    start = time.perf_counter()
    loaded = Loaded.load(model)
    reasons = _reasons(loaded.proto)
    if in_training_mode(loaded.proto):
        return DeterminismReport(False, [], reasons, provider, time.perf_counter() - start)
    trial = _Trial(loaded, provider, _inputs(loaded, inputs, max(batches), seed, provider))
    checks = list(trial.checks(batches, threads))
    if fresh_process:
        checks.append(trial.fresh_process())
    passed = all(c.equal is not False for c in checks)
    return DeterminismReport(passed, checks, reasons, provider, time.perf_counter() - start)


def _reasons(model: onnx.ModelProto) -> list[str]:
    training = in_training_mode(model)
    found = [
        f"BatchNormalization {name!r} is in training mode: it normalises with the statistics of "
        "the batch at hand, so each sample's output depends on the others"
        for name in training
    ]
    for node in all_nodes(model):
        if node.op_type in _RANDOM:
            found.append(f"{node.op_type} {node_name(node)!r} draws random numbers")
        if node.op_type == "Dropout" and len(node.input) == 3 and node.input[2]:
            found.append(f"Dropout {node_name(node)!r} may be in training mode")
    return found


def _inputs(loaded: Loaded, given: Any, batch: int, seed: int, provider: str) -> Feeds:
    ports = inputs_of(loaded.proto)
    if given is not None:
        return feeds_of(given, ports)
    last: BnpassError | None = None
    built = loaded.session(provider=provider)
    for size in SIZES:
        feeds = random_inputs(loaded.proto, Draw(batch=batch, seed=seed, size=size))
        try:
            run(built, None, {n: _rows(a, ports, n, slice(0, 1)) for n, a in feeds.items()})
        except InputError as error:
            last = error
            continue
        return feeds
    raise InputError(f"no legal input found: {last.message if last else ''}", "give inputs=")


def _rows(array: Array, ports: list[Port], name: str, index: Any) -> Array:
    """Take samples of an input whose first axis is free; others have no samples to take."""
    port = next(p for p in ports if p.name == name)
    fixed = not port.shape or isinstance(port.shape[0], int)
    return array if fixed else np.ascontiguousarray(array[index])


class _Trial:
    """One model, one batch of samples."""

    def __init__(self, loaded: Loaded, provider: str, feeds: Feeds) -> None:
        self.loaded, self.provider, self.feeds = loaded, provider, feeds
        self.ports = inputs_of(loaded.proto)
        self.session = loaded.session(provider=provider)
        self.whole = self._run(feeds)

    def _run(self, feeds: Feeds) -> list[Array]:
        return run(self.session, None, feeds)

    def _take(self, index: Any) -> Feeds:
        return {n: _rows(a, self.ports, n, index) for n, a in self.feeds.items()}

    def _count(self) -> int:
        free = [p.name for p in self.ports if p.shape and not isinstance(p.shape[0], int)]
        return min((len(self.feeds[name]) for name in free), default=0)

    def checks(self, batches: Sequence[int], threads: Sequence[int]) -> Iterator[Check]:
        """Yield every check that needs no other process."""
        yield _equal("the same input twice", self.whole, self._run(self.feeds))
        count = self._count()
        if free_batch_of(self.ports) and count > 1:
            yield self._position(count)
            for size in batches:
                yield self._in_batches_of(size, count)
        else:
            yield Check("batch composition", None, reason="the model fixes its batch")
        first: list[Array] | None = None
        for number in threads:
            built = self.loaded.session(provider=self.provider, threads=number)
            found = run(built, None, self.feeds)
            if first is not None:
                yield _equal(f"{threads[0]} and {number} threads", first, found)
            first = found if first is None else first

    def _position(self, count: int) -> Check:
        order = np.arange(count)[::-1]
        return self._samples("another batch position", order, lambda: self._run(self._take(order)))

    def _in_batches_of(self, size: int, count: int) -> Check:
        if size > count:
            return Check(f"batches of {size}", None, reason=f"only {count} samples were given")
        # Whole batches of exactly this size: the last, smaller one would be another case.
        index = np.arange(count // size * size)

        def pieces() -> list[Array]:
            parts = [self._run(self._take(index[i : i + size])) for i in range(0, len(index), size)]
            return [np.concatenate(p) if p[0].ndim else p[0] for p in zip(*parts, strict=True)]

        return self._samples(f"batches of {size}", index, pieces)

    def _samples(self, name: str, index: Array, compute: Callable[[], list[Array]]) -> Check:
        """Compare samples with the same ones in the whole batch."""
        count = self._count()
        kept = [i for i, a in enumerate(self.whole) if a.ndim and len(a) == count]
        if not kept:
            return Check(name, None, reason="no output has one row a sample")
        try:
            found = compute()
        except BnpassError as error:
            return Check(name, None, reason=error.message)
        if any(len(found[i]) != len(index) for i in kept):
            return Check(name, None, reason="the outputs' rows do not follow the batch")
        return _equal(name, [self.whole[i][index] for i in kept], [found[i] for i in kept])

    def fresh_process(self) -> Check:
        """Run in a new Python process and compare."""
        from bnpass.files import save_model

        with tempfile.TemporaryDirectory(prefix="bnpass-") as place:
            folder = Path(place)
            path = self.loaded.path or save_model(self.loaded.proto, folder / "model.onnx")
            given: dict[str, Any] = {n: _bits(a) for n, a in self.feeds.items()}
            np.savez(folder / "in.npz", **given)
            arguments = [str(path), str(folder), self.provider]
            command = [sys.executable, "-m", "bnpass.runtime.fresh", *arguments]
            root = str(Path(__file__).parents[2])
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
            done = subprocess.run(  # noqa: S603  (our own module, in our own interpreter)
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                return Check("a fresh process", None, reason=last[:200])
            with np.load(folder / "out.npz") as found:
                theirs = [found[f"out{i}"] for i in range(len(self.whole))]
        return _equal("a fresh process", [_bits(a) for a in self.whole], theirs)


def _bits(array: Array) -> Array:
    """Return what np.save can hold: bfloat16 widened, which loses nothing."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _equal(name: str, a: list[Array], b: list[Array]) -> Check:
    check = Check(name)
    for x, y in zip(a, b, strict=True):
        if x.shape == y.shape and x.tobytes() == y.tobytes():
            continue
        check.equal = False
        if x.shape != y.shape or x.dtype.kind in "OUS":
            check.max_abs = check.max_rel = float("inf")
            continue
        gap = np.abs(x.astype(np.float64) - y.astype(np.float64))
        worst = float(np.max(np.nan_to_num(gap, nan=0.0), initial=0.0))
        scale = float(np.max(np.abs(np.nan_to_num(x.astype(np.float64))), initial=0.0))
        check.max_abs = max(check.max_abs, worst)
        check.max_rel = max(check.max_rel, worst / scale if scale else 0.0)
    return check
