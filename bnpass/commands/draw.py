"""Draw a model's graph, or the difference between two.

BatchNorms are coloured, dashed where a fold would take them away; nonlinearities are round. With a
second model both are in one picture: green is new, red and struck out is gone, blue has other
weights. The output's ending chooses the format: .svg, .dot and .mmd (Mermaid) need nothing, .png
and .pdf need matplotlib. To browse a large model, use Netron.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bnpass.commands import options
from bnpass.errors import UsageError
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.report.drawing import Marks


EXAMPLES = (
    "bnpass draw models/lenet.onnx -o out/lenet.svg",
    "bnpass draw out/lenet.ready.onnx out/lenet.deploy.onnx -o out/difference.svg",
)
COMMON = ("-o", "--force", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    parser.add_argument("other", nargs="?", metavar="OTHER",
                        help="a second model: draw what is different in it")
    parser.add_argument("-o", "--output", metavar="FILE", help="a .svg, .png, .pdf, .dot or .mmd")
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.files import check_output
    from bnpass.frontends.onnx.drawing import graph_of, marks_of
    from bnpass.report.drawing import difference, draw, picture

    if not args.output:
        raise UsageError("no output given", "add -o FILE.svg (or .png, .pdf, .dot, .mmd)")
    path = check_output(args.output, force=args.force, source=args.model)
    graph = graph_of(args.model)
    if args.other is None:
        drawn, title = picture(graph, marks_of(graph)), Path(args.model).name
    else:
        other = graph_of(args.other)
        drawn = difference(graph, other, _both(marks_of(graph), marks_of(other)))
        title = f"{Path(args.model).name} and {Path(args.other).name}"
        ui.document["states"] = {s: sum(b.state == s for b in drawn.boxes)
                                 for s in ("added", "removed", "changed")}  # fmt: skip
    draw(drawn, path, title=title, force=args.force)
    ui.document.update(ok=True, output=path, operators=len(graph.ops))
    ui.say(f"wrote {path} ({len(graph.ops)} operators)")
    return 0


def _both(one: Marks, other: Marks) -> Marks:
    from bnpass.report.drawing import Marks

    return Marks({*one.folding, *other.folding}, {*one.nonlinearities, *other.nonlinearities})
