"""Which operators a map must not change: those of composites, whose constants are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bnpass.ir.graph import Constant, Graph, Op
from bnpass.passes.composites import Composite, find_composites
from bnpass.rules import MapRefusedError, Step


class Atoms:
    """The operators of composites, by name.

    Args:
        composites: the composites.
        fold_norms: gamma and beta of norms are none of them.
    """

    def __init__(self, composites: Sequence[Composite] = (), *, fold_norms: bool = False) -> None:
        self.composites = composites
        self._of: dict[str, Composite] = {}
        for one in composites:
            names = one.region - one.affine if fold_norms else one.region
            self._of.update(dict.fromkeys(names, one))
        self._open = False

    def __bool__(self) -> bool:
        return bool(self._of)

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def reason(self, op: Op) -> str:
        """Why an operator is left alone."""
        name = self._of[op.name].name
        return f"part of {'an' if name[0] in 'AEIORx' else 'a'} {name}"

    def quantised(self, op: Op) -> Composite | None:
        """The layer, quantised at run time, whose result an operator makes."""
        one = self._of.get(op.name)
        return one if one is not None and one.end is op and one.axis else None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let constants take maps in, as long as the context lasts, where the text may change."""
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def sparing(
        self, op: Op, steps: list[Step], constant: Callable[[str], Constant | None]
    ) -> list[Step]:
        """The steps that change no constant of a composite.

        Raises:
            MapRefusedError: there is none.
        """
        one = self._of.get(op.name)
        if one is None or (self._open and not one.is_fixed):
            return steps
        kept = [step for step in steps if not _changes(op, step, constant)]
        if steps and not kept:
            raise MapRefusedError(self.reason(op), op)
        return kept


def find_atoms(graph: Graph, *, fold_norms: bool = False) -> Atoms:
    """The composites of a graph as atoms."""
    return Atoms(find_composites(graph), fold_norms=fold_norms)


def _changes(op: Op, step: Step, constant: Callable[[str], Constant | None]) -> bool:
    """Whether a step has some constant of its operator take a map in."""
    maps = [step.input_map, step.output_map, *step.constants.values()]
    maps += [m for i, m in step.asks.items() if constant(op.inputs[i]) is not None]
    maps += [m for _, _, m in step.elsewhere]
    return any(m is not None and not m.is_identity for m in maps)
