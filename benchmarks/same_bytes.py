"""What two versions of bnpass write for the same models, compared byte for byte.

    git worktree add ../before COMMIT
    python benchmarks/same_bytes.py write ../before out/before
    python benchmarks/same_bytes.py write . out/after
    python benchmarks/same_bytes.py compare out/before out/after

The models: those of models/, every pattern of the benchmark, random graphs of tests/fuzz. What is
done with each: see ``JOBS``, and a batch made free. A file holds what was written, or how it ended.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent

FOLD = ["fold", "--no-verify", "--max-growth", "1e6"]
JOBS: dict[str, list[str]] = {
    "fold": FOLD,
    "fold-external": FOLD,
    "fold-affine": [*FOLD, "--leftover", "affine", "--training-mode", "inference"],
    "fold-growth": ["fold", "--no-verify"],
    "narrow": [*FOLD, "--to", "fp16"],
    "narrow-bf16-io": [*FOLD, "--to", "bf16", "--to-io"],
    "normalise": [*FOLD, "--scale", "0.5", "--mean", "0.25", "--std", "2"],
    "insert": ["insert", "--init", "fresh"],
    "insert-more": ["insert", "--init", "preserve", "--gates", "--last", "--clone",
                    "--allow-unfoldable"],
    "strip": ["strip"],
}  # fmt: skip
"""Name of a folder in the results -> the command, without its files."""


def models(folder: Path, graphs: int) -> None:
    """Write every model that is compared into a folder."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.patterns import PATTERNS
    from tests.fuzz.generator import generate

    for path in sorted((ROOT / "models").glob("*.onnx")):
        (folder / path.name).write_bytes(path.read_bytes())
    for number, pattern in enumerate(PATTERNS):
        _save(pattern.make(), folder / f"pattern_{number:03}.onnx")
    for seed in range(graphs):  # every other one with more nonlinearities, to insert
        drawn = {"maps": 0.08, "nonlinear": 0.3} if seed % 2 else {}
        _save(generate(seed, **drawn), folder / f"fuzz_{seed:05}.onnx")
    _save(_large(), folder / "large.onnx")


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))


def _large() -> onnx.ModelProto:
    """Above 128 MiB: a file that bnpass folds without its weights in memory."""
    rng, helper = np.random.default_rng(0), onnx.helper
    arrays, nodes, last = {}, [], "x"
    for layer in range(3):
        arrays[f"w{layer}"] = rng.normal(size=(3600, 3600)).astype(np.float32)
        for name in ("scale", "bias", "mean", "var"):
            arrays[f"{name}{layer}"] = rng.uniform(0.5, 1.5, 3600).astype(np.float32)
        nodes += [
            helper.make_node("Gemm", [last, f"w{layer}"], [f"h{layer}"], transB=layer % 2),
            helper.make_node("BatchNormalization",
                             [f"h{layer}", *(f"{n}{layer}" for n in ("scale", "bias", "mean",
                                                                     "var"))], [f"y{layer}"]),
            helper.make_node("Relu", [f"y{layer}"], [f"z{layer}"]),
        ]  # fmt: skip
        last = f"z{layer}"
    ports = [helper.make_tensor_value_info(n, 1, ["N", 3600]) for n in ("x", last)]
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(checkout: Path, folder: Path, graphs: int) -> None:
    """Let the bnpass of a checkout write everything."""
    with tempfile.TemporaryDirectory() as made:
        models(Path(made), graphs)
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
        command = [sys.executable, str(Path(__file__).resolve()), "child", made,
                   str(folder.resolve())]  # fmt: skip
        subprocess.run(command, check=True, env=environment, cwd=made)


def child(source: Path, folder: Path) -> None:
    """Run every job on every model with the bnpass that Python finds."""
    sys.path.pop(0)
    for job, arguments in JOBS.items():
        (folder / job).mkdir(parents=True)
        for path in sorted(source.glob("*.onnx")):
            if path.name != "large.onnx" or job.startswith("fold"):
                _run(job, arguments, path, folder / job / path.stem)
    (folder / "free-batch").mkdir()
    for path in sorted(source.glob("*.onnx")):
        if path.name != "large.onnx":
            _free_batch(path, folder / "free-batch" / path.stem)


def _run(job: str, arguments: list[str], path: Path, result: Path) -> None:
    from bnpass.cli import main

    with tempfile.TemporaryDirectory() as scratch:
        given, output = path, Path(scratch, "out.onnx")
        if job == "fold-external":
            given = Path(scratch, "given.onnx")
            onnx.save_model(onnx.load(path), given, save_as_external_data=True,
                            location="given.data", size_threshold=0)  # fmt: skip
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            code = main([*arguments, str(given), "-o", str(output), "-q"])
        files = [p for p in sorted(Path(scratch).iterdir()) if not p.name.startswith("given")]
        found = b"".join(re.sub(rb"\.[0-9a-f]{16}\.data", b".data", p.read_bytes()) for p in files)
        if len(found) > 1 << 20:
            found = hashlib.sha256(found).hexdigest().encode()
        said = heard.getvalue().replace(str(scratch), "").replace(str(path.parent), "")
        result.write_bytes(found if files else f"exit code {code}\n{said}".encode())


def _free_batch(path: Path, result: Path) -> None:
    from bnpass.errors import InputError

    try:
        from bnpass.frontends.onnx.free_batch import free_batch
    except ImportError:  # where it was before
        from bnpass.frontends.onnx.batch import free_batch

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim[:1]:
            if dim.dim_param:
                dim.dim_value = 2
    try:
        result.write_bytes(free_batch(model).SerializeToString())
    except InputError as error:
        result.write_text(f"{error}\n")


def compare(before: Path, after: Path) -> int:
    """Print every file that differs; 1 where any does."""
    same: Counter[str] = Counter()
    other: list[Path] = []
    for path in sorted(p.relative_to(before) for p in before.rglob("*") if p.is_file()):
        twin = after / path
        if twin.is_file() and twin.read_bytes() == (before / path).read_bytes():
            same[path.parts[0]] += 1
        else:
            other.append(path)
    for path in other:
        print(f"differs: {path}")
    missing = {p.relative_to(after) for p in after.rglob("*") if p.is_file()} - {
        p.relative_to(before) for p in before.rglob("*")
    }
    for path in sorted(missing):
        print(f"only after: {path}")
    print(f"{sum(same.values())} files are the same, {len(other)} differ: {dict(same)}")
    return int(bool(other or missing))


def main() -> int:
    """Parse the command line and do as it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("write", "compare", "child"))
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--graphs", type=int, default=400)
    args = parser.parse_args()
    if args.what == "compare":
        return compare(args.first, args.second)
    if args.what == "write":
        write(args.first, args.second, args.graphs)
    else:
        child(args.first, args.second)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
