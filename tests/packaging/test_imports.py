"""The modules of the package import each other in one direction."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[2]


def modules() -> dict[str, Path]:
    """Every module of bnpass by name."""
    found = {}
    for path in sorted((ROOT / "bnpass").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports, inside of functions too; what only type checkers see is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


def graph() -> nx.DiGraph:
    """Who imports whom."""
    known = modules()
    edges = nx.DiGraph()
    for name, path in known.items():
        for other in imported(ast.parse(path.read_text(encoding="utf-8"))):
            found = other
            while found and found not in known:
                found = found.rpartition(".")[0]
            if found and found != name:
                edges.add_edge(name, found)
    return edges


def test_there_is_no_circle_of_imports() -> None:
    circles = [sorted(c) for c in nx.strongly_connected_components(graph()) if len(c) > 1]
    assert not circles


def test_rules_and_passes_know_no_frontend() -> None:
    edges = graph()
    inner = [m for m in edges if m.startswith(("bnpass.ir", "bnpass.rules", "bnpass.passes"))]
    outer = ("bnpass.onnx_model", "bnpass.frontends", "bnpass.importer", "bnpass.runtime")
    wrong = [(m, o) for m in inner for o in nx.descendants(edges, m) if o.startswith(outer)]
    assert inner
    assert not wrong


def test_no_class_name_is_used_twice() -> None:
    """A name means one thing in the whole package."""
    names = Counter(
        node.name
        for path in modules().values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in names.items() if count > 1]
