"""Undo a fold exactly: the original model again, to the byte.

It needs the sidecar that 'bnpass fold --sidecar FILE' wrote beside the folded model. Hashes in it
prove that both files are as they were written, and that what comes out is the original.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bnpass.commands import options
from bnpass.errors import UsageError
from bnpass.report.box import Counted, say_result
from bnpass.report.ui import Ui

EXAMPLES = (
    "bnpass fold out/lenet.ready.onnx --sidecar out/undo -o out/lenet.kept.onnx",
    "bnpass unfold out/lenet.kept.onnx out/undo -o out/lenet.again.onnx",
)
COMMON = ("-o", "--force", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="FOLDED.onnx", help="what the fold wrote; never written")
    parser.add_argument("sidecar", metavar="SIDECAR", help="what --sidecar wrote with it")
    options.add_written(parser)
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    from bnpass.files import check_output, load_model, save_model
    from bnpass.frontends.onnx.sidecar import undo
    from bnpass.onnx_model.model import OnnxModel

    if not args.output:
        raise UsageError("no output given", "add -o FILE.onnx")
    sources = (args.model, args.sidecar)
    path = check_output(args.output, force=args.force, source=sources)
    folded, counted = load_model(args.model), Counted()
    original = undo(folded, Path(args.sidecar))
    for model in (folded, original):
        counted(OnnxModel.of(model))
    save_model(original, path, force=args.force, source=args.model)
    ui.document.update(ok=True, output=path, norms=counted.found[-1].batch_norms)
    say_result(ui, counted, args.model, path,
               "PASSED: both files are as they were written, to the byte")
    return 0
