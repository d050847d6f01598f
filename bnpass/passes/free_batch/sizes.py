"""Shape arithmetic that may hold the batch size: Shape -> Gather -> Concat -> Reshape and the like.

The arithmetic is :mod:`bnpass.ir.arithmetic`; a size along the batch is a product with the symbol
``BATCH``. An entry of which nothing is known never depends on the batch: what would make such a one
is refused.
"""

from __future__ import annotations

import numpy as np

from bnpass.ir.arithmetic import Numbers, evaluate, numbers
from bnpass.ir.extents import Extent, Product, extent, product
from bnpass.ir.operators import kinds, operator
from bnpass.passes.free_batch.node import BATCH, BatchNode, holds_batch

_MOVES = kinds(lambda row: row.moves or row.copies or row.reads_part) | {"Concat"}
"""What makes no entries of its own: an unknown one was unknown before."""


def computed(node: BatchNode) -> Numbers | None:
    """The numbers of the only output where it is shape arithmetic; None where it is none.

    Raises:
        Refusal: the batch size becomes something else than a multiple of itself.
    """
    if len(node.op.outputs) != 1:
        return None
    if operator(node.op.kind).sees_shape:
        return _of_shape(node)
    inputs = [node.known(i) if name else None for i, name in enumerate(node.op.inputs)]
    if not any(name in node.numbers for name in node.op.inputs):
        return None
    kind = node.graph.dtype(node.op.outputs[0]) or ""
    made = evaluate(node.op.kind, node.op.attrs, inputs, kind.startswith("float"))
    if made is not None and any(node.depends(i) for i in node.given):
        _check(node, made)
    return made


def _of_shape(node: BatchNode) -> Numbers | None:
    """Shape and Size, with the batch size where the batch is."""
    batch = node.state(0)
    dims = node.dims(0) if batch is not None else node.graph.shape(node.op.inputs[0])
    if dims is None:
        return None
    sizes: list[Extent] = [extent(d) for d in dims]
    if batch is not None:
        sizes[batch.axis] = batch.size
    if node.op.kind == "Size":
        made = numbers(np.array(0))
        made[()] = product(sizes)
        _check(node, made)
        return made
    part = sizes[node.attr("start", 0) : node.attr("end", len(sizes))]
    row = np.empty(len(part), object)
    row[:] = part
    return row


_WHY = {
    "Mul": "it multiplies the batch size by something unknown",
    "Div": "it divides by or rounds the batch size",
}


def _check(node: BatchNode, made: Numbers) -> None:
    """Every entry that depends on the batch size is a multiple of it, by a number."""
    kind = node.op.kind
    mixed = any(isinstance(e, Product) and holds_batch(e) and e.symbols != (BATCH,)
                for e in made.flat)  # fmt: skip
    if mixed or (kind not in _MOVES and _loses(node, made)):
        node.refuse(_WHY.get(kind, "it computes with the batch size"))


def _loses(node: BatchNode, made: Numbers) -> bool:
    """Whether an entry is unknown that depends on the batch size."""
    unknown = np.array([e is None for e in made.flat]).reshape(made.shape)
    if not operator(node.op.kind).elementwise:
        return bool(unknown.any())
    inputs = [node.known(i) for i in node.given]
    held = [np.vectorize(holds_batch, otypes=[bool])(v) for v in inputs if v is not None and v.size]
    return any(bool((unknown & np.broadcast_to(h, made.shape)).any()) for h in held)
