"""A network as a drawing: Graphviz (DOT) or Mermaid text, and SVG or PNG where ``dot`` is there.

BatchNorms are coloured, dashed where a fold would take them away; nonlinearities are rounded.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from bnpass.errors import MissingDependencyError, UsageError
from bnpass.files import atomic_write
from bnpass.ir.graph import Graph, Op

FORMATS = (".dot", ".mmd", ".svg", ".png", ".pdf")
"""File name endings that :func:`draw` knows."""

_NORM, _ACTIVE, _OTHER = "norm", "active", "plain"
_FILL = {_NORM: "#f4a261", _ACTIVE: "#a8dadc", _OTHER: "#f1f1f1"}


@dataclass(frozen=True)
class Marks:
    """What is told apart in a drawing, by operator name.

    Attributes:
        folding: BatchNorms and other maps that a fold would take away; dashed.
        nonlinearities: rounded and coloured.
    """

    folding: Collection[str] = ()
    nonlinearities: Collection[str] = ()

    def style(self, op: Op) -> str:
        """The colour class of an operator."""
        if op.kind == "BatchNormalization":
            return _NORM
        return _ACTIVE if op.name in self.nonlinearities else _OTHER


def draw(graph: Graph, path: Path, marks: Marks, *, force: bool = True) -> Path:
    """Write a drawing in the format that the file's name ends in.

    Args:
        graph: what to draw.
        path: ends in one of :data:`FORMATS`.
        marks: what to tell apart.
        force: replace an existing file.

    Raises:
        UsageError: another ending.
        MissingDependencyError: Graphviz is not installed and the format needs it.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise UsageError(f"cannot draw to {path.name!r}", f"end it in {', '.join(FORMATS)}")
    if ending == ".mmd":
        return atomic_write(path, mermaid(graph, marks), force=force)
    text = dot(graph, marks)
    content = text if ending == ".dot" else _rendered(text, ending[1:])
    return atomic_write(path, content, force=force)


def _rendered(text: str, kind: str) -> bytes:
    program = which("dot")
    if program is None:
        raise MissingDependencyError(f"{kind} drawings need Graphviz", "apt-get install graphviz "
                                     "(or brew, conda); .dot and .mmd need nothing")
    done = subprocess.run([program, f"-T{kind}"], input=text.encode(),  # noqa: S603
                          capture_output=True, check=True)
    return done.stdout


def dot(graph: Graph, marks: Marks) -> str:
    """The network in Graphviz's language."""
    lines = ["digraph network {", '  rankdir=TB; node [shape=box, style=filled, fontsize=10];']
    for key, op in _keys(graph).items():
        look = f'fillcolor="{_FILL[marks.style(op)]}"'
        kinds = [word for word, yes in (("filled", True), ("dashed", op.name in marks.folding),
                                        ("rounded", op.name in marks.nonlinearities)) if yes]
        lines.append(f'  {key} [label={_quoted(op.kind, op.name)}, {look}, '
                     f'style="{",".join(kinds)}"];')
    for index, name in enumerate(graph.inputs):
        lines.append(f"  in{index} [label={_quoted(name)}, shape=ellipse];")
    for index, name in enumerate(graph.outputs):
        lines.append(f"  out{index} [label={_quoted(name)}, shape=ellipse];")
    lines += [f"  {a} -> {b} [label={_quoted(text)}, fontsize=8];" if text else f"  {a} -> {b};"
              for a, b, text in _edges(graph)]
    return "\n".join([*lines, "}", ""])


def _quoted(*words: str) -> str:
    safe = (word.replace("\\", "\\\\").replace('"', '\\"') for word in words)
    return '"' + "\\n".join(safe) + '"'


def mermaid(graph: Graph, marks: Marks) -> str:
    """The network in Mermaid's language, which Markdown viewers draw."""
    lines = ["flowchart TB"]
    for key, op in _keys(graph).items():
        open_, close = ("([", "])") if op.name in marks.nonlinearities else ("[", "]")
        lines.append(f'  {key}{open_}"{op.kind}<br/>{_escaped(op.name)}"{close}:::'
                     f"{marks.style(op)}")
        if op.name in marks.folding:
            lines.append(f"  style {key} stroke-dasharray: 4 4")
    for index, name in enumerate(graph.inputs):
        lines.append(f'  in{index}(("{_escaped(name)}"))')
    for index, name in enumerate(graph.outputs):
        lines.append(f'  out{index}(("{_escaped(name)}"))')
    lines += [f'  {a} -->|"{text}"| {b}' if text else f"  {a} --> {b}"
              for a, b, text in _edges(graph)]
    lines += [f"  classDef {style} fill:{colour}" for style, colour in _FILL.items()]
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _keys(graph: Graph) -> dict[str, Op]:
    return {f"n{index}": op for index, op in enumerate(graph.ops.values())}


def _edges(graph: Graph) -> Iterator[tuple[str, str, str]]:
    """(from, to, shape) of every value that somebody reads."""
    keys = {op.name: key for key, op in _keys(graph).items()}
    sources = {name: f"in{index}" for index, name in enumerate(graph.inputs)}
    for op in graph.ops.values():
        sources.update({name: keys[op.name] for name in op.outputs if name})
    for value, source in sources.items():
        for use in graph.uses(value):
            yield source, keys[use.op.name], _shape(graph, value)
    for index, name in enumerate(graph.outputs):
        if name in sources:
            yield sources[name], f"out{index}", _shape(graph, name)


def _shape(graph: Graph, value: str) -> str:
    shape = graph.shape(value)
    return "" if shape is None else " x ".join("?" if d is None else str(d) for d in shape)
