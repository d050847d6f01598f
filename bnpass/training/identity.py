"""Fingerprints of a network and of data: is a checkpoint that of this run?"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from torch import fx

from bnpass.data.dataset import Data

_LOOKED_AT = 64  # samples, spread over the set: reading all of a large one would take minutes


def fingerprint_of_data(data: Data) -> str:
    """Of the samples' number and conversion, all labels, and some of the samples."""
    digest = hashlib.sha256(json.dumps([len(data), data.recipe], sort_keys=True).encode())
    if data.y is not None:
        digest.update(np.ascontiguousarray(data.labels).tobytes())
    few = np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(np.int64))
    digest.update(np.ascontiguousarray(data.x[data.rows[few]]).tobytes())
    return digest.hexdigest()


def fingerprint_of_network(gm: fx.GraphModule) -> str:
    """Of its modules, its graph and its parameters' shapes, not of their numbers."""
    shapes = [(name, tuple(value.shape), str(value.dtype))
              for name, value in gm.state_dict().items()]
    modules = [(name, type(part).__name__, part.extra_repr())
               for name, part in gm.named_modules() if part is not gm]
    nodes = [(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in gm.graph.nodes
             if n.op != "call_function"]
    called = [(getattr(n.target, "__name__", ""), str(n.args), str(n.kwargs))
              for n in gm.graph.nodes if n.op == "call_function"]
    text = repr((shapes, modules, nodes, called))
    return hashlib.sha256(text.encode()).hexdigest()
