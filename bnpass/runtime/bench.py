"""Latency and throughput of models side by side: interleaved runs, ratios with intervals."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from bnpass.errors import InputError, UsageError
from bnpass.onnx_model.signature import inputs_of
from bnpass.report.shown import Shown
from bnpass.report.tables import Table
from bnpass.report.timings import shown_bench
from bnpass.runtime import ort
from bnpass.runtime.engines import Loaded
from bnpass.runtime.inputs import SIZES, Draw, Feeds, free_batch_of, random_inputs
from bnpass.runtime.session import run

Array = np.ndarray[Any, Any]
Model = str | os.PathLike[str] | onnx.ModelProto


@dataclass(frozen=True)
class Timing:
    """Timings of one model in one setting; latencies in milliseconds a run of the whole batch.

    Attributes:
        model: its label.
        batch: samples in a run.
        threads: of the session; 0 is onnxruntime's own choice.
        provider: where it ran.
        runs: how many were timed.
        p50, p90, p99: percentiles.
        mean: average.
        throughput: samples a second at the median latency.
    """

    model: str
    batch: int
    threads: int
    provider: str
    runs: int
    p50: float
    p90: float
    p99: float
    mean: float
    throughput: float


@dataclass(frozen=True)
class Ratio:
    """Median latency of a model over that of the first one, from interleaved pairs.

    Attributes:
        model: the label of the one above.
        baseline: the label of the one below.
        batch: samples in a run.
        threads: of the sessions.
        ratio: below 1 is faster than the baseline.
        low, high: bootstrap confidence interval at 95%.
    """

    model: str
    baseline: str
    batch: int
    threads: int
    ratio: float
    low: float
    high: float


@dataclass(repr=False)
class BenchReport(Shown):
    """All timings.

    Attributes:
        rows: one a model and setting.
        ratios: one a model but the first, and setting.
        notes: what was left out and why.
        seconds: wall clock of the whole benchmark.
    """

    rows: list[Timing] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def shown(self) -> list[Table | str]:
        """What the command prints of it."""
        return shown_bench(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the report; JSON-able."""
        return asdict(self)


def bench(
    models: Sequence[Model] | Mapping[str, Model],
    *,
    batches: Sequence[int] = (1, 8, 64),
    threads: Sequence[int] = (0,),
    provider: str = "cpu",
    runs: int = 50,
    warmup: int = 5,
    seconds: float = 10.0,
    seed: int = 0,
    optimize: bool = True,
    tf32: bool = False,
    io_binding: bool = False,
    cuda_graph: bool = False,
    provider_options: Mapping[str, str] = MappingProxyType({}),
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Time models side by side.

    In every setting each round runs each model once, in a random order, so that what else happens
    on the machine hits all of them; ratios are taken over these pairs.

    Args:
        models: paths or ModelProtos, or a mapping by label. The first is the baseline.
        batches: batch sizes; those that a model does not accept are left out, with a note.
        threads: threads of the session; 0 leaves it to onnxruntime.
        provider: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        runs: rounds in a setting, fewer when ``seconds`` are over (at least 5).
        warmup: untimed rounds.
        seconds: time limit of one setting.
        seed: of the inputs, the order and the bootstrap.
        optimize: onnxruntime's graph optimizations.
        tf32: allow TF32 on CUDA.
        io_binding: inputs and outputs stay where the provider wants them; always so on a GPU.
        cuda_graph: record the kernels once and replay them.
        provider_options: onnxruntime's own options of the provider.
        progress: called with a line before each setting.

    Raises:
        UsageError: no models, or fewer than one run.
        InputError: no setting could be run.
        MissingDependencyError: onnxruntime or the provider is missing.
    """
    if not models or runs < 1:
        raise UsageError("bench wants at least one model and one run", "give a model")
    start = time.perf_counter()
    loaded = {label: Loaded.load(model) for label, model in _labels(models).items()}
    report = BenchReport()
    generator = np.random.default_rng(seed)
    for count in threads:
        sessions = {
            label: m.session(
                provider=provider, threads=count or None, optimize=optimize, tf32=tf32,
                cuda_graph=cuda_graph, provider_options=provider_options,
            )
            for label, m in loaded.items()
        }
        for batch in _batches(loaded, batches, report):
            if progress is not None:
                progress(f"batch {batch}, threads {count or 'default'}, {provider}")
            how = _Binding(provider, io_binding or provider != "cpu", cuda_graph)
            calls = _calls(loaded, sessions, batch, seed, how, report)
            times = _time(calls, runs, warmup, seconds, generator)
            _record(report, times, batch, count, provider, generator)
    if not report.rows:
        raise InputError("no setting could be run", "; ".join(report.notes))
    report.seconds = time.perf_counter() - start
    return report


def _labels(models: Sequence[Model] | Mapping[str, Model]) -> dict[str, Model]:
    if isinstance(models, Mapping):
        return dict(models)
    found: dict[str, Model] = {}
    for index, model in enumerate(models):
        name = "model" if isinstance(model, onnx.ModelProto) else Path(model).stem
        found[name if name not in found else f"{name} ({index + 1})"] = model
    return found


def _batches(
    loaded: dict[str, Loaded], batches: Sequence[int], report: BenchReport
) -> Sequence[int]:
    """Return the batch sizes that make sense: one alone when every model fixes its batch."""
    fixed = [label for label, m in loaded.items() if not free_batch_of(inputs_of(m.proto))]
    if not fixed:
        return batches
    note = f"the batch of {', '.join(fixed)} is fixed in the file: only that one is timed"
    if note not in report.notes:
        report.notes.append(note)
    return [_fixed_batch(loaded[fixed[0]])]


def _fixed_batch(model: Loaded) -> int:
    shape = next((p.shape for p in inputs_of(model.proto) if p.shape), None)
    return shape[0] if shape and isinstance(shape[0], int) else 1


def _calls(
    loaded: dict[str, Loaded],
    sessions: dict[str, Any],
    batch: int,
    seed: int,
    how: _Binding,
    report: BenchReport,
) -> dict[str, Callable[[], object]]:
    """Return, by model, a function that runs it once on inputs that lie where it needs them."""
    calls = {}
    for label, model in loaded.items():
        plain = model.session() if how.fixed else sessions[label]  # a graph takes bound inputs only
        feeds = _feeds(model, plain, batch, seed)
        if feeds is None:
            report.notes.append(f"{label} accepts no drawn input at batch {batch}")
            continue
        calls[label] = how.call(sessions[label], plain, feeds)
    return calls


def _feeds(model: Loaded, built: Any, batch: int, seed: int) -> Feeds | None:
    for size in SIZES:
        feeds = random_inputs(model.proto, Draw(batch=batch, seed=seed, size=size))
        try:
            run(built, None, feeds)
        except InputError:
            continue
        return feeds
    return None


@dataclass(frozen=True)
class _Binding:
    """Where inputs and outputs lie while a model is timed.

    Attributes:
        provider: that runs it.
        bound: they stay at one place; else onnxruntime copies them in every run.
        fixed: outputs have addresses of their own too, as a CUDA graph wants.
    """

    provider: str
    bound: bool
    fixed: bool

    def call(self, built: Any, plain: Any, feeds: Feeds) -> Callable[[], object]:
        """A function that runs a session once; ``plain`` tells the sizes of fixed outputs."""
        if not self.bound:
            return lambda: run(built, None, feeds)
        value = ort.onnxruntime().OrtValue.ortvalue_from_numpy
        device = "cpu" if self.provider == "cpu" else "cuda"
        binding = built.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, value(array, device, 0))
        made = run(plain, None, feeds) if self.fixed else []
        for index, output in enumerate(built.get_outputs()):
            if self.fixed:
                binding.bind_ortvalue_output(output.name, value(made[index], device, 0))
            else:
                binding.bind_output(output.name, device, 0)

        def call() -> None:
            built.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call


def _time(
    calls: dict[str, Callable[[], object]],
    runs: int,
    warmup: int,
    seconds: float,
    generator: np.random.Generator,
) -> dict[str, Array]:
    """Return the latencies in seconds by model; element i of all of them is round i."""
    labels = list(calls)
    times: dict[str, list[float]] = {label: [] for label in labels}
    start = time.perf_counter()
    for index in range(warmup + runs):
        for place in generator.permutation(len(labels)):
            begin = time.perf_counter()
            calls[labels[place]]()
            if index >= warmup:
                times[labels[place]].append(time.perf_counter() - begin)
        if index >= warmup + min(runs, 5) - 1 and time.perf_counter() - start > seconds:
            break
    return {label: np.array(values) for label, values in times.items()}


def _record(
    report: BenchReport,
    times: dict[str, Array],
    batch: int,
    threads: int,
    provider: str,
    generator: np.random.Generator,
) -> None:
    for label, values in times.items():
        p50, p90, p99 = np.percentile(values, [50, 90, 99])
        p50, p90, p99, mean = (float(1e3 * v) for v in (p50, p90, p99, values.mean()))
        rate = 1e3 * batch / p50
        row = Timing(label, batch, threads, provider, len(values), p50, p90, p99, mean, rate)
        report.rows.append(row)
    labels = list(times)
    for label in labels[1:]:
        ratio, low, high = ratio_of(times[label], times[labels[0]], generator)
        report.ratios.append(Ratio(label, labels[0], batch, threads, ratio, low, high))


def ratio_of(
    times: Array, baseline: Array, generator: np.random.Generator, draws: int = 2000
) -> tuple[float, float, float]:
    """Return the ratio of two medians with its 95% bootstrap interval.

    Args:
        times: (n,) latencies.
        baseline: (n,) latencies of the same rounds; rounds are drawn as pairs.
        generator: of the resampling.
        draws: bootstrap samples.
    """
    index = generator.integers(0, len(times), (draws, len(times)))
    drawn = np.median(times[index], axis=1) / np.median(baseline[index], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.median(times) / np.median(baseline)), float(low), float(high)
