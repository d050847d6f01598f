"""Show what is in a model: inputs, operators, what would fold, where BatchNorm could go.

The statistics of every BatchNorm are checked: NaN, a variance of zero or below, never trained, a
scale beyond the type's range, a bias in front that is dead weight. --explain lists every fold and
every site, or the reason why there is none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.commands import options
from bnpass.report.inspection import (
    advice,
    findings_table,
    inspection_lines,
    operators_table,
    ports_table,
)
from bnpass.report.plans import fold_table, refused_table, site_table, skipped_table
from bnpass.report.tables import size
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    import onnx

    from bnpass.passes.inspect import Inspection


EXAMPLES = (
    "bnpass inspect models/lenet.onnx",
    "bnpass inspect models/inception.onnx --explain",
)
COMMON = ("--explain", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_model(parser)
    parser.add_argument("--explain", action="store_true",
                        help="list every fold and every site, or the reasons")
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    import bnpass
    from bnpass.files import load_model

    with ui.status(f"reading {args.model}") as says:
        model = load_model(args.model, data=False)
        says("looking for folds and sites")
        found: Inspection = bnpass.inspect(args.model)
    facts = _facts(model, Path(args.model))
    ui.document.update(ok=True, model=args.model, **facts, **found.to_dict())
    made = f", {facts['producer']}" if facts["producer"] else ""
    ui.say(f"{args.model}: opset {facts['opset']}, IR {facts['ir_version']}, "
           f"{size(facts['bytes'])}{made}")
    tables = [ports_table(found), operators_table(found), findings_table(found)]
    if args.explain:
        tables += [fold_table(found.folds), refused_table(found.folds), site_table(found.sites),
                   skipped_table(found.sites)]
    for table in tables:
        if table.rows:
            ui.table(table)
    for line in inspection_lines(found):
        ui.say(line)
    told = advice(found, args.model, str(options.sibling(Path(args.model), "{}")))
    ui.document["advice"] = told
    ui.say(told)
    return 0


def _facts(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    from bnpass.files import data_files, names_data
    from bnpass.onnx_model.attributes import opset_of

    data = data_files(path) if names_data(path) else []
    return {
        "opset": opset_of(model),
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "bytes": sum(p.stat().st_size for p in (path, *data)),
        "data_files": [p.name for p in data],
        "metadata": {p.key: p.value for p in model.metadata_props},
    }
