"""JSON documents with a schema version: what ``--json`` prints and ``report.json`` holds."""

from __future__ import annotations

import json
import math
import os
from typing import Any

SCHEMA = 1
"""Raised when a field changes its meaning or goes; new fields do not raise it."""


def to_json(document: dict[str, Any], *, indent: int | None = 2) -> str:
    """The document as JSON text, with ``schema`` in front.

    NaN and infinity, which JSON does not know, become the strings ``"nan"``, ``"inf"``, ``"-inf"``;
    numpy numbers and arrays become numbers and lists, paths become strings.
    """
    text = json.dumps(plain({"schema": SCHEMA, **document}), indent=indent, allow_nan=False)
    return text.replace("\x7f", "\\u007f")  # the only control character that json lets through


def plain(value: Any) -> Any:
    """``value`` in the types that JSON knows."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
