"""What people install: only the package, with honest metadata."""

from __future__ import annotations

import email
import sys
import zipfile
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The built wheel; without build isolation, so without the network."""
    pytest.importorskip("build", reason="the dev dependency 'build' is not installed")
    pytest.importorskip("hatchling", reason="the dev dependency 'hatchling' is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    done = processes.run(
        [*command, "--outdir", str(folder), str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_wheel_holds_only_the_package(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert len(top) == 2
    assert "bnpass" in top
    assert any(name.endswith(".dist-info") for name in top)


def test_wheel_holds_the_whole_package(wheel: zipfile.ZipFile) -> None:
    source = {p.relative_to(ROOT).as_posix() for p in (ROOT / "bnpass").rglob("*.py")}
    assert source <= set(wheel.namelist())
    assert "bnpass/py.typed" in wheel.namelist()
    assert not [n for n in wheel.namelist() if n.endswith((".pyc", ".onnx", ".npz", ".gz"))]


def test_core_needs_neither_torch_nor_onnxruntime(wheel: zipfile.ZipFile) -> None:
    needs = metadata(wheel).get_all("Requires-Dist") or []
    core = {need.split(">")[0] for need in needs if "extra ==" not in need}
    assert core == {"numpy", "onnx", "networkx", "rich"}


def test_wheel_names_its_licence_python_and_command(wheel: zipfile.ZipFile) -> None:
    meta = metadata(wheel)
    assert meta["Requires-Python"] == ">=3.11"
    assert meta["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())
    (entry,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    assert "bnpass = bnpass.cli:script" in wheel.read(entry).decode()
