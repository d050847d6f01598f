"""Every package of an installation with the hash of its file: ``python -m tests.packaging.hashes``.

What ``pip install --require-hashes -r FILE`` takes, for the platform and the index at hand: a wheel
of another platform, or a build of torch from another index, is another file. So the list is made
where it is used (a CI's image) and kept there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import PIPE

from tests import processes

ROOT = Path(__file__).parents[2]


def hashed(report: dict[str, list[dict[str, dict[str, dict[str, dict[str, str]]]]]]) -> list[str]:
    """A line a package, of pip's installation report.

    Raises:
        KeyError: a package comes from no archive, so it has no hash.
    """
    lines = []
    for one in report["install"]:
        about = one["metadata"]
        if str(about["name"]) != "bnpass":
            digest = one["download_info"]["archive_info"]["hashes"]["sha256"]
            lines.append(f"{about['name']}=={about['version']} --hash=sha256:{digest}")
    return sorted(lines, key=str.lower)


def main(extras: list[str]) -> int:
    """Ask pip what it would install, and print that."""
    wanted = f".[{','.join(extras or ['torch', 'cpu'])}]"
    done = processes.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
         "--report", "-", "-c", "constraints.txt", wanted],
        cwd=ROOT, check=True, stdout=PIPE)
    sys.stdout.write("\n".join(hashed(json.loads(done.stdout))) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
