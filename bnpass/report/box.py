"""The box that ends a command which rewrites a model: before and after, the proof, the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bnpass.report.tables import Table, size

if TYPE_CHECKING:
    from bnpass.onnx_model.facts import Facts
    from bnpass.onnx_model.model import OnnxModel
    from bnpass.report.ui import Ui
    from bnpass.runtime.verification import VerifyReport

Done = TypeVar("Done")


@dataclass
class Counted:
    """Counts a model before and after it is edited.

    Attributes:
        says: is told what comes next.
        found: the facts, in the order in which the model was shown.
    """

    says: Callable[[str], None] = lambda _: None
    found: list[Facts] = field(default_factory=list)

    def __call__(self, model: OnnxModel) -> None:
        """Count a model as it is now."""
        from bnpass.onnx_model.facts import facts_of

        self.found.append(facts_of(model))
        self.says("planning" if len(self.found) % 2 else "writing")

    def around(self, edit: Callable[[OnnxModel], Done]) -> Callable[[OnnxModel], Done]:
        """An edit that is counted before and after."""

        def counted(model: OnnxModel) -> Done:
            self(model)
            done = edit(model)
            self(model)
            return done

        return counted

    def add_to(self, document: dict[str, Any], source: Path, output: Path) -> None:
        """The facts of both models, with the bytes of their files, as JSON."""
        for word, facts, path in zip(("before", "after"), self.found[-2:], (source, output),
                                     strict=True):  # fmt: skip
            document[word] = {**facts.to_dict(), "bytes": bytes_of(path)}


def bytes_of(path: Path) -> int:
    """The size of a model's file and of the data files beside it."""
    from bnpass.files import data_files, names_data

    files = [path, *(data_files(path) if names_data(path) else ())]
    return sum(file.stat().st_size for file in files)


_ROWS = (("BatchNorm", "batch_norms"), ("nodes", "nodes"), ("parameters", "parameters"),
         ("size", "bytes"), ("multiply-adds", "multiply_adds"))  # fmt: skip


def before_and_after(before: dict[str, Any], after: dict[str, Any], title: str) -> Table:
    """The table of a rewritten model.

    Args:
        before, after: as :meth:`Counted.add_to` writes them.
        title: of the table: the file's name.
    """
    table = Table(title, ["", "before", "after"], right=frozenset({1, 2}), framed=True)
    for label, key in _ROWS:
        values = (before[key], after[key])
        table.add(label, *(size(v) if key == "bytes" else v for v in values))
    return table


def proof_of(document: dict[str, Any] | None) -> tuple[float | None, float]:
    """The error nearest to its limit and that limit, out of a verdict's JSON; (None, 0): none."""
    outputs = list(((document or {}).get("outputs") or {}).values())
    pairs = [(float(found["max_abs"]), float(found["limit"])) for found in outputs]
    return max(pairs, key=lambda p: (p[0] / p[1] if p[1] else 0.0, p[0]), default=(None, 0.0))


def proof_line(report: VerifyReport) -> str:
    """``PASSED: largest error 1.2e-07 where 3.4e-06 is allowed``."""
    word = "PASSED" if report.passed else "FAILED"
    if not report.outputs:
        edits = report.edits.proven if report.edits else 0
        return f"{word}: every edit proven, {edits} in all; the whole was not run"
    worst = max(report.outputs.values(), key=lambda c: (c.max_abs / c.limit if c.limit else 0.0,
                                                        c.max_abs))  # fmt: skip
    if worst.steps:
        return f"{word}: {worst.steps:,} of {worst.compared:,} numbers are another step"
    return f"{word}: largest error {worst.max_abs:.2g} where {worst.limit:.2g} is allowed"


def say_result(
    ui: Ui, counted: Counted, source: str, output: Path, report: VerifyReport | str,
    follow: str = "",
) -> None:
    """End a command that has changed a model: the box, the file, and what to do next.

    Args:
        ui: where it is said; the facts come into its document.
        counted: has seen the model before and after.
        source: the file that was read.
        output: the file that was written.
        report: what the verdict found, or why it was not asked.
        follow: the next command; empty: there is none worth naming.
    """
    counted.add_to(ui.document, Path(source), output)
    document = ui.document
    ui.table(before_and_after(document["before"], document["after"], Path(source).name))
    ui.say(report if isinstance(report, str) else proof_line(report))
    ui.say(f"wrote {output}")
    if follow:
        ui.say(f"next: {follow}")


def say_unchanged(ui: Ui, why: str, output: Path | None) -> None:
    """End a command that had nothing to do, in one line.

    Args:
        ui: where it is said.
        why: there was nothing to do.
        output: the copy of the file that was written nevertheless; None: nothing was.
    """
    written = "nothing was written" if output is None else f"{output} is a copy of the file"
    ui.say(f"nothing to do: {why}; {written}")
