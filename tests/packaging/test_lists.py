"""The lists that CI is given: lowest versions, licences, hashes."""

from __future__ import annotations

from importlib import metadata

import pytest

from tests.packaging.hashes import hashed
from tests.packaging.licences import licence, main, needed
from tests.packaging.lowest import lowest


def test_lowest_versions() -> None:
    assert lowest(["b>=0.5.3,<2", "a>=1.26", "c"]) == ["a==1.26.*", "b==0.5.3.*"]


def test_every_package_below_has_a_licence(capsys: pytest.CaptureFixture[str]) -> None:
    found = needed("bnpass", ("torch",))
    assert {"numpy", "onnx", "torch", "sympy"} <= found.keys()
    assert "onnxruntime" not in found
    assert licence(metadata.distribution("numpy")).startswith("BSD-3-Clause")
    assert main() == 0, capsys.readouterr().err


def test_hashes_of_pips_report() -> None:
    archive = {"archive_info": {"hashes": {"sha256": "ab12"}}}
    report = {"install": [
        {"metadata": {"name": "bnpass", "version": "1"}, "download_info": {"dir_info": {}}},
        {"metadata": {"name": "rich", "version": "15.0.0"}, "download_info": archive}]}
    assert hashed(report) == ["rich==15.0.0 --hash=sha256:ab12"]
