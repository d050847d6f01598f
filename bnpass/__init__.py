"""bnpass: a compiler-style pass that inserts BatchNorm, and folds it away after training.

Insert a BatchNorm in front of every nonlinearity of an ONNX model or a torch module, train it,
measure the population statistics, fold everything into the weights, verify, deploy.
Source: Ioffe & Szegedy 2015, arXiv:1502.03167.

Nothing heavy is imported until a function is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnpass.api import calibrate as calibrate
    from bnpass.api import collapse as collapse
    from bnpass.api import fold as fold
    from bnpass.api import insert as insert
    from bnpass.api import inspect as inspect
    from bnpass.api import repair as repair
    from bnpass.api import strip as strip
    from bnpass.errors import BnpassError as BnpassError
    from bnpass.export import export as export
    from bnpass.importer import register_op as register_op
    from bnpass.importer import to_torch as to_torch
    from bnpass.importer import write_back as write_back
    from bnpass.runtime.session import session as session
    from bnpass.runtime.verify import verify as verify
    from bnpass.training.simple import train as train

__version__ = "0.2.0"

_HOME = {
    "insert": "bnpass.api",
    "collapse": "bnpass.api",
    "fold": "bnpass.api",
    "calibrate": "bnpass.api",
    "inspect": "bnpass.api",
    "repair": "bnpass.api",
    "strip": "bnpass.api",
    "export": "bnpass.export",
    "to_torch": "bnpass.importer",
    "write_back": "bnpass.importer",
    "register_op": "bnpass.importer",
    "session": "bnpass.runtime.session",
    "train": "bnpass.training.simple",
    "verify": "bnpass.runtime.verify",
    "BnpassError": "bnpass.errors",
}

_PARTS = ("data", "statistics", "training")  # packages of their own that people use, too

__all__ = [
    "BnpassError",
    "calibrate",
    "collapse",
    "export",
    "fold",
    "insert",
    "inspect",
    "register_op",
    "repair",
    "session",
    "strip",
    "to_torch",
    "train",
    "verify",
    "write_back",
]


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives, the first time that it is used."""
    home = _HOME.get(name)
    if name in _PARTS:
        return importlib.import_module(f"bnpass.{name}")
    if home is None:
        raise AttributeError(f"module 'bnpass' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS, "__version__"])
