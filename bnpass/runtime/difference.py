"""Which tensor differs first: the two models' common values, walked back from a failed output."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx

from bnpass.errors import BnpassError
from bnpass.onnx_model.attributes import node_name
from bnpass.onnx_model.scopes import captured_by
from bnpass.runtime.compare import Comparison, compare, jsonable
from bnpass.runtime.engines import Loaded, OrtEngine
from bnpass.runtime.inputs import Feeds
from bnpass.runtime.tolerance import Tolerance

_FIRST, _HELD = 64, 2**28  # values in the first run; bytes held at once in the later ones


@dataclass(frozen=True)
class Difference:
    """The first tensor that differs.

    Attributes:
        value: its name, the same in both models.
        node: the reference's node that makes it.
        kind: that node's operator.
        max_abs: largest |a - b|.
        max_rel: largest |a - b| / max|a|.
        nonfinite: NaN and Inf that the reference does not have.
    """

    value: str
    node: str
    kind: str
    max_abs: float
    max_rel: float
    nonfinite: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; JSON-able."""
        return {k: jsonable(v) for k, v in asdict(self).items()}


def first_difference(
    reference: Loaded,
    candidate: Loaded,
    feeds: Feeds,
    candidate_feeds: Feeds,
    failed: Collection[str],
    rule: Tolerance,
    changed: Collection[str] = (),
    **options: Any,
) -> Difference | None:
    """Find the first tensor that differs among the values that both models have by name.

    Walked backward from the failed outputs through what differs: a value that differs but whose
    effect is undone before it reaches a failed output (a Conv whose BN was folded into it) is not
    blamed. An intermediate value differs when it is off by more than a tenth of the tolerance:
    small errors grow on their way to the output.

    Args:
        reference: run with graph optimizations disabled.
        candidate: run with ``options``.
        feeds: inputs for which an output failed.
        candidate_feeds: the same in the candidate's names and types.
        failed: the outputs that failed.
        rule: the tolerance of the outputs.
        changed: values whose meaning a rewrite changed on purpose; they are left out.
        **options: the candidate's session options.

    Returns:
        None if onnxruntime cannot show these values, or all of them agree.
    """
    producers = {o: n for n in reference.proto.graph.node for o in n.output if o}
    theirs = {o for n in candidate.proto.graph.node for o in n.output if o}
    shared = [v for v in producers if v in theirs and v not in changed]
    rule = replace(rule, rtol=rule.rtol / 10, atol=rule.atol / 10)
    try:
        left = OrtEngine(reference, shared, optimize=False)
        right = OrtEngine(candidate, shared, **options)
        results = dict(_compare_all(left, right, shared, feeds, candidate_feeds, rule))
    except BnpassError:
        return None
    reached = _reached(failed, producers, results)
    first = next((v for v in shared if v in reached and not results[v].passed), None)
    if first is None:
        return None
    node, found = producers[first], results[first]
    return Difference(
        first, node_name(node), node.op_type, found.max_abs, found.max_rel, found.nonfinite
    )


def _compare_all(
    left: OrtEngine,
    right: OrtEngine,
    shared: list[str],
    feeds: Feeds,
    candidate_feeds: Feeds,
    rule: Tolerance,
) -> Iterator[tuple[str, Comparison]]:
    # Each run computes the whole network: few runs for small tensors, little memory for large ones.
    start, count = 0, _FIRST
    while start < len(shared):
        names = shared[start : start + count]
        a, b = left.fetch(feeds, names), right.fetch(candidate_feeds, names)
        for name in names:
            if a[name].shape == b[name].shape:
                yield name, compare(a[name], b[name], rule)
            else:
                yield name, Comparison(passed=False, max_abs=float("inf"), max_rel=float("inf"))
        start += len(names)
        each = max(sum(value.nbytes for value in a.values()) // len(names), 1)
        count = max(_HELD // each, 1)


def _reached(
    failed: Collection[str], producers: dict[str, onnx.NodeProto], results: dict[str, Comparison]
) -> set[str]:
    """Return the values met on the way back from the failed outputs, stopping where they agree."""
    reached: set[str] = set()
    queue = list(failed)
    while queue:
        value = queue.pop()
        if value in reached or value not in producers:
            continue
        if value in results and results[value].passed:
            continue
        reached.add(value)
        node = producers[value]
        queue += [name for name in (*node.input, *captured_by(node)) if name]
    return reached
