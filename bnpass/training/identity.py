"""Fingerprints of a network and of data: is a checkpoint that of this run?"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from torch import fx, nn

from bnpass.data import Data, NamedData, Stream
from bnpass.data.trees import arrays
from bnpass.training.feed import Samples

_LOOKED_AT = 64  # samples, spread over the set: reading all of a large one would take minutes


def fingerprint_of_data(data: Samples) -> str:
    """Of the samples' number and conversion, all labels, and some of the samples.

    Of batches of people's own: of their number and source.
    """
    if isinstance(data, Stream):
        return hashlib.sha256(f"{data.where} {data.length}".encode()).hexdigest()
    digest = hashlib.sha256(json.dumps([len(data), data.recipe], sort_keys=True).encode())
    few = np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(np.int64))
    inputs = [data] if isinstance(data, Data) else list(data.inputs.values())
    labels = data.y if isinstance(data, Data) else data.targets
    for array in arrays(labels):
        digest.update(np.ascontiguousarray(array[data.rows]).tobytes())
    if isinstance(data, NamedData) and data.mask is not None:
        digest.update(np.packbits(data.mask[data.rows]).tobytes())
    for part in inputs:
        digest.update(np.ascontiguousarray(part.x[data.rows[few]]).tobytes())
    return digest.hexdigest()


def fingerprint_of_network(gm: nn.Module) -> str:
    """Of its modules, its graph and its parameters' shapes, not of their numbers."""
    shapes = [(name, tuple(value.shape), str(value.dtype))
              for name, value in gm.state_dict().items()]
    modules = [(name, type(part).__name__, part.extra_repr())
               for name, part in gm.named_modules() if part is not gm]
    if not isinstance(gm, fx.GraphModule):
        return hashlib.sha256(repr((shapes, modules)).encode()).hexdigest()
    nodes = [(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in gm.graph.nodes
             if n.op != "call_function"]
    called = [(getattr(n.target, "__name__", ""), str(n.args), str(n.kwargs))
              for n in gm.graph.nodes if n.op == "call_function"]
    text = repr((shapes, modules, nodes, called))
    return hashlib.sha256(text.encode()).hexdigest()
