"""How bnpass starts: three ways that are one command, and nothing heavy on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "onnxruntime", "matplotlib", "PIL", "onnxscript", "tensorboard", "pandas"}
WAYS = {
    "cli.py": [str(ROOT / "cli.py")],
    "-m bnpass": ["-m", "bnpass"],
    "entry point": ["-c", "from bnpass.cli import script; script()"],
}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run this interpreter on this source tree, from another folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "100"}
    return processes.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def imported(code: str, cwd: Path) -> set[str]:
    """Which top-level modules are loaded after running ``code``."""
    tail = "\nimport sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    done = python("-c", code + tail, cwd=cwd)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return set(line.split())


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["fold", "--help"]], ids=" ".join)
def test_three_ways_are_one_command(arguments: list[str], tmp_path: Path) -> None:
    results = [python(*way, *arguments, cwd=tmp_path) for way in WAYS.values()]
    assert [r.returncode for r in results] == [0, 0, 0]
    assert results[0].stdout
    assert results[0].stdout == results[1].stdout == results[2].stdout


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_gives_the_exit_code(way: list[str], tmp_path: Path) -> None:
    done = python(*way, "fold", "missing.onnx", "-o", "x.onnx", cwd=tmp_path)
    assert done.returncode == 2
    error, hint = done.stderr.strip().splitlines()
    assert error.startswith("error: ")
    assert "missing.onnx" in error
    assert hint.startswith("hint: ")


@pytest.mark.parametrize("code", ["import bnpass", "import bnpass; dir(bnpass)"])
def test_import_is_light(code: str, tmp_path: Path) -> None:
    assert not imported(code, tmp_path) & (HEAVY | {"onnx", "networkx", "numpy", "rich"})


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]], ids=" ".join)
def test_help_is_light(arguments: list[str], tmp_path: Path) -> None:
    code = f"from bnpass.cli import main; main({arguments!r})"
    assert not imported(code, tmp_path) & (HEAVY | {"onnx", "networkx"})


def test_inserting_and_folding_onnx_never_imports_torch(tmp_path: Path) -> None:
    model = str(ROOT / "models" / "lenet.onnx")
    code = (
        "from bnpass.cli import main\n"
        f"assert main(['insert', {model!r}, '-o', 'bn.onnx']) == 0\n"
        "assert main(['fold', 'bn.onnx', '-o', 'folded.onnx']) == 0\n"
    )
    assert "torch" not in imported(code, tmp_path)
    assert (tmp_path / "folded.onnx").is_file()


def without(missing: set[str], *arguments: str) -> str:
    """Code that runs one bnpass command where ``missing`` packages cannot be imported."""
    return (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(missing)!r}))  # None: importing it fails\n"
        "from bnpass.cli import main\n"
        f"sys.exit(main({list(arguments)!r}))"
    )


def test_inserting_and_folding_work_with_the_core_alone(tmp_path: Path) -> None:
    model = str(ROOT / "models" / "lenet.onnx")
    steps = [
        ("insert", model, "-o", "bn.onnx"),
        ("fold", "bn.onnx", "-o", "folded.onnx", "--no-verify"),
    ]
    for step in steps:
        done = python("-c", without(HEAVY, *step), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "folded.onnx").is_file()


def test_fold_that_cannot_verify_writes_nothing(tmp_path: Path) -> None:
    model = str(ROOT / "models" / "lenet.onnx")
    assert python("-m", "bnpass", "insert", model, "-o", "bn.onnx", cwd=tmp_path).returncode == 0
    done = python("-c", without(HEAVY, "fold", "bn.onnx", "-o", "f.onnx"), cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "pip install" in done.stderr
    assert "--no-verify" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bn.onnx"]


def test_a_missing_package_is_exit_3_with_the_pip_command(tmp_path: Path) -> None:
    model, data = str(ROOT / "models" / "lenet.onnx"), str(ROOT / "models" / "data")
    code = without({"torch"}, "train", model, "--data", data, "-o", "x.onnx", "--steps", "1")
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "torch" in done.stderr
    assert "pip install" in done.stderr
    assert not (tmp_path / "x.onnx").exists()
