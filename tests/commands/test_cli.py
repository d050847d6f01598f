"""What all commands share: start, help, errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bnpass as package
from bnpass import cli
from bnpass.commands import COMMANDS
from tests import processes
from tests.commands.helpers import Run

ROOT = Path(package.__file__).parents[1]
HEAVY = ("numpy", "onnx", "torch", "onnxruntime", "networkx", "rich", "matplotlib")


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # output is buffered where people run it
    return processes.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment,
        check=False, timeout=120, **options,
    )


SPELLINGS = {
    "script": [str(ROOT / "cli.py")],
    "module": ["-m", "bnpass"],
    "entry point": ["-c", "from bnpass.cli import script; script()"],
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_the_three_spellings_are_one_command(spelling: list[str], tmp_path: Path) -> None:
    shown = python(*spelling, "verify", "a.onnx", "b.onnx", cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.splitlines()[0] == "error: no such file: a.onnx"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    code = (
        "import sys; from bnpass.cli import main; code = main(sys.argv[1:]);"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    shown = python("-c", code, option)
    assert shown.returncode == 0
    assert shown.stderr.strip() == "[]"
    assert shown.stdout


def test_the_version_is_the_packages(bnpass: Run) -> None:
    assert bnpass("--version").out == f"bnpass {package.__version__}\n"


def test_help_names_every_command_and_the_exit_codes(bnpass: Run) -> None:
    shown = bnpass("--help").out
    for name in COMMANDS:
        assert f"    {name}" in shown
    assert "130  interrupted" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(bnpass: Run, name: str) -> None:
    shown = bnpass(name, "--help")
    assert shown.code == 0
    assert f"usage: bnpass {name}" in shown.out
    what = (import_module(f"bnpass.commands.{name}").__doc__ or "?").splitlines()[0]
    assert what in " ".join(shown.out.split())


def test_without_a_command_help_goes_to_stderr(bnpass: Run) -> None:
    result = bnpass()
    assert result.code == 2
    assert "usage: bnpass" in result.err


def test_misspelt_names_get_close_matches(bnpass: Run) -> None:
    bnpass("verfy").assert_refused(2, "unknown command 'verfy'", "did you mean 'verify'?")
    bnpass("verify", "a", "b", "--provder", "cpu").assert_refused(
        2, "unknown option '--provder'", "'--provider'")
    bnpass("verify", "a", "b", "--provider", "cudda").assert_refused(2, "cudda", "'cuda'")


def test_options_are_not_abbreviated(bnpass: Run) -> None:
    bnpass("verify", "a", "b", "--prov", "cpu").assert_refused(2, "unknown option '--prov'")


@pytest.mark.parametrize("value", ["-1", "x", "1.5"])
def test_numbers_are_checked(bnpass: Run, value: str) -> None:
    bnpass("verify", "a", "b", f"--seed={value}").assert_refused(2, "whole number of 0 or more")


def test_an_error_is_a_json_object_too(bnpass: Run) -> None:
    result = bnpass("verify", "nowhere.onnx", "b.onnx", "--json")
    assert result.code == 2
    assert result.document["ok"] is False
    assert result.document["exit_code"] == 2
    assert result.document["error"]["message"] == "no such file: nowhere.onnx"
    assert len(result.errors) == 2


def test_debug_adds_the_traceback(bnpass: Run) -> None:
    result = bnpass("verify", "nowhere.onnx", "b.onnx", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
    assert len(result.errors) == 2


@pytest.mark.parametrize(
    ("raised", "code", "error"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("a\nb"), 2, "internal error: ZeroDivisionError: a b"),
        (MemoryError(), 3, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 3, "out of memory"),
        (ImportError("cannot allocate memory in static TLS block"), 3, "out of memory"),
    ],
)
def test_whatever_happens_is_one_line_and_an_exit_code(
    bnpass: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, error: str
) -> None:
    def fail(*arguments: object) -> int:
        raise raised

    monkeypatch.setattr("bnpass.commands.verify.run", fail)
    result = bnpass("verify", "a", "b")
    assert result.code == code
    assert result.errors[0] == f"error: {error}"
    assert "Traceback" not in result.err


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "import os, sys\n"
        "from bnpass.cli import main\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "sys.exit(main(['--help']))"
    )
    shown = python("-c", code)
    assert shown.returncode == 0
    said = [line for line in shown.stderr.splitlines() if not line.startswith("verifying")]
    assert said == []  # on a loaded machine it says what takes so long


def test_the_log_is_shown_on_stderr_only_while_a_command_runs(
    bnpass: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    def talk(args: object, ui: object) -> int:
        logging.getLogger("bnpass.test").info("hello")
        logging.getLogger("bnpass.test").warning("careful")
        logging.getLogger("bnpass.test").debug("details")
        return 0

    monkeypatch.setattr("bnpass.commands.verify.run", talk)
    result = bnpass("verify", "a", "b", "--json")
    assert result.err == "hello\nwarning: careful\n"
    assert json.loads(result.out)["warnings"] == ["careful"]
    assert "details" in bnpass("verify", "a", "b", "-v").err
    assert bnpass("verify", "a", "b", "-q").err == "warning: careful\n"
    assert not logging.getLogger("bnpass").handlers


def test_build_parser_adds_options_to_the_chosen_command_alone() -> None:
    parser = cli.build_parser(["verify"])
    assert "--provider" not in parser.format_help()


def test_a_reader_that_leaves_a_table_is_no_error(plain: Path) -> None:
    code = (
        "import os, sys\n"
        "from bnpass.cli import main\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        f"sys.exit(main(['verify', {str(plain)!r}, {str(plain)!r}]))"
    )
    shown = python("-c", code)
    assert shown.returncode == 0
    said = [line for line in shown.stderr.splitlines() if not line.startswith("verifying")]
    assert said == []  # on a loaded machine it says what takes so long


@pytest.mark.parametrize(
    ("module", "code", "hint"),
    [("tensorboard", 3, "pip install tensorboard"), ("PIL.Image", 3, "pip install pillow"),
     ("torch.nn", 3, "pip install torch"), ("no_such_thing", 2, "a bug in bnpass")],
)  # fmt: skip
def test_a_package_that_is_not_installed_is_exit_3_in_any_command(
    bnpass: Run, plain: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: int, hint: str
) -> None:
    import importlib

    from bnpass.commands import inspect

    def needs_it(*_: object) -> int:
        importlib.import_module(module)
        return 0

    monkeypatch.setattr(inspect, "run", needs_it)
    for name in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, name, None)
    bnpass("inspect", plain).assert_refused(code, "", hint)
