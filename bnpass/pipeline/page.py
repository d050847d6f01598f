"""``report.html`` of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import InputError
from bnpass.pipeline.summary import curves_of, percentiles_of
from bnpass.report.page import write_page
from bnpass.report.page.training import run_page

if TYPE_CHECKING:
    from bnpass.pipeline.run import Job
    from bnpass.report.page.around import Stages
    from bnpass.runtime.bench import BenchReport

_SECONDS = 2.0  # of timing


def write_run_page(job: Job, report: dict[str, Any], folder: Path) -> Path:
    """Write the page of a finished run into its folder."""
    percentiles = percentiles_of(job.arms) if job.config.train.watch else {}
    page = run_page(report, job.plan, _stages(job), curves_of(job.arms), percentiles,
                    _timed(job), _commands(job, folder))
    return write_page(page, folder / "report.html", force=True)


def _stages(job: Job) -> Stages:
    from bnpass.frontends.onnx.drawing import graph_of, marks_of

    assert job.deploy is not None
    models = {"as given": job.model, "with BatchNorm": job.inserted, "deployed": job.deploy}
    graphs = {label: graph_of(model) for label, model in models.items()}
    return {label: (graph, marks_of(graph)) for label, graph in graphs.items()}


def _timed(job: Job) -> BenchReport | None:
    """The trained and the deployed network, a sample at a time; None where they do not run so."""
    from bnpass.runtime.bench import bench

    assert job.trained is not None and job.deploy is not None  # noqa: PT018
    try:
        return bench({"with BatchNorm": job.trained, "deployed": job.deploy}, batches=(1,),
                     runs=30, seconds=_SECONDS, provider=job.config.provider)
    except InputError:
        return None


def _commands(job: Job, folder: Path) -> list[str]:
    """What was typed, and what can be asked of the files that lie beside the page."""
    typed = [job.config.command] if job.config.command else []
    return [*typed, f"cd {folder}", "bnpass verify trained.onnx deploy.onnx --edits",
            "bnpass bench trained.onnx deploy.onnx", "bnpass inspect trained.onnx --explain"]
