"""What bnpass stands on, with versions and licences: ``python -m tests.packaging.licences``.

From what is installed alone, without the network: every package that bnpass and its extras ask for,
directly or through another. Vulnerabilities are found by comparing these versions with a database
(``pip-audit``), which is not offline.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

ALLOWED = ("Apache", "BSD", "MIT", "ISC", "PSF", "Python Software Foundation", "HPND", "MPL",
           "Unlicense", "Zlib", "CC0", "NVIDIA Proprietary", "LicenseRef-NVIDIA")
"""Licences under which a package may be asked for; NVIDIA's are those of CUDA below torch."""


def needed(root: str, extras: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """The installed packages that ``root`` needs, by their normal names."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(root, extras)]
    while waiting:
        name, wanted = waiting.pop()
        for need in _requirements(name, wanted):
            key = re.sub(r"[-_.]+", "-", need.name).lower()
            try:
                there = metadata.distribution(need.name)
            except metadata.PackageNotFoundError:
                continue
            if key not in found:
                found[key] = there
                waiting.append((need.name, tuple(need.extras)))
    return dict(sorted(found.items()))


def _requirements(name: str, extras: tuple[str, ...]) -> Iterator[Requirement]:
    for text in metadata.requires(name) or []:
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield need


def licence(package: metadata.Distribution) -> str:
    """What a package says of its licence, in a few words."""
    about = package.metadata
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    named = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or []
             if c.startswith("License ::") and not c.endswith("OSI Approved")]
    lines = str(about.get("License") or "").strip().splitlines()
    return ", ".join(named) or (lines[0][:60] if lines else "not stated")


def main() -> int:
    """Print the table; 1 where a licence is none of those that are allowed."""
    extras = ("torch", "gpu", "cpu", "plot", "images", "tensorboard")
    odd = []
    print("| package | version | licence |\n|---|---|---|")
    for name, package in needed("bnpass", extras).items():
        said = licence(package)
        print(f"| {name} | {package.version} | {said} |")
        if not any(word in said for word in ALLOWED):
            odd.append(f"{name}: {said}")
    for line in odd:
        print(f"error: not allowed: {line}", file=sys.stderr)
    return int(bool(odd))


if __name__ == "__main__":
    raise SystemExit(main())
