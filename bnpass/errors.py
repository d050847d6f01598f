"""Every error that bnpass raises on purpose: one tree, each with a hint and an exit code.

The command line prints ``error: MESSAGE`` and ``hint: HINT`` (one line each) and leaves with
``exit_code``; a Python caller catches :class:`BnpassError` or one of its children.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BnpassError(Exception):
    """Base of all errors of bnpass.

    Args:
        message: what is wrong and where, one line.
        hint: what the user can do about it, one line; empty if there is nothing to say.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(BnpassError):
    """The call itself is wrong: an unknown option value, a misspelt name, a bad combination."""


class InputError(BnpassError):
    """A model, data or checkpoint file cannot be read or used."""


class OutputError(BnpassError):
    """An output exists, is the input, or cannot be written."""


class UnsupportedError(InputError):
    """The model uses something that bnpass does not know; the message names every such node."""


class NotLoadedError(InputError):
    """A runtime cannot load a model: it may be the model that is no valid ONNX."""


class RefusedError(BnpassError):
    """A pass was asked for something that it must not do (e.g. fold a module in train mode)."""


class VerificationError(BnpassError):
    """A rewritten model does not agree with the original; nothing was written."""

    exit_code = 1


class MissingDependencyError(BnpassError):
    """A package, a library or an execution provider that this step needs is not there."""

    exit_code = 3


class LostPeerError(BnpassError):
    """Another of the processes that work together is gone."""

    exit_code = 3


class OutOfMemoryError(BnpassError):
    """The system gave no more memory, on this machine and at this moment."""

    exit_code = 3


def close_matches(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'a' or 'b'?"`` for a misspelt name, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=3)
    return "did you mean " + " or ".join(repr(f) for f in found) + "?" if found else ""
