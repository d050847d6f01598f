"""Nested tuples, lists and mappings of arrays: what networks take and give."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor: it has a shape."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def leaves(tree: Any) -> Iterator[Any]:
    """Everything in a tree that is no tuple, list or mapping, in order."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value)
    else:
        yield tree


def arrays(tree: Any) -> list[Any]:
    """The arrays in a tree, in order."""
    return [leaf for leaf in leaves(tree) if is_array(leaf)]


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with each of its arrays changed; whatever else it holds stays."""
    if isinstance(tree, Mapping):
        return {name: mapped(value, change) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [mapped(value, change) for value in tree]
        if hasattr(tree, "_fields"):
            return type(tree)(*parts)
        return tuple(parts) if isinstance(tree, tuple) else parts
    return change(tree) if is_array(tree) else tree


def joined(trees: Sequence[Any]) -> Any:
    """Trees of the same structure as one, each array joined along its first axis."""
    if len(trees) == 1:
        return trees[0]
    queues = [iter(arrays(tree)) for tree in trees]
    return mapped(trees[0], lambda _: concatenate([next(queue) for queue in queues]))


def concatenate(parts: Sequence[Any]) -> Any:
    """Arrays (numpy or torch) joined along their first axis."""
    if hasattr(parts[0], "detach"):
        return sys.modules["torch"].cat(list(parts))
    import numpy as np

    return np.concatenate(parts)


def structure(tree: Any) -> Any:
    """What two trees must have in common to be joined: nesting, sample shapes and types."""
    if isinstance(tree, Mapping):
        return tuple((name, structure(value)) for name, value in tree.items())
    if isinstance(tree, tuple | list):
        return tuple(structure(value) for value in tree)
    return (tuple(tree.shape[1:]), str(tree.dtype)) if is_array(tree) else repr(tree)


def count(tree: Any) -> int | None:
    """Samples in a batch: the common length of its arrays' first axes, or None without one.

    Numbers that are no arrays may belong to single samples: then there is none.
    """
    found = {len(leaf) if is_array(leaf) and len(leaf.shape) else None
             for leaf in leaves(tree) if leaf is not None}
    return found.pop() if len(found) == 1 else None


def nbytes(tree: Any) -> int:
    """Bytes that the arrays of a tree take."""
    return sum(int(getattr(leaf, "nbytes", 0)) for leaf in arrays(tree))
