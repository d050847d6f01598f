"""ONNX -> a trainable torch.fx.GraphModule, and its parameters back by name."""

from __future__ import annotations

from bnpass.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "importing a model for training needs torch", "pip install 'bnpass[torch]'"
    ) from error

from bnpass.importer import ops as _ops  # noqa: F401  (fills the table)
from bnpass.importer.model import to_torch
from bnpass.importer.node import ImportedNode
from bnpass.importer.registry import known_ops, register_op
from bnpass.importer.store import Origin
from bnpass.importer.writeback import write_back

__all__ = ["ImportedNode", "Origin", "known_ops", "register_op", "to_torch", "write_back"]
