"""Deployment: files on onnxruntime, verified, checked for determinism and timed side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bnpass
from benchmarks.gpu_job.result import Result, interleaved
from bnpass.runtime.bench import BenchReport, bench
from bnpass.runtime.determinism import determinism

WITH_BN, FOLDED = "with BN", "folded"


def verified(result: Result, files: dict[str, Path], provider: str) -> None:
    """Verify each folded file against the one with BN (unoptimised, on the CPU)."""
    for label, path in files.items():
        if label == WITH_BN:
            continue
        report = bnpass.verify(files[WITH_BN], path, provider=provider)
        worst = max(c.max_rel for c in report.outputs.values())
        said = "PASSED" if report.passed else "FAILED"
        what = f"{label}, {len(report.draws)} draws, max relative error"
        result.add(f"verify on {provider}", what, f"{said}, {worst:.1e}", WITH_BN)
        report.raise_if_failed()


def deterministic(result: Result, path: Path, provider: str, batches: Sequence[int]) -> None:
    """Add what stays equal to the bit; a second run that differs is a fault."""
    report = determinism(path, provider=provider, batches=tuple(batches))
    for check in report.checks:
        value = "equal bits" if check.equal else f"differs by {check.max_rel:.1e}"
        value = f"not made: {check.reason}" if check.equal is None else value
        result.add(f"determinism on {provider}", check.name, value)
    fixed = [c.name for c in report.checks if c.name in ("the same input twice", "a fresh process")]
    wrong = [c.name for c in report.checks if c.name in fixed and not c.equal]
    if wrong or not fixed:
        raise RuntimeError(f"not the same bits: {', '.join(wrong) or 'nothing was checked'}")


def load_times(result: Result, files: dict[str, Path], provider: str, rounds: int) -> None:
    """Add the time to build a session: onnxruntime fuses the BNs anew at each start."""
    kept = {label: files[label] for label in (WITH_BN, FOLDED)}
    calls = {k: (lambda p=p: bnpass.session(p, provider=provider)) for k, p in kept.items()}
    times = interleaved(calls, lambda: None, rounds=rounds, seconds=10.0, warmup=1)
    result.timed(f"session start on {provider}", times, 0, "ms", {FOLDED: WITH_BN})


def benched(
    result: Result,
    files: dict[str, Path],
    provider: str,
    *,
    batches: Sequence[int],
    runs: int,
    seconds: float,
) -> dict[int, float]:
    """Add folded against with-BN, with onnxruntime's optimizations (its own fusion) and without.

    Args:
        result: gets the rows.
        files: both models.
        provider: ``"cpu"`` or ``"cuda"``.
        batches: batch sizes.
        runs: rounds in each setting.
        seconds: time limit of each setting.

    Returns:
        The folded model's images a second, optimised, by batch.
    """
    models = {label: files[label] for label in (WITH_BN, FOLDED)}
    found: dict[int, float] = {}
    for optimize in (False, True):
        options = {"runs": runs, "seconds": seconds, "optimize": optimize}
        report = bench(models, batches=batches, provider=provider, **options)
        how = "onnxruntime's own fusion" if optimize else "nothing fused"
        _add(result, report, provider, {WITH_BN: f"with BN, {how}", FOLDED: f"folded, {_of(how)}"})
        result.notes.extend(n for n in report.notes if n not in result.notes)
        if optimize:
            found = {row.batch: row.throughput for row in report.rows if row.model == FOLDED}
    return found


def _of(how: str) -> str:
    return "default optimizations" if how.startswith("onnxruntime") else how


def _add(result: Result, report: BenchReport, provider: str, names: dict[str, str]) -> None:
    ratios = {(r.model, r.batch): r for r in report.ratios}
    for row in report.rows:
        part = f"onnxruntime float32 on {provider}, batch {row.batch}"
        value = f"{row.throughput:,.0f} images/s"
        ratio = ratios.get((row.model, row.batch))
        if ratio is None:
            result.add(part, names[row.model], value)
            continue
        other = names[ratio.baseline]
        result.add(part, names[row.model], value, other, ratio.ratio, ratio.low, ratio.high)


def cuda_against_cpu(result: Result, cuda: dict[int, float], cpu: dict[int, float]) -> None:
    """Add the ratio of the providers, by batch: the two were timed one after the other."""
    for batch in sorted(set(cuda) & set(cpu)):
        what, value = f"cuda, batch {batch}, folded", f"{cuda[batch]:,.0f} images/s"
        result.add("cuda against cpu", what, value, "cpu", cpu[batch] / cuda[batch])
