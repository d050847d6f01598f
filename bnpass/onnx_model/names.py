"""Names that are free in a model."""

from __future__ import annotations

import onnx

from bnpass.onnx_model.scopes import graphs


class Names:
    """Makes names that nothing in a model has.

    Args:
        model: its names are read here: nodes that are made later take theirs from :meth:`fresh`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken = all_names(model)
        self._last: dict[str, int] = {}  # by base: the number that was given last

    def fresh(self, base: str) -> str:
        """A name that nothing has yet, ``base`` if it is free; it is taken from now on."""
        n = self._last.get(base, 0) + 1
        while (name := base if n == 1 else f"{base}_{n}") in self._taken:
            n += 1
        self._last[base] = n
        self._taken.add(name)
        return name


def all_names(model: onnx.ModelProto) -> set[str]:
    """The names of all values and nodes of a model, those of bodies too."""
    names: set[str] = set()
    for graph in graphs(model.graph):
        names.update(t.name for t in graph.initializer)
        names.update(t.values.name for t in graph.sparse_initializer)
        names.update(i.name for i in (*graph.input, *graph.output, *graph.value_info))
        for node in graph.node:
            names.update(node.output)
            names.add(node.name)
    return names
