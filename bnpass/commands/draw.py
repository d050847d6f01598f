"""Draw a model's graph: BatchNorms coloured, dashed where a fold would take them away.

The output's ending chooses the format: .dot and .mmd (Mermaid) need nothing; .svg, .png and .pdf
need Graphviz. To browse a large model, use Netron.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bnpass.commands import options
from bnpass.errors import UsageError
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.ir.graph import Graph
    from bnpass.report.drawing import Marks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="a .dot, .mmd, .svg, .png or .pdf")
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.files import check_output
    from bnpass.frontends.onnx.read import read
    from bnpass.onnx_model.model import OnnxModel
    from bnpass.report.drawing import draw

    if not args.output:
        raise UsageError("no output given", "add -o FILE.svg (or .dot, .mmd, .png, .pdf)")
    path = check_output(args.output, force=args.force, source=args.model)
    graph = read(OnnxModel.of(args.model, data=False)).main.graph
    draw(graph, path, _marks(graph), force=args.force)
    ui.document.update(ok=True, output=path, operators=len(graph.ops))
    ui.say(f"wrote {path} ({len(graph.ops)} operators)")
    return 0


def _marks(graph: Graph) -> Marks:
    from bnpass.passes.fold import plan_fold
    from bnpass.passes.nonlinear import find_nonlinearities
    from bnpass.report.drawing import Marks

    folding = {name for entry in plan_fold(graph).folded for name in entry.nodes}
    return Marks(folding, {found.op.name for found in find_nonlinearities(graph)})
