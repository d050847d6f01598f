"""Parallel branches beside the convolutions that get a BatchNorm, each with one of its own.

They are linear in what the convolution reads, so :mod:`bnpass.passes.collapse` makes them one with
it again: a network trains with them and is deployed without.

- ``repvgg``: 1x1, and the identity where shapes allow it (arXiv:2101.03697, section 3.2).
- ``acnet``: the middle row and the middle column of the kernel (arXiv:1908.03930, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bnpass.ir.edits import Branch
from bnpass.ir.graph import Graph, Op
from bnpass.passes.sites import InsertPlan, Site


@dataclass(frozen=True)
class _Window:
    """A convolution's attributes, with the defaults written out."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int

    def middle(self, axes: tuple[int, ...]) -> _Window | None:
        """The same window with one entry, the middle one, along some axes; None: it has none.

        Smaller windows read the same places with less padding.
        """
        size, pads, n = list(self.size), list(self.pads), len(self.size)
        for axis in axes:
            if size[axis] % 2 == 0:
                return None
            margin = self.dilations[axis] * (size[axis] // 2)
            size[axis] = 1
            for place in (axis, axis + n):
                pads[place] -= margin
        if min(pads, default=0) < 0:
            return None
        return replace(self, size=tuple(size), pads=tuple(pads))

    @property
    def still(self) -> bool:
        """Whether every position reads that of the input alone."""
        return all(n == 1 for n in (*self.size, *self.strides)) and not any(self.pads)


def with_branches(plan: InsertPlan, graph: Graph, kind: str) -> InsertPlan:
    """The plan whose sites behind a convolution of a wider kernel get branches as well.

    Args:
        plan: where BatchNorms go.
        graph: the view.
        kind: ``repvgg`` or ``acnet``.
    """
    make = {"repvgg": _repvgg, "acnet": _acnet}[kind]
    sites = [replace(site, branches=_of(site, graph, make)) for site in plan.sites]
    count = sum(bool(site.branches) for site in sites)
    note = f"{count} of {len(sites)} BatchNorms stand behind a convolution that gets branches"
    return replace(plan, sites=sites, notes=[*plan.notes, note])


def _of(
    site: Site, graph: Graph, make: Callable[[_Window], list[_Window | None]]
) -> tuple[Branch, ...]:
    """The branches of one site; none where no convolution of its own stands right in front."""
    op = graph.producer(site.value)
    if op is None or op.kind != "Conv" or site.readers is not None or site.axis != 1:
        return ()
    weight = graph.constant(op.input(1))
    if weight is None or len(graph.uses(op.inputs[1])) > 1:
        return ()
    window = _window(op, weight.shape)
    if window is None:
        return ()
    out, inputs = weight.shape[0], weight.shape[1] * window.group
    found = [_branch(part, op, site, out, inputs) for part in make(window) if part is not None]
    point = window.middle(tuple(range(len(window.size))))
    if make is _repvgg and point is not None and point.still and out == inputs:
        found.append(Branch(f"{site.name}_identity", op.inputs[0], None, {}))
    return tuple(found)


def _window(op: Op, shape: tuple[int, ...]) -> _Window | None:
    n = len(shape) - 2
    pads = op.attrs.get("pads", [0] * 2 * n)
    if pads is None or all(k == 1 for k in shape[2:]):
        return None
    ones = [1] * n
    return _Window(
        shape[2:], tuple(op.attrs.get("strides", ones)), tuple(pads),
        tuple(op.attrs.get("dilations", ones)), op.attrs.get("group", 1),
    )  # fmt: skip


def _repvgg(window: _Window) -> list[_Window | None]:
    return [window.middle(tuple(range(len(window.size))))]


def _acnet(window: _Window) -> list[_Window | None]:
    wide = [axis for axis, k in enumerate(window.size) if k > 1]
    if len(wide) < 2:
        return []
    return [window.middle((axis,)) for axis in wide]


def _branch(part: _Window, op: Op, site: Site, out: int, inputs: int) -> Branch:
    size = "x".join(map(str, part.size))
    attrs = {
        "kernel_shape": list(part.size), "strides": list(part.strides), "pads": list(part.pads),
        "dilations": list(part.dilations), "group": part.group,
    }  # fmt: skip
    shape = (out, inputs // part.group, *part.size)
    return Branch(f"{site.name}_{size}", op.inputs[0], shape, attrs)


def drawn(branch: Branch, seed: int) -> np.ndarray:
    """W (out, in/group, ...) of a branch, float64: uniform within 1/sqrt(fan in), as in torch."""
    assert branch.shape is not None
    rng = np.random.default_rng([seed, *branch.name.encode()])
    bound = float(np.prod(branch.shape[1:])) ** -0.5
    return rng.uniform(-bound, bound, branch.shape)
