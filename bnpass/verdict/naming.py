"""Correspondences by name, where no plan says them: what a node reads now in place of before."""

from __future__ import annotations

from bnpass.ir.correspondence import Correspondence, Correspondences
from bnpass.onnx_model.attributes import node_name
from bnpass.verdict.side import Side


def matched(old: Side, new: Side) -> Correspondences:
    """What the new graph's nodes of the same names and types read in the same places.

    A guess, and it need be no more: a proof believes no claim.
    """
    theirs = {(node_name(n), n.op_type): n for n in new.graph.node}
    reads: dict[str, set[str]] = {}
    for node in old.graph.node:
        other = theirs.get((node_name(node), node.op_type))
        if other is None:
            continue
        for name, now in zip(node.input, other.input, strict=False):
            if name and now and not (old.is_constant(name) or new.is_constant(now)):
                reads.setdefault(name, set()).add(now)
    moved = {}
    for name, found in reads.items():
        now = min(found)
        if len(found) == 1 and now != name and name not in old.outputs:
            moved[name] = Correspondence(name, now)
    taken = {pair.new for pair in moved.values()}
    made = {o for n in old.graph.node for o in n.output if o}
    gone = {name for name in taken & made if name not in moved and name not in reads}
    return Correspondences(moved, frozenset(gone - set(old.outputs)))
