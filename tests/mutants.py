"""``python -m tests.mutants [N] [SEED]``: N small mistakes put into the core; do the tests notice?

cosmic-ray knows the mistakes (an operator turned, a number off by one, a condition negated). A
sample of them is tried, each in a copy of the package, against the tests of what they are in. The
share that is noticed and every one that is not go to stdout.
"""

from __future__ import annotations

import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import processes

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = ("bnpass/ir", "bnpass/rules", "bnpass/passes")
"""What is mutated: the graph, the algebra, the rules, the passes, the weights."""

TESTS = ("tests/passes/test_corners.py", "tests/passes/test_correspondence.py",
         "tests/passes/test_edits.py", "tests/rules", "tests/passes", "tests/test_affine.py",
         "tests/ir", "tests/fuzz")  # fmt: skip
"""What has to notice, the quickest and sharpest first."""

def _tests() -> list[str]:
    """The tests, or those that MUTANTS_TESTS names instead."""
    return os.environ.get("MUTANTS_TESTS", "").split() or list(TESTS)


SLOWER = 10  # times that the tests take as they are: a mutant that runs longer is noticed, too
SKIPPED = ("FloorDiv", "Mod", "Pow", "RShift", "LShift", "BitOr", "BitAnd", "BitXor", "Is", "Unary",
           "Decorator", "ZeroIteration", "Variable", "Exception")  # fmt: skip
"""Operators whose mistakes nobody makes, or that no test could miss."""


@dataclass(frozen=True)
class Mutant:
    """One mistake: the operator of cosmic-ray and its how-manieth place in a file."""

    path: str
    operator: str
    occurrence: int


def mutants() -> Iterator[Mutant]:
    """Every mistake that could be made."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    names = [n for n in plugins.operator_names() if not any(word in n for word in SKIPPED)]
    operators = [(name, plugins.get_operator(name)()) for name in names]
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).glob("*.py")):
            nodes = list(ast_nodes(get_ast_from_path(file)))
            for name, operator in operators:
                count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
                path = str(file.relative_to(ROOT))
                yield from (Mutant(path, name, place) for place in range(count))


def mutated(one: Mutant) -> str | None:
    """The file with the mistake; None where there is none after all."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    code = (ROOT / one.path).read_text()
    changed: str | None = mutate_code(code, plugins.get_operator(one.operator)(), one.occurrence)
    return changed if changed != code else None


def notices(one: Mutant, code: str, copy: Path, limit: float) -> bool:
    """Whether some test fails with the mistake in the copy of the package, or takes too long."""
    file = copy / one.path
    kept = file.read_text()
    file.write_text(code)
    try:
        return fails(copy, limit)
    finally:
        file.write_text(kept)


def fails(copy: Path, limit: float) -> bool:
    """Whether some test fails with the copy of the package, or takes more seconds than that."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [os.environ.get("MUTANTS_PYTHON", sys.executable), "-m", "pytest", "-q", "-x",
               "-p", "no:cacheprovider", "-m", "not slow", *_tests()]  # fmt: skip
    try:
        done = processes.run(command, cwd=copy, env=environment, capture_output=True,
                              timeout=limit, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main(arguments: list[str]) -> int:
    """Try N mutants; 1 where one of them goes unnoticed."""
    count, seed = (int(a) for a in [*arguments, *("40", "0")[len(arguments) :]][:2])
    every = list(mutants())
    chosen = random.Random(seed).sample(every, min(count, len(every)))
    tried, unnoticed = 0, []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("bnpass", "tests", "models"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        start = time.monotonic()
        if fails(copy, 3600.0):
            print("the tests fail as they are")
            return 2
        limit = SLOWER * (time.monotonic() - start)
        for one in chosen:
            code = mutated(one)
            if code is None:
                continue
            tried += 1
            noticed = notices(one, code, copy, limit)
            print(f"{tried}: {one.path} {one.operator} {noticed}", file=sys.stderr, flush=True)
            if not noticed:
                unnoticed.append(one)
                print(f"unnoticed: {one.path}, {one.operator}\n{difference(one, code)}", flush=True)
    print(f"{tried - len(unnoticed)} of {tried} mistakes noticed, {len(every)} possible")
    return int(bool(unnoticed))


def difference(one: Mutant, code: str) -> str:
    """The lines that the mistake changes."""
    old = (ROOT / one.path).read_text().splitlines()
    return "\n".join(difflib.unified_diff(old, code.splitlines(), lineterm="", n=1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
