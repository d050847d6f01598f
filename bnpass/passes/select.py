"""Which operators a pass may touch: glob patterns on their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from bnpass.graph import Op


def selector(only: Sequence[str], skip: Sequence[str]) -> Callable[[Op], bool]:
    """A test that is true for names that match a pattern of ``only`` (if any) and none of ``skip``.
    """

    def selected(op: Op) -> bool:
        if only and not any(fnmatchcase(op.name, pattern) for pattern in only):
            return False
        return not any(fnmatchcase(op.name, pattern) for pattern in skip)

    return selected
