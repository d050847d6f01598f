"""Folding side by side with its peers: python benchmarks/fold.py [--quick] [-o OUT.json]

Part 1: patterns by tool. 2: speed on a growing chain. 3: memory at 2 GB. 4: inference.
5: the check.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, parser, save, table
from benchmarks.folding import check, inference, memory, speed
from benchmarks.folding import table as patterns

PARTS = {"patterns": patterns.run, "speed": speed.run, "memory": memory.run,
         "inference": inference.run, "check": check.run}


def main() -> None:
    """Run the parts that are asked for."""
    options = parser(__doc__)
    options.add_argument("--part", choices=PARTS, action="append", help="only this part")
    args = options.parse_args()
    facts = machine()
    table(["machine", ""], facts.items())
    results = {"machine": facts}
    for name in args.part or PARTS:
        results[name] = PARTS[name](args.quick)
    results["machine after"] = machine()
    save(args.output, results)


if __name__ == "__main__":
    main()
