"""The verification that stands before every writing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from bnpass.errors import MissingDependencyError
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.runtime.inputs import Feeds
    from bnpass.runtime.tolerance import Tolerance
    from bnpass.runtime.verify import VerifyReport


def check(
    before: Any, after: Any, ui: Ui, *, changed: Collection[str] = (),
    provider: str = "cpu", seed: int = 0, rule: Tolerance | None = None,
    prepare: Callable[[Feeds], Feeds] | None = None,
) -> VerifyReport:
    """Compare a rewritten model with the original; what it cost is printed.

    Args:
        before: the original, a path or a ModelProto.
        after: what would be written, likewise.
        ui: gets the result.
        changed: values whose meaning the rewrite changed on purpose.
        provider: on which the rewritten model runs.
        seed: of the random inputs.
        rule: the tolerance, instead of the one of the models' coarsest type.
        prepare: brings random inputs into the range that the models are meant for.

    Raises:
        VerificationError: they differ.
        MissingDependencyError: onnxruntime is missing; the hint names ``--no-verify`` too.
    """
    from bnpass.runtime.verify import verify

    try:
        report = verify(before, after, changed=changed, provider=provider, seed=seed,
                        rtol=rule.rtol if rule else None, atol=rule.atol if rule else None,
                        prepare=prepare)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"cannot verify before writing: {error.message}", f"{error.hint} (or pass --no-verify)"
        ) from error
    ui.document["verify"] = report.to_dict()
    for note in report.notes:
        ui.warn(note)
    report.raise_if_failed()
    worst = max(report.outputs.values(), key=lambda found: found.max_rel)
    ui.say(f"verified on {len(report.draws)} draws in {report.seconds:.1f} s: max error "
           f"{worst.max_abs:.2g} absolute, {worst.max_rel:.2g} relative "
           f"(reference: {report.reference_engine}, optimizations off)")
    return report
