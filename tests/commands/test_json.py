"""docs/json.md is the schema of what the commands print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bnpass.commands import COMMANDS
from tests.commands.helpers import Run, add_norm, mlp, write
from tests.documents import ROOT

Row = tuple[str, str, str]
"""(field, type, when it is there)."""

CHECKS = {
    "text": lambda v: isinstance(v, str),
    "whole": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "list": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
}


def schemas() -> dict[str, list[Row]]:
    """The tables of the page by heading."""
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    found = {}
    for part in text.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        found[heading] = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", body, re.MULTILINE)
    return found


def fits(value: Any, kinds: str) -> bool:
    return any(CHECKS[kind](value) for kind in kinds.strip().split(" or "))


def check(document: dict[str, Any], name: str) -> None:
    """Every field is described and has its type, and those that are always there are."""
    tables = schemas()
    rows = {field: (kinds, there.strip()) for field, kinds, there in
            (*tables["every command"], *tables[name])}  # fmt: skip
    assert document["command"] == name
    assert not set(document) - set(rows), "not described"
    if "error" not in document:
        missing = [f for f, (_, there) in rows.items() if there == "always" and f not in document]
        assert not missing
    wrong = {f: v for f, v in document.items() if not fits(v, rows[f][0])}
    assert not wrong


def test_every_command_that_prints_json_is_described() -> None:
    tables = schemas()
    assert set(tables) - {"every command"} == set(COMMANDS) - {"completion"}
    assert all(rows for rows in tables.values())
    known = {kind for rows in tables.values() for _, kinds, _ in rows
             for kind in kinds.strip().split(" or ")}  # fmt: skip
    assert known == set(CHECKS)


def test_commands_on_files(bnpass: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, normed = write(mlp(), tmp_path / "a.onnx"), write(add_norm(mlp()), tmp_path / "b.onnx")
    to = tmp_path.joinpath
    commands = [
        ("inspect", normed),
        ("insert", model, "-o", to("in.onnx"), "--init", "preserve"),
        ("strip", model, "--dry-run"),
        ("strip", model, "-o", to("st.onnx")),
        ("collapse", normed, "-o", to("co.onnx"), "--norms-only"),
        ("fold", normed, "-o", to("f.onnx"), "--sidecar", to("side"), "--report", to("r.html")),
        ("fold", normed, "-o", to("h.onnx"), "--to", "fp16"),
        ("fold", normed, "--check"),
        ("fold", model, "-o", to("same.onnx")),
        ("unfold", to("f.onnx"), to("side"), "-o", to("u.onnx")),
        ("verify", normed, to("f.onnx"), "--determinism", "--edits"),
        ("bench", normed, to("f.onnx"), "--runs", "5", "--batches", "1", "--warmup", "0"),
        ("draw", normed, to("f.onnx"), "-o", to("d.svg")),
        ("env",),
        ("fold", to("missing.onnx"), "-o", to("x.onnx")),
    ]  # fmt: skip
    for name, *rest in commands:
        check(bnpass(name, *rest, "--json").document, name)
    lines = bnpass("fold", model, normed, "-o", to("many"), "--json").out.splitlines()
    for line in lines:
        check(json.loads(line), "fold")


@pytest.mark.usefixtures("one_thread")
def test_commands_on_data(bnpass: Run, plain: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    to, short = tmp_path.joinpath, ("--data", data, "--steps", "4", "--lr", "0.1")
    commands = [
        ("insert", plain, "-o", to("in.onnx")),
        ("train", to("in.onnx"), *short, "-o", to("t.onnx")),
        ("calibrate", to("t.onnx"), "--data", data, "-o", to("c.onnx")),
        ("repair", plain, plain, "--data", data, "-o", to("rep.onnx")),
        ("run", plain, *short, "-o", to("run")),
    ]
    for name, *rest in commands:
        check(bnpass(name, *rest, "--json").document, name)
