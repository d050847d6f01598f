"""What --help shows: a screen that begins with examples, and the examples run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bnpass.cli import build_parser, main
from bnpass.commands import COMMANDS
from tests.commands.helpers import Run
from tests.documents import ROOT


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_begins_with_examples(bnpass: Run, name: str) -> None:
    text = bnpass(name, "--help").out
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 88
    assert all(line.startswith("  bnpass ") for line in lines[:2])
    assert "--json" in text or name == "completion"
    assert bnpass("help", name).out == text


@pytest.mark.parametrize("name", COMMANDS)
def test_all_options_are_in_the_long_help(bnpass: Run, name: str) -> None:
    text = bnpass(name, "--help-all").out
    parser = build_parser([name]).child(name)
    options = {o for a in parser._actions for o in a.option_strings}
    assert parser.common <= options, "common options that do not exist"
    assert not [option for option in options if option not in text]


def test_help_of_an_unknown_command(bnpass: Run) -> None:
    bnpass("help", "fodl").assert_refused(2, "unknown command 'fodl'", "fold")


def test_version(bnpass: Run) -> None:
    assert bnpass("-V").out == bnpass("--version").out != ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(bnpass: Run, shell: str) -> None:
    text = bnpass("completion", shell).out
    assert "fold" in text and ("--sidecar" in text or "-l sidecar" in text)


ORDER = ("inspect", "insert", "strip", "train", "calibrate", "fold", "unfold", "verify", "collapse",
         "draw", "env", "completion", "bench", "repair", "run")  # fmt: skip


def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    assert set(ORDER) == set(COMMANDS)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    (tmp_path / "out").mkdir()
    for name in ORDER:
        for line in build_parser([name]).child(name).examples:
            assert main(line.split()[1:]) == 0, line
