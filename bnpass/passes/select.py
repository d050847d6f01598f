"""Which operators a pass may touch: glob patterns on their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from bnpass.ir.graph import Op


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of the glob patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def selector(only: Sequence[str], skip: Sequence[str]) -> Callable[[Op], bool]:
    """True for names that match a pattern of ``only`` (if there is any) and none of ``skip``."""
    if not only and not skip:
        return _any

    def selected(op: Op) -> bool:
        return (not only or matches(op.name, only)) and not matches(op.name, skip)

    return selected


def _any(_: Op) -> bool:
    return True
