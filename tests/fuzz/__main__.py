"""``python -m tests.fuzz [N] [FIRST]``: N random graphs from seed FIRST on."""

from __future__ import annotations

import sys
import time
import traceback

from tests.fuzz.properties import Counts, check_fold


def main(arguments: list[str]) -> int:
    """Fold N graphs; 1 when some property fails."""
    count, first = (int(a) for a in [*arguments, *("2000", "100000")[len(arguments) :]][:2])
    begin, failures = time.perf_counter(), 0
    found: list[Counts] = []
    for seed in range(first, first + count):
        try:
            found.append(check_fold(seed))
        except Exception:  # noqa: BLE001 - whatever it is, it is printed and counted
            failures += 1
            print(f"seed {seed}:\n{traceback.format_exc(limit=-3)}")
    before, after = sum(c.before for c in found), sum(c.after for c in found)
    seconds = time.perf_counter() - begin
    print(f"{count} graphs, {failures} failures, {seconds:.0f} s")
    print(f"fold: {before} BatchNormalizations before, {after} after")
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
