"""``--report FILE``: the page of a fold or a verification."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import InputError, UsageError
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.passes.fold import FoldPlan
    from bnpass.report.page.around import Stages
    from bnpass.report.tables import Table
    from bnpass.runtime.bench import BenchReport
    from bnpass.runtime.verification import VerifyReport

_SECONDS = 1.0  # of timing for each batch size


def add_report(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--report``."""
    parser.add_argument("--report", metavar="FILE.html",
                        help="also write a page with the graph around every site, the verdict and "
                        "latencies")


def wanted_report(args: argparse.Namespace) -> Path | None:
    """The path of the page, checked before the work; None: none was asked for.

    Raises:
        UsageError: another ending.
        OutputError: it exists, or cannot be written.
    """
    if args.report is None:
        return None
    from bnpass.files import check_output

    path = Path(args.report)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a report is an HTML page, not {path.name!r}", "end it in .html")
    return check_output(path, force=getattr(args, "force", False))


def write_fold_report(
    path: Path, args: argparse.Namespace, plan: FoldPlan, report: VerifyReport | None, ui: Ui
) -> None:
    """The page of a fold that was written."""
    from bnpass.report.page import write_page
    from bnpass.report.page.deployment import fold_page

    files = (Path(args.model), Path(args.output))
    page = fold_page(files[0], plan, _stages(("before", "after"), files), ui.document, report,
                     _timed(files, args.seed), _commands(args, files))
    _write(write_page(page, path, force=args.force), ui)


def write_verify_report(
    path: Path, args: argparse.Namespace, report: VerifyReport, more: list[Table | str], ui: Ui
) -> None:
    """The page of a verification."""
    from bnpass.report.page import write_page
    from bnpass.report.page.deployment import verify_page

    files = (Path(args.reference), Path(args.candidate))
    page = verify_page((files[0].name, files[1].name),
                       _stages(("reference", "candidate"), files), report, more,
                       _timed(files, args.seed), _commands(args, files))
    _write(write_page(page, path, force=args.force), ui)


def _write(path: Path, ui: Ui) -> None:
    ui.document["report"] = path
    ui.say(f"wrote {path}")


def _stages(labels: tuple[str, str], files: tuple[Path, Path]) -> Stages:
    from bnpass.frontends.onnx.drawing import graph_of, marks_of

    graphs = [graph_of(file) for file in files]
    return {label: (graph, marks_of(graph)) for label, graph in zip(labels, graphs, strict=True)}


def _timed(files: tuple[Path, Path], seed: int) -> BenchReport | None:
    """Both files on the CPU, a moment each; None where they cannot be run on random inputs."""
    from bnpass.runtime.bench import bench

    models: dict[str, Any] = {f"{label}: {file.name}": file
                              for label, file in zip(("before", "after"), files, strict=True)}
    try:
        return bench(models, batches=(1, 8), runs=30, seconds=_SECONDS, seed=seed)
    except InputError:
        return None


def _commands(args: argparse.Namespace, files: tuple[Path, Path]) -> list[str]:
    """What was typed, and the questions that can be asked again."""
    return [shlex.join(["bnpass", *args.arguments]),
            shlex.join(["bnpass", "verify", *map(str, files), "--edits"]),
            shlex.join(["bnpass", "bench", *map(str, files)])]
