"""How a map crosses a Reshape: runs of axes with equal products, matched from both ends."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from bnpass.ir.affine import Map
from bnpass.ir.graph import Dim, Op
from bnpass.rules.base import MapRefusedError

Run = tuple[range, range]
"""Axes of the one shape that together hold the same entries as axes of the other."""


def _same(a: Dim, b: Dim) -> bool:
    return a is not None and a == b


def _runs(source: Sequence[Dim], target: Sequence[Dim]) -> list[Run]:
    """Runs from the left end, each as short as possible, until a size is not known."""
    runs: list[Run] = []
    i = j = 0
    while i < len(source) and j < len(target):
        begin_i, begin_j = i, j
        if _same(source[i], target[j]):
            i, j = i + 1, j + 1
        else:
            end = _equal_products(source, target, i, j)
            if end is None:
                break
            i, j = end
        runs.append((range(begin_i, i), range(begin_j, j)))
    return runs


def _equal_products(
    source: Sequence[Dim], target: Sequence[Dim], i: int, j: int
) -> tuple[int, int] | None:
    """Ends of the shortest non-empty runs from i and j with equal, static products."""
    left = right = 1
    first = True
    while first or left != right:
        first = False
        if left <= right and i < len(source):
            dim, i = source[i], i + 1
            left = left * dim if isinstance(dim, int) else -1
        elif j < len(target):
            dim, j = target[j], j + 1
            right = right * dim if isinstance(dim, int) else -1
        elif i < len(source):
            dim, i = source[i], i + 1
            left = left * dim if isinstance(dim, int) else -1
        else:
            return None
        if left < 1 or right < 1:
            return None
    return i, j


def _mirror(runs: list[Run], m: int, n: int) -> list[Run]:
    """Runs of two reversed shapes, as runs of the shapes themselves."""
    return [
        (range(m - a.stop, m - a.start), range(n - b.stop, n - b.start)) for a, b in reversed(runs)
    ]


def matching(source: Sequence[Dim], target: Sequence[Dim]) -> list[Run]:
    """Runs that cover both shapes; one of them may hold sizes that are not known.

    A Reshape keeps the order of the entries and their number, so runs of equal products at
    either end leave equal products in the middle, whatever the sizes there are.
    """
    left = _runs(source, target)
    i, j = (left[-1][0].stop, left[-1][1].stop) if left else (0, 0)
    m, n = len(source), len(target)
    right = _mirror(_runs(source[i:][::-1], target[j:][::-1]), m - i, n - j)
    right = [(range(a.start + i, a.stop + i), range(b.start + j, b.stop + j)) for a, b in right]
    end_i, end_j = (right[0][0].start, right[0][1].start) if right else (m, n)
    middle = [(range(i, end_i), range(j, end_j))] if i < end_i or j < end_j else []
    return [*left, *middle, *right]


def regroup(m: Map, source: Sequence[Dim], target: Sequence[Dim], op: Op) -> Map:
    """The map of a value of shape ``source`` once it has been reshaped to ``target``."""
    if 0 in source or 0 in target:
        raise MapRefusedError("an axis of size 0", op)
    runs = matching(source, target)

    def move(a: np.ndarray) -> np.ndarray:
        a = _uniform_axes(a)
        steps: list[int] = []
        full = list(a.shape)
        for one, other in runs:
            if all(a.shape[i] == 1 for i in one):
                steps += [1] * len(other)
                continue
            sizes = [source[i] for i in one], [target[j] for j in other]
            known = [d for side in sizes for d in side if isinstance(d, int)]
            if len(known) < len(one) + len(other):
                raise MapRefusedError("sizes that are not known mix with the channels", op)
            for i in one:
                full[i] = int(source[i])  # type: ignore[arg-type]
            if prod(known[: len(one)]) != prod(known[len(one) :]):
                raise MapRefusedError("its shapes do not agree", op)
            steps += known[len(one) :]
        return _uniform_axes(np.broadcast_to(a, full).reshape(steps))

    return m.each(move)


def _uniform_axes(a: np.ndarray) -> np.ndarray:
    return Map(a, a).compact().scale
