"""constraints.txt: usable anywhere, and inside the bounds that pyproject.toml states."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = {name.lower(): version for name, _, version in (line.partition("==") for line in LINES)}


def stated() -> list[Requirement]:
    """Every requirement of pyproject.toml: core, extras and the development group."""
    project = PROJECT["project"]
    extras = [need for needs in project["optional-dependencies"].values() for need in needs]
    groups = [need for needs in PROJECT["dependency-groups"].values() for need in needs]
    return [Requirement(need) for need in (*project["dependencies"], *extras, *groups)]


@pytest.mark.parametrize("line", LINES)
def test_a_pin_is_a_name_and_a_public_version(line: str) -> None:
    name, _, version = line.partition("==")
    assert name.replace("-", "").replace("_", "").isalnum()
    assert Version(version).public == version, "a local version exists on one index only"


@pytest.mark.parametrize("need", stated(), ids=lambda need: need.name)
def test_every_requirement_has_a_pin_within_its_bounds(need: Requirement) -> None:
    assert need.specifier.contains(PINS[need.name.lower()])


def test_no_cuda_package_is_pinned() -> None:
    assert not [name for name in PINS if name.startswith(("nvidia", "cuda", "triton"))]


def test_only_one_flavour_of_onnxruntime_is_asked_for_at_a_time() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    flavours = {
        name: [need for need in needs if need.startswith("onnxruntime")]
        for name, needs in extras.items()
    }
    assert {name: len(found) for name, found in flavours.items() if found} == {"gpu": 1, "cpu": 1}
