"""Insertion on known models and on a growing chain: python benchmarks/insert.py [--quick] [-o OUT]

Part 1: the light models of the onnx package and models/*.onnx: nonlinearities, sites, reasons,
what folds back, how far the function moves. Part 2: whole processes, 500 to 16,000 nonlinearities.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, parser, save, table
from benchmarks.insertion import chains, models

PARTS = {"models": models.run, "chain": chains.run}


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
    save(args.output, results)


if __name__ == "__main__":
    main()
