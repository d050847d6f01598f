"""If, Loop and Scan: nested graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnpass.verdict.evaluator.call import Array, Invocation, Outputs, operator

_MOST = 10_000  # iterations: what a check runs has to end


def _run(call: Invocation, graph: Any, given: Sequence[Array]) -> list[Array]:
    if call.body is None:
        raise call.refuse("a nested graph")
    return call.body(graph, given)


@operator("If")
def _if(call: Invocation) -> Outputs:
    taken = "then_branch" if bool(call[0].reshape(-1)[0]) else "else_branch"
    return _run(call, call.attrs[taken], [])


@operator("Loop")
def _loop(call: Invocation) -> Outputs:
    graph, trips, going = call.attrs["body"], call.get(0), call.get(1)
    carried = [a for a in call.inputs[2:] if a is not None]
    count = _MOST + 1 if trips is None else int(trips.reshape(-1)[0])
    live = True if going is None else bool(going.reshape(-1)[0])
    scans: list[list[Array]] = [[] for _ in range(len(graph.output) - 1 - len(carried))]
    step = 0
    while live and step < count:
        if step >= _MOST:
            raise call.refuse(f"a loop of more than {_MOST} iterations")
        found = _run(call, graph, [np.array(step), np.array(live), *carried])
        live = bool(found[0].reshape(-1)[0])
        carried = found[1 : 1 + len(carried)]
        for kept, array in zip(scans, found[1 + len(carried) :], strict=True):
            kept.append(array)
        step += 1
    if any(not kept for kept in scans):
        raise call.refuse("a scan output of no iteration")
    return [*carried, *(np.stack(kept) for kept in scans)]


@operator("Scan")
def _scan(call: Invocation) -> Outputs:
    if call.opset < 9:
        raise call.refuse("the Scan of opset 8")
    graph, scanned = call.attrs["body"], int(call.attrs["num_scan_inputs"])
    inputs = [a for a in call.inputs if a is not None]
    states, sequences = inputs[: len(inputs) - scanned], inputs[len(inputs) - scanned :]
    axes = call.attrs.get("scan_input_axes") or [0] * scanned
    back = call.attrs.get("scan_input_directions") or [0] * scanned
    sequences = [
        np.flip(np.moveaxis(a, axis, 0), 0) if turned else np.moveaxis(a, axis, 0)
        for a, axis, turned in zip(sequences, axes, back, strict=True)
    ]
    outputs = len(graph.output) - len(states)
    kept: list[list[Array]] = [[] for _ in range(outputs)]
    for rows in zip(*sequences, strict=True):
        found = _run(call, graph, [*states, *(np.asarray(row) for row in rows)])
        states = found[: len(states)]
        for rows_so_far, array in zip(kept, found[len(states) :], strict=True):
            rows_so_far.append(array)
    return [*states, *(_stacked(call, k, rows, outputs) for k, rows in enumerate(kept))]


def _stacked(call: Invocation, k: int, rows: list[Array], outputs: int) -> Array:
    axis = (call.attrs.get("scan_output_axes") or [0] * outputs)[k]
    turned = (call.attrs.get("scan_output_directions") or [0] * outputs)[k]
    return np.moveaxis(np.stack(rows[::-1] if turned else rows), 0, axis)
