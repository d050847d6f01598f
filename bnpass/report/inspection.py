"""What is in a model: the first screen that people see of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnpass.report.plans import fold_summary, insert_summary
from bnpass.report.tables import Table, width
from bnpass.report.words import many

if TYPE_CHECKING:
    from bnpass.passes.inspect import Inspection

_COLUMNS = 3  # pairs of operator and number in a row
_COUNT = 14  # characters that the number beside an operator takes, with the gaps


def shown_inspection(found: Inspection) -> list[Table | str]:
    """An inspection, as tables and lines."""
    tables = [ports_table(found), operators_table(found), findings_table(found)]
    return [*(table for table in tables if table.rows), *inspection_lines(found)]


def ports_table(found: Inspection) -> Table:
    """Inputs and outputs, with element types and dimensions."""
    table = Table("", ["", "name", "type", "shape"])
    for label, ports in (("input", found.inputs), ("output", found.outputs)):
        for name, shape in ports.items():
            table.add(label, name, found.types.get(name) or "?",
                      f"({', '.join('?' if d is None else str(d) for d in shape)})")
    return table


def operators_table(found: Inspection) -> Table:
    """Operators with their numbers, in columns that are read downwards."""
    pairs = [(kind, f"{number:,}") for kind, number in found.operators.items()]
    widest = max((len(kind) for kind in found.operators), default=0) + _COUNT
    height = -(-len(pairs) // max(1, min(_COLUMNS, width() // widest)))
    columns = [pairs[i : i + height] for i in range(0, len(pairs), height or 1)]
    table = Table("operators", ["operator", "count"] * len(columns),
                  right=frozenset(range(1, 2 * len(columns), 2)))
    for row in range(height):
        table.add(*(cell for column in columns for cell in _pair(column, row)))
    return table


def _pair(column: Sequence[tuple[str, str]], row: int) -> tuple[str, str]:
    return column[row] if row < len(column) else ("", "")


def findings_table(found: Inspection) -> Table:
    """What the numbers of the BatchNorms say."""
    table = Table("findings", ["node", "level", "finding", "channels"], right=frozenset({3}))
    for finding in found.findings:
        table.add(finding.node, finding.level, finding.message, finding.channels or None)
    return table


def inspection_lines(found: Inspection) -> list[str]:
    """How large it is, what would fold, where BatchNorms could go."""
    sizes = [many(count, noun) for count, noun in
             ((found.parameters, "parameter"), (found.multiply_adds, "multiply-add"))
             if count is not None]  # fmt: skip
    lines = [", ".join(sizes)] if sizes else []
    if found.subgraphs:
        lines.append(f"{many(found.subgraphs, 'subgraph')} not analysed")
    fold, sites = found.folds, found.sites
    lines.append(f"fold:   {fold_summary(fold, done=False)}" if fold.entries
                 else "fold:   no BatchNorm and no other scale or shift")
    lines.append(f"insert: {insert_summary(sites)}" if sites.nonlinearities
                 else "insert: no nonlinearity")
    return lines


def advice(found: Inspection, path: str, sibling: str) -> str:
    """The one thing to do next with a model, with the command.

    Args:
        found: what is in it.
        path: of the model.
        sibling: ``NAME.{}.onnx`` beside it.
    """
    wrong = [f for f in found.findings if f.level == "error"]
    untrained = [f for f in found.findings if "never trained" in f.message]
    norms = [e for e in found.folds.folded if e.kind == "BatchNormalization"]
    if wrong:
        return f"wrong numbers in {wrong[0].node}: take the file from before they were, or train on"
    if untrained:
        return (f"its BatchNorms were never trained: bnpass train {path} --data DATA -o "
                f"{sibling.format('trained')}")
    if norms:
        return f"ready to fold: bnpass fold {path} -o {sibling.format('folded')}"
    if found.norms:
        return f"its BatchNorms stay: bnpass fold {path} --dry-run --explain gives the reasons"
    if found.sites.sites:
        return f"BatchNorm can go in: bnpass insert {path} -o {sibling.format('bn')}"
    return "nothing to fold and nowhere to insert"
