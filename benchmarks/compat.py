"""Do deployed models run elsewhere? onnxruntime of the last two years, OpenVINO, onnxruntime-web.

    python benchmarks/compat.py [models ...]

Every model of models/ gets BatchNorms with real statistics, which are folded again: in float32, and
to float16. The files run in runtimes that know nothing of bnpass, each installed into a temporary
folder with pip or npm, and have to give what the model with its BatchNorms gives on the installed
onnxruntime without graph optimizations. What cannot be installed here is left out and said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import bnpass  # noqa: E402
from bnpass.report.tables import Table, render  # noqa: E402
from bnpass.runtime.inputs import Draw, random_inputs  # noqa: E402
from bnpass.runtime.precision import precision  # noqa: E402
from bnpass.runtime.tolerance import Tolerance, tolerance  # noqa: E402

SCRIPTS = ROOT / "benchmarks" / "runtimes"
PYTHON = [
    ("onnxruntime", "onnxruntime==1.20.1", "on_onnxruntime.py"),
    ("onnxruntime", "onnxruntime==1.22.1", "on_onnxruntime.py"),
    ("onnxruntime", "onnxruntime", "on_onnxruntime.py"),
    ("OpenVINO", "openvino", "on_openvino.py"),
]
BATCH = 3


@dataclass
class Job:
    """One model, what it is fed, and what has to come out."""

    name: str
    model: Path
    input: Path
    shape: list[int]
    expected: np.ndarray
    rule: Tolerance

    def to_dict(self, output: Path) -> dict[str, object]:
        return {"name": self.name, "model": str(self.model), "input": str(self.input),
                "shape": self.shape, "output": str(output)}  # fmt: skip


@dataclass
class Found:
    """What a runtime made of the jobs: one verdict each."""

    runtime: str
    verdicts: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path,
                        default=sorted((ROOT / "models").glob("*.onnx")))  # fmt: skip
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bnpass-compat-") as place:
        folder = Path(place)
        jobs = [job for model in arguments.models for job in deployed(model, folder)]
        rows = [run_python(*runtime, jobs, folder) for runtime in PYTHON]
        rows.append(run_web(jobs, folder))
    table = Table("largest error relative to the output's largest magnitude",
                  ["deployed model", *(row.runtime for row in rows), "tolerance"])  # fmt: skip
    for index, job in enumerate(jobs):
        table.add(job.name, *(row.verdicts[index] for row in rows), job.rule.rtol)
    render(table, sys.stdout)
    failed = any("FAILED" in verdict for row in rows for verdict in row.verdicts)
    print("FAILED" if failed else "PASSED")
    return int(failed)


def deployed(path: Path, folder: Path) -> list[Job]:
    """The model with BatchNorms, folded, in both types."""
    inserted = bnpass.insert(path)
    sample = random_inputs(inserted, Draw(batch=64, seed=1))
    norms = bnpass.calibrate(inserted, [sample])
    feeds = random_inputs(norms, Draw(batch=BATCH))
    (array,) = feeds.values()
    file = folder / f"{path.stem}.in"
    array.tofile(file)
    reference = bnpass.session(norms, optimize=False).run(None, feeds)
    expected = np.concatenate([output.ravel() for output in reference])
    rules = {None: tolerance([norms]), "float16": precision(norms, "float16").rule}
    jobs = []
    for to, rule in rules.items():
        name = path.stem if to is None else f"{path.stem} {to}"
        output = folder / f"{name.replace(' ', '.')}.onnx"
        bnpass.fold(norms, to=to, output=output)
        jobs.append(Job(name, output, file, list(array.shape), expected, rule))
    return jobs


def run_python(
    runtime: str, package: str, script: str, jobs: list[Job], folder: Path
) -> Found:
    """Install a package into an environment of its own and run the jobs there."""
    venv = folder / package.replace("=", "-")
    python = venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--only-binary=:all:", package]
    for step in ([sys.executable, "-m", "venv", str(venv)], pip):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            return _left_out(runtime, package, done.stderr, jobs)
    row = run_jobs(runtime, [str(python), str(SCRIPTS / script)], jobs, venv)
    shutil.rmtree(venv)
    return row


def run_web(jobs: list[Job], folder: Path) -> Found:
    """The same on onnxruntime-web in Node."""
    place = folder / "web"
    place.mkdir()
    if not (shutil.which("npm") and shutil.which("node")):
        return _left_out("onnxruntime-web", "onnxruntime-web", "Node.js is not installed", jobs)
    install = ["npm", "install", "--silent", "--no-fund", "--no-audit", "onnxruntime-web"]
    done = subprocess.run(install, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        return _left_out("onnxruntime-web", "onnxruntime-web", done.stderr, jobs)
    shutil.copy(SCRIPTS / "on_web.mjs", place)
    return run_jobs("onnxruntime-web", ["node", str(place / "on_web.mjs")], jobs, place)


def run_jobs(runtime: str, command: list[str], jobs: list[Job], place: Path) -> Found:
    """Run a script on all jobs and judge what it has written."""
    outputs = [place / f"{index}.out" for index in range(len(jobs))]
    listed = place / "jobs.json"
    listed.write_text(json.dumps([j.to_dict(o) for j, o in zip(jobs, outputs, strict=True)]))
    done = subprocess.run([*command, str(listed)], cwd=place, capture_output=True, text=True,
                          check=False, timeout=600)  # fmt: skip
    sys.stderr.write("".join(f"{runtime}: {line}\n" for line in done.stderr.splitlines()))
    version = (done.stdout.splitlines() or ["?"])[0]
    return Found(f"{runtime} {version}", list(map(judge, jobs, outputs)))


def judge(job: Job, output: Path) -> str:
    """The error, or why there is none."""
    if not output.is_file():
        return "FAILED: did not run"
    found = np.fromfile(output, np.float32)
    if found.shape != job.expected.shape:
        return f"FAILED: {found.size} numbers, not {job.expected.size}"
    scale = float(np.abs(job.expected).max())
    error = float(np.abs(found - job.expected).max())
    good = error <= job.rule.atol + job.rule.rtol * scale  # NaN is no good either
    return f"{'' if good else 'FAILED: '}{error / scale:.1e}"


def _left_out(runtime: str, package: str, why: str, jobs: list[Job]) -> Found:
    last = next((line for line in reversed(why.splitlines()) if line.strip()), "no message")
    print(f"left out: {package} does not install here: {last}", file=sys.stderr)
    return Found(f"{runtime} (left out)", ["-" for _ in jobs])


if __name__ == "__main__":
    sys.exit(main())
