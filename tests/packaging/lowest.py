"""The lowest versions, as constraints of pip: ``python -m tests.packaging.lowest``.

``make test-lowest`` runs the tests with these.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def lowest(needs: list[str]) -> list[str]:
    """``name==VERSION.*`` for every ``name>=VERSION``."""
    found = []
    for need in map(Requirement, needs):
        bounds = [spec.version for spec in need.specifier if spec.operator == ">="]
        found += [f"{need.name}=={bound}.*" for bound in bounds]
    return sorted(found)


def main() -> int:
    """Print the constraints of the core and of all extras."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    needs = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        needs += extra
    sys.stdout.write("\n".join(lowest(needs)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
