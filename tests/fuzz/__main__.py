"""``python -m tests.fuzz [N] [FIRST]``: N random graphs from seed FIRST on."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable

from tests.fuzz.properties import Counts, check_fold, check_insert


def main(arguments: list[str]) -> int:
    """Fold N graphs and insert into N graphs; 1 when some property fails."""
    count, first = (int(a) for a in [*arguments, *("2000", "100000")[len(arguments) :]][:2])
    begin = time.perf_counter()
    found: list[Counts] = []
    inserted: list[int] = []
    failures = 0
    for seed in range(first, first + count):
        failures += _failed(seed, lambda seed: found.append(check_fold(seed)))
        failures += _failed(seed, lambda seed: inserted.append(check_insert(seed)))
    before, after = sum(c.before for c in found), sum(c.after for c in found)
    seconds = time.perf_counter() - begin
    print(f"{count} graphs, {failures} failures, {seconds:.0f} s")
    print(f"fold: {before} BatchNormalizations before, {after} after")
    print(f"insert: {sum(inserted)} BatchNormalizations inserted, all folded back")
    return int(failures > 0)


def _failed(seed: int, check: Callable[[int], None]) -> bool:
    try:
        check(seed)
    except Exception:  # noqa: BLE001 - whatever it is, it is printed and counted
        print(f"seed {seed}:\n{traceback.format_exc(limit=-3)}")
        return True
    return False


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
