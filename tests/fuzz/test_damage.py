"""A few damaged files; ``make fuzz`` runs thousands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import processes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and limits of memory")
def test_damaged_files_are_done_right_or_refused_clearly() -> None:
    done = processes.run([sys.executable, "-m", "tests.fuzz.damage", "60", "7"],
                         cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
