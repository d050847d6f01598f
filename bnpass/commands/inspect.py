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
from bnpass.report.plans import fold_table, refused_table, site_table, skipped_table
from bnpass.report.tables import Table, size
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

    model = load_model(args.model, data=False)
    found: Inspection = bnpass.inspect(args.model)
    facts = _facts(model, Path(args.model))
    ui.document.update(ok=True, model=args.model, **facts, **found.to_dict())
    ui.say(f"{args.model}: opset {facts['opset']}, IR {facts['ir_version']}, "
           f"{facts['parameters']} parameters, {size(facts['bytes'])}")
    tables = [_ports(found), _operators(found), _findings(found)]
    if args.explain:
        tables += [fold_table(found.folds), refused_table(found.folds), site_table(found.sites),
                   skipped_table(found.sites)]
    for table in tables:
        if table.rows:
            ui.table(table)
    for line in _summary(found, args):
        ui.say(line)
    return 0


def _facts(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    from bnpass.files import data_files, names_data
    from bnpass.onnx_model.attributes import opset_of
    from bnpass.onnx_model.facts import parameters

    data = data_files(path) if names_data(path) else []
    return {
        "opset": opset_of(model),
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "parameters": parameters(model),
        "bytes": sum(p.stat().st_size for p in (path, *data)),
        "data_files": [p.name for p in data],
        "metadata": {p.key: p.value for p in model.metadata_props},
    }


def _ports(found: Inspection) -> Table:
    table = Table("", ["", "name", "shape"])
    for label, ports in (("input", found.inputs), ("output", found.outputs)):
        for name, shape in ports.items():
            table.add(label, name, f"({', '.join('?' if d is None else str(d) for d in shape)})")
    return table


def _operators(found: Inspection) -> Table:
    table = Table("operators", ["operator", "count"], right=frozenset({1}))
    for kind, number in found.operators.items():
        table.add(kind, number)
    return table


def _findings(found: Inspection) -> Table:
    table = Table("findings", ["node", "level", "finding", "channels"], right=frozenset({3}))
    for finding in found.findings:
        table.add(finding.node, finding.level, finding.message, finding.channels or None)
    return table


def _summary(found: Inspection, args: argparse.Namespace) -> list[str]:
    folds, sites = found.folds, found.sites
    going = sites.nonlinearities - len(sites.skipped)
    lines = [
        f"fold:   {len(folds.folded)} of {len(folds.entries)} BatchNorms and other maps would go"
        if folds.entries else "fold:   there is no BatchNorm and no other map",
        (f"insert: {len(sites.sites)} BatchNorms would go in front of {going} of "
         f"{sites.nonlinearities} nonlinearities"),
    ]
    if not args.explain and (folds.entries or sites.nonlinearities):
        lines.append("--explain gives the places and the reasons")
    return lines
