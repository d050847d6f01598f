"""What a torch.fx node calls, by one name for functions, methods and ATen operators alike.

A row of the vocabulary is a Python function with the parameters of the torch function it stands
for; ``function("add", "F.add")`` enters it into the table.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

Handler = Callable[..., None]
H = TypeVar("H", bound=Handler)

FUNCTIONS: dict[str, Handler] = {}
"""By name: ``add`` from anywhere, ``F.batch_norm`` only from torch.nn.functional, ``aten.x``..."""

MODULES: dict[type[nn.Module], Handler] = {}

EXACT: dict[Callable[..., Any], Handler] = {}
"""Functions that bnpass's importer calls, by identity."""


def function(*names: str) -> Callable[[H], H]:
    """Enter a row for functions, methods and ATen operators of these names."""

    def enter(handler: H) -> H:
        FUNCTIONS.update(dict.fromkeys(names, handler))
        return handler

    return enter


def module(*kinds: type[nn.Module]) -> Callable[[H], H]:
    """Enter a row for modules of these classes."""

    def enter(handler: H) -> H:
        MODULES.update(dict.fromkeys(kinds, handler))
        return handler

    return enter


def exact(*functions: Callable[..., Any]) -> Callable[[H], H]:
    """Enter a row for these very functions."""

    def enter(handler: H) -> H:
        EXACT.update(dict.fromkeys(functions, handler))
        return handler

    return enter


@cache
def _names() -> dict[Any, tuple[str, str]]:
    """(name space, name) of torch's functions, by the function."""
    found: dict[Any, tuple[str, str]] = {}
    for space, home in (("torch", torch), ("F", F), ("operator", operator)):
        for name in dir(home):
            value = getattr(home, name, None)
            if callable(value) and not isinstance(value, type) and not name.startswith("__"):
                found.setdefault(value, (space, name))
    found[getattr] = ("builtins", "getattr")
    return found


def _spaced(node: fx.Node) -> tuple[str, str] | None:
    if node.op == "call_method":
        return "Tensor", str(node.target)
    if node.op != "call_function":
        return None
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is not None:
        space, _, name = schema.name.partition("::")
        return space, name
    try:
        return _names().get(target)
    except TypeError:
        return None


def function_name(node: fx.Node) -> str | None:
    """The plain name of what a node calls, in-place forms without their underscore."""
    spaced = _spaced(node)
    if spaced is None:
        return None
    name = spaced[1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def function_handler(node: fx.Node) -> Handler | None:
    """The row for a function, method or ATen operator; None for one that is not known."""
    if node.op == "call_function" and callable(node.target) and node.target in EXACT:
        return EXACT[node.target]
    spaced = _spaced(node)
    if spaced is None:
        return None
    space, name = spaced
    plain = function_name(node) or name
    for key in (f"{space}.{name}", f"{space}.{plain}", name, plain):
        handler = FUNCTIONS.get(key)
        if handler is not None:
            return handler
    return None


_FORWARDS = ("forward", "_conv_forward", "__call__")


def module_handler(m: nn.Module) -> Handler | None:
    """The row for a module: of its class, or of a base whose forward it does not change."""
    for kind in type(m).__mro__:
        handler = MODULES.get(kind)
        if handler is None:
            continue
        same = all(getattr(type(m), n, None) is getattr(kind, n, None) for n in _FORWARDS)
        return handler if same and "forward" not in vars(m) else None
    return None


@cache
def parameters(handler: Handler) -> tuple[str, ...]:
    """The names of the torch function's parameters, in order."""
    return tuple(inspect.signature(handler).parameters)[1:]
