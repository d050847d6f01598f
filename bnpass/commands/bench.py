"""Time models side by side on onnxruntime: latency percentiles, throughput, ratios.

Runs are interleaved, so that what else happens on the machine hits all models alike. The first
model is the baseline.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bnpass.commands import options
from bnpass.errors import UsageError
from bnpass.report.timings import ratio_table, row_table
from bnpass.report.ui import Ui

EXAMPLES = (
    "bnpass bench out/lenet.ready.onnx out/lenet.deploy.onnx --runs 20",
    "bnpass bench models/lenet.onnx --batches 1,8 --runs 20 --json",
)
COMMON = ("--batches", "--threads", "--runs", "--provider", "--picture", "--force", "--json",
          "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("models", metavar="MODEL.onnx", nargs="+", help="the first is the baseline")
    parser.add_argument("--batches", type=_sizes, default=(1, 8, 64), metavar="N,N",
                        help="batch sizes (default 1,8,64)")
    parser.add_argument("--threads", type=_threads, default=(0,), metavar="N,N",
                        help="threads of the session; 0 leaves it to onnxruntime (default)")
    parser.add_argument("--runs", type=options.at_least_one, default=50, metavar="N",
                        help="timed rounds in a setting (default 50)")
    parser.add_argument("--warmup", type=options.count, default=5, metavar="N",
                        help="untimed rounds (default 5)")
    parser.add_argument("--seconds", type=options.positive, default=10.0, metavar="S",
                        help="time limit of a setting (default 10)")
    parser.add_argument("--picture", metavar="FILE",
                        help="also draw latencies and ratios: a .png, .svg or .pdf")
    parser.add_argument("--force", action="store_true", help="replace an existing picture")
    options.add_seed(parser)
    options.add_provider(parser)
    options.add_gpu(parser)
    parser.add_argument("--io-binding", action="store_true",
                        help="inputs and outputs stay at one place, as on a GPU always")
    parser.add_argument("--cuda-graph", action="store_true",
                        help="record the kernels once and replay them (CUDA, TensorRT)")
    options.add_output_options(parser)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(options.at_least_one(part)) for part in text.split(","))


def _threads(text: str) -> tuple[int, ...]:
    return tuple(int(options.count(part)) for part in text.split(","))


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.files import check_input
    from bnpass.runtime.bench import bench

    for path in args.models:
        check_input(path)
    if args.cuda_graph and args.provider == "cpu":
        raise UsageError("--cuda-graph with --provider cpu", "add --provider cuda or tensorrt")
    gpu, picture = options.gpu_options(args), _wanted_picture(args)
    report = bench(
        args.models, batches=args.batches, threads=args.threads, provider=args.provider,
        runs=args.runs, warmup=args.warmup, seconds=args.seconds, seed=args.seed, progress=ui.log,
        io_binding=args.io_binding, cuda_graph=args.cuda_graph, **gpu,
    )
    ui.document.update(ok=True, **report.to_dict())
    ui.table(row_table(report))
    if report.ratios:
        ui.table(ratio_table(report))
    for note in report.notes:
        ui.warn(note)
    if picture is not None:
        from bnpass.report.latency import draw_latency

        ui.document["picture"] = draw_latency(report, picture)
        ui.say(f"drew {picture}")
    ui.say(f"timed in {report.seconds:.1f} s on {args.provider}")
    return 0


def _wanted_picture(args: argparse.Namespace) -> Path | None:
    """The picture's path, checked before minutes of timing."""
    if args.picture is None:
        return None
    from bnpass.files import check_output
    from bnpass.report.latency import check_picture

    check_picture(Path(args.picture))
    return check_output(args.picture, force=args.force, source=args.models)
