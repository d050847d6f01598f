"""Give a damaged network the statistics of the one that it was made from: no labels, no gradient.

Pruning, rounding to few bits, and merging or averaging of weights shift and shrink the values in
front of every nonlinearity. BatchNorms inserted into the reference hold the right moments as gamma
and beta; calibrated on the damaged weights they bring its values back to them, and fold away.

1. Insert into the reference, calibrated on the data: nothing changes.
2. The damaged weights take the places of the reference's, by name.
3. Calibrate on the same data; fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from bnpass.errors import InputError
from bnpass.frontends.onnx.folding import Folded, fold_model
from bnpass.frontends.onnx.inserting import InsertOptions, insert_model
from bnpass.passes.sites import Site
from bnpass.statistics.onnx_engine import batch_moments, calibrate_onnx

if TYPE_CHECKING:
    from bnpass.verdict.judge import Edits


@dataclass(frozen=True)
class Repaired:
    """A repaired network.

    Attributes:
        ready: the damaged network with the BatchNorms in it, calibrated.
        folded: the fold of it, with the model.
        norms: how many BatchNorms carried the statistics over.
        inserted: whether they had to be inserted; False: the network has its own.
    """

    ready: onnx.ModelProto
    folded: Folded
    norms: int
    inserted: bool

    @property
    def model(self) -> onnx.ModelProto:
        """The repaired model."""
        return self.folded.model

    @property
    def edits(self) -> Edits:
        """What a verdict is told of the fold, which must compute what :attr:`ready` does."""
        from bnpass.verdict.judge import Edits

        return Edits(self.folded.pairs, self.folded.original, self.folded.changed)


def repair_model(
    reference: onnx.ModelProto, damaged: onnx.ModelProto, data: Any, **options: Any
) -> Repaired:
    """Repair a damaged copy of a network.

    Args:
        reference: the network as it was.
        damaged: the same graph with other weights, by name.
        data: batches of inputs, or of (inputs, labels), gone through twice; an iterator is kept.
        options: ``batch_size``, ``seed``, ``provider`` of
            :func:`bnpass.statistics.onnx_engine.calibrate_onnx`.

    Raises:
        InputError: the graphs are not the same, or are quantised.
    """
    _check_alike(reference, damaged)
    batches = list(data) if isinstance(data, Iterator) else data

    def moments(model: onnx.ModelProto, sites: Sequence[Site]) -> Any:
        return batch_moments(model, [(site.value, site.axis) for site in sites], batches)

    done = insert_model(reference, InsertOptions(init="calibrated"), moments=moments)
    if done.plan.sites:
        _put_weights(done.model, damaged)
    ready = calibrate_onnx(done.model if done.plan.sites else damaged, batches, **options)
    norms = sum(node.op_type == "BatchNormalization" for node in ready.graph.node)
    return Repaired(ready, fold_model(ready), norms, bool(done.plan.sites))


def _check_alike(reference: onnx.ModelProto, damaged: onnx.ModelProto) -> None:
    graphs = (reference.graph, damaged.graph)
    nodes = [[(n.op_type, n.input[:], n.output[:]) for n in graph.node] for graph in graphs]
    weights = [{t.name: tuple(t.dims) for t in graph.initializer} for graph in graphs]
    if nodes[0] == nodes[1] and weights[0] == weights[1]:
        return
    differ = [n for n in weights[0] if weights[1].get(n) != weights[0][n]]
    what = f"weight {differ[0]!r}" if differ else "their nodes"
    raise InputError(
        f"the damaged network is not the reference with other weights: {what} differ",
        "give two files of one graph, as they came out of the same export",
    )


def _put_weights(model: onnx.ModelProto, damaged: onnx.ModelProto) -> None:
    new = {t.name: t for t in damaged.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(new[tensor.name])
