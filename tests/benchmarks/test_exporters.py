"""The benchmark of other tools' exporters: it installs nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests import processes

ROOT = Path(__file__).resolve().parents[2]


def test_no_exporter_may_install_packages() -> None:
    """Paddle2ONNX's helper would: whatever the caller's environment says, it is told not to."""
    words = "import os, benchmarks.exporters; print(os.environ['POLYGRAPHY_AUTOINSTALL_DEPS'])"
    given = {**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "1"}
    done = processes.run(
        [sys.executable, "-c", words], cwd=ROOT, env=given, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["0"]
