"""From ONNX names, which may be any text, to attribute paths and Python identifiers."""

from __future__ import annotations

import keyword
import re

import torch

_UNFIT = re.compile(r"[^0-9A-Za-z_]")
_TAKEN = frozenset(dir(torch.fx.GraphModule)) | frozenset(vars(torch.nn.Module())) | {"meta"}


def identifier(name: str) -> str:
    """A Python identifier that reads like ``name`` (``in`` becomes ``in_``)."""
    text = _UNFIT.sub("_", name) or "value"
    text = f"_{text}" if text[0].isdigit() else text
    return f"{text}_" if keyword.iskeyword(text) else text


def path_of(name: str) -> str:
    """The attribute path of an ONNX name: dots make submodules, the rest becomes ``_``.

    ``features.0.weight`` stays as it is, as torch.nn.Sequential would have it.
    """
    parts = [_UNFIT.sub("_", part) for part in name.split(".")]
    return ".".join(_attribute(part) for part in parts if part) or "value"


def _attribute(part: str) -> str:
    clash = part in _TAKEN or keyword.iskeyword(part)
    return f"{part}_" if clash else part


class Paths:
    """Hands out attribute paths such that no tensor's path lies inside another's."""

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._folders: set[str] = set()

    def claim(self, name: str) -> str:
        """A free path derived from ``name``."""
        path = path_of(name)
        if any(parent in self._leaves for parent in _parents(path)):
            path = path.replace(".", "_")
        while path in self._leaves or path in self._folders:
            path += "_"
        self._leaves.add(path)
        self._folders.update(_parents(path))
        return path


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
