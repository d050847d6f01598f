"""The verdict on an edit: all three questions, in order, within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from bnpass.errors import NotLoadedError, RefusedError
from bnpass.ir.correspondence import Correspondences
from bnpass.onnx_model.attributes import is_onnx
from bnpass.onnx_model.messages import copied
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import Place, graphs
from bnpass.runtime.engines import Loaded
from bnpass.runtime.inputs import Feeds
from bnpass.runtime.tolerance import Tolerance
from bnpass.runtime.verification import VerifyReport
from bnpass.runtime.verify import verify
from bnpass.verdict.budget import DEFAULT
from bnpass.verdict.findings import ProofReport
from bnpass.verdict.proof import UNTOUCHED, prove


@dataclass(frozen=True)
class Edits:
    """What is known of the edits that made a model.

    Attributes:
        pairs: which new value stands for which old one, by graph or of the main graph alone; what
            is not said names tell; None: of nothing.
        original: the model that was edited, where that is not quite the one given (its functions
            written out, its BNs taken for inference); None: it is the one given.
        changed: values whose meaning the edits changed on purpose.
        declared: edits that rest on shapes which only the file declares: they want the whole
            network to be run.
        trust_shapes: they do not.
    """

    pairs: Mapping[Place, Correspondences] | Correspondences | None = None
    original: onnx.ModelProto | None = None
    changed: frozenset[str] = field(default_factory=frozenset)
    declared: tuple[str, ...] = ()
    trust_shapes: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether nothing but running the whole network tells that they are right."""
        return bool(self.declared) and not self.trust_shapes


Given = str | Path | onnx.ModelProto

_BATCHES = (1, 3)
"""Batch sizes of the draws, in turn: beside the proof of each edit small ones tell enough."""


def judge(
    before: Given,
    after: Given,
    edits: Edits,
    *,
    provider: str = "cpu",
    seed: int = 0,
    rule: Tolerance | None = None,
    prepare: Callable[[Feeds], Feeds] | None = None,
    budget: float | None = DEFAULT,
    says: Callable[[str], None] = lambda _: None,
    dims: Mapping[str, int] | None = None,
    data: Iterable[Any] | None = None,
) -> VerifyReport:
    """Ask all three questions about a rewritten model.

    Args:
        before: the original, a path or a ModelProto.
        after: the result, likewise.
        edits: what is known of how it was made.
        provider: where the result will run.
        seed: of all random inputs.
        rule: a tolerance for question 2 instead of the network's noise; question 1 is not asked
            then, as the types differ.
        prepare: brings random inputs into the range that the models are meant for.
        budget: seconds for questions 2 and 3; None for no limit, 0: they are not asked.
        says: is told what is being done.
        dims: sizes of free dimensions, and values of inputs that are counts.
        data: batches of real inputs instead of random ones.

    Raises:
        RefusedError: edits rest on shapes that only the file declares, and the whole was not run.
        VerificationError, InputError, MissingDependencyError: as :func:`verify`.
    """
    start = time.perf_counter()
    proof = None
    if rule is None:
        says("verifying: proving every edit on its own region")
        proof = proven(before, after, edits, seed)
    if proof is not None and not proof.passed:
        return _proof_alone(proof, "questions 2 and 3: an edit is wrong",
                            time.perf_counter() - start)  # fmt: skip
    if budget == 0 and proof is not None:
        _refuse_doubtful(edits, "a budget of 0 was given")
        return _proof_alone(proof, "questions 2 and 3: a budget of 0 was given",
                            time.perf_counter() - start)  # fmt: skip
    says("verifying: running both models")
    reference, candidate, notes = _at_inference(before, after, edits)
    try:
        report = verify(
            reference, candidate, changed=edits.changed, provider=provider, seed=seed,
            rtol=rule.rtol if rule else None, atol=rule.atol if rule else None, prepare=prepare,
            budget=budget, edits=proof, dims=dims, data=data, batches=_BATCHES,
            alternate=True, says=says,
        )  # fmt: skip
    except NotLoadedError as error:
        if not edits.declared or proof is None:
            raise
        _refuse_doubtful(edits, error.message)
        return _proof_alone(proof, f"running the whole network: {error.message}",
                            time.perf_counter() - start)  # fmt: skip
    if not report.outputs:
        _refuse_doubtful(edits, "; ".join(report.left_out))
    report.notes[:0] = notes
    for found in proof.open if proof is not None else ():
        report.notes.append(
            f"the edit at {found.node!r} could not be proven for itself ({found.reason}): running "
            "the whole network judges it"
        )
    report.seconds = time.perf_counter() - start
    return report


def _refuse_doubtful(edits: Edits, why: str) -> None:
    """Where the whole was not run, edits that rest on the file's word alone are not right enough.

    Raises:
        RefusedError: there are such edits, and nobody said that the file is to be trusted.
    """
    if edits.doubtful:
        named = ", ".join(repr(name) for name in edits.declared[:3])
        more = f" and {len(edits.declared) - 3} more" if len(edits.declared) > 3 else ""
        raise RefusedError(
            f"{named}{more}: right only if shapes are what the file declares, and the check could "
            f"not run the network ({why})",
            "--trust-shapes takes the file's word; --skip leaves them as they are",
        )


def proven(before: Given, after: Given, edits: Edits, seed: int = 0) -> ProofReport:
    """Question 1 alone."""
    old, new = _whole(before, edits.original), _whole(after, None)
    return prove(old, new, UNTOUCHED if edits.pairs is None else edits.pairs, seed=seed)


def _whole(given: Given, instead: onnx.ModelProto | None) -> OnnxModel:
    if isinstance(given, onnx.ModelProto):
        return OnnxModel(instead or given)
    from bnpass.files import load_model
    from bnpass.onnx_model.storage import external
    from bnpass.onnx_model.storage.detached import detach

    path = Path(given)
    if path.is_symlink():  # its data may lie in two folders: it is read now
        if instead is None:
            return OnnxModel(load_model(path))
        external.follow(path)
        return OnnxModel(OnnxModel(instead, path.parent).embedded())
    if instead is not None:
        return OnnxModel(instead, path.resolve().parent)
    light = detach(path.resolve())
    proto = load_model(path, data=False) if light is None else light
    return OnnxModel(proto, path.resolve().parent)


def _proof_alone(proof: ProofReport, why: str, seconds: float) -> VerifyReport:
    notes = [
        f"the edit at {found.node!r} could not be proven ({found.reason}), and nothing else judges "
        "it"
        for found in proof.open
    ]
    return VerifyReport(
        passed=proof.passed, outputs={}, mapping={}, rule=Tolerance(0.0, 0.0),
        first_difference=None, reference_engine="none", candidate_engine="none", provider="",
        draws=[], notes=notes,
        edits=proof, left_out=[why], seconds=seconds,
    )  # fmt: skip


def _at_inference(before: Given, after: Given, edits: Edits) -> tuple[Any, Any, list[str]]:
    """Both models as they compute at inference: live Dropouts of a training export off."""
    if edits.original is None:
        return before, after, []
    path = None if isinstance(before, onnx.ModelProto) else Path(before)
    reference = Loaded(edits.original, path, edited=path is not None)
    candidate = Loaded.load(after)
    quiet = [_without_dropout(m.proto) for m in (reference, candidate)]
    if not any(n for _, n in quiet):
        return reference, after, []
    left, right = (
        Loaded(proto, m.path, edited=m.path is not None)
        for (proto, _), m in zip(quiet, (reference, candidate), strict=True)
    )
    note = (
        f"{quiet[0][1]} Dropouts that are live in the file are off in both models while they are "
        "compared"
    )
    return left, right, [note]


def _without_dropout(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """(a copy whose Dropouts pass on what they read, how many would not have)."""
    live = [n for g in graphs(model.graph) for n in g.node if _may_be_live(n)]
    if not live:
        return model, 0
    copy = copied(model)
    for graph in graphs(copy.graph):
        for node in graph.node:
            if _may_be_live(node):
                del node.input[2:]
    return copy, len(live)


def _may_be_live(node: onnx.NodeProto) -> bool:
    return is_onnx(node, "Dropout") and len(node.input) > 2 and bool(node.input[2])
