"""N damaged files, each done right or refused clearly: ``python -m tests.fuzz.damage [N] [SEED]``.

Damage is done to bytes and to protobuf's wire format (lengths, tags, wire types, fields lost, twice
or nested). Each case runs a command in a fork, under limits of time and memory. Right is exit code
0, or 1 to 3 with one line ``error:``, no traceback, no internal error, no file left, no control
character printed, the input as it was.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from bnpass.onnx_model.storage.wire import BYTES, fields, head, varint

SECONDS, MEMORY = 20, 1 << 30
COMMANDS = (["fold", "m.onnx", "-o", "o.onnx", "--no-verify"], ["insert", "m.onnx", "-o", "o.onnx"],
            ["inspect", "m.onnx", "--explain"], ["strip", "m.onnx", "-o", "o.onnx"],
            ["draw", "m.onnx", "-o", "o.dot"], ["unfold", "f.onnx", "m.onnx", "-o", "o.onnx"],
            ["fold", "m.onnx", "--dry-run", "--explain", "--json"])
NUMBERS = (0, 1, 2, 127, 128, 2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**64 - 1)


BYTE_FAULTS = ("a bit flipped", "a byte replaced", "cut off", "bytes lost", "bytes put in")
WIRE_FAULTS = ("a field lost", "a field repeated", "a length that lies", "a number for a field",
               "a field of another number", "a field nested in itself")


def damaged(rng: random.Random, content: bytes) -> bytes:
    """A file with one to three faults."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        content = _wire(rng, content) if rng.random() < 0.6 else _bytes(rng, content)
    return content


def _bytes(rng: random.Random, content: bytes, kind: int | None = None) -> bytes:
    """One fault of :data:`BYTE_FAULTS`."""
    data = bytearray(content or b"\0")
    at, length = rng.randrange(len(data)), rng.choice([1, 2, 8, 100])
    kind = rng.randrange(len(BYTE_FAULTS)) if kind is None else kind
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice([0, 1, 10, 18, 127, 128, 255])
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + length]
    else:
        data[at:at] = rng.choice([rng.randbytes(length), data[at : at + length] * 30])
    return bytes(data)


def _wire(
    rng: random.Random, content: bytes, depth: int = 0, kind: int | None = None
) -> bytes:
    """One fault of :data:`WIRE_FAULTS` at any depth; the lengths around it stay right."""
    try:
        found = list(fields(content, 0, len(content)))
    except ValueError:
        return _bytes(rng, content)
    if not found:
        return head(rng.randrange(1, 20), 0)
    field = rng.choice(found)
    before, after = content[: field.start], content[field.end :]
    whole, body = content[field.start : field.end], content[field.value : field.end]
    if field.kind == BYTES and len(body) > 1 and depth < 10 and rng.random() < 0.8:
        inner = _wire(rng, body, depth + 1, kind)
        return before + head(field.number, len(inner)) + inner + after
    kind = rng.randrange(len(WIRE_FAULTS)) if kind is None else kind
    if kind == 0:
        return before + after
    if kind == 1:
        return before + whole * rng.choice([2, 3, 100]) + after
    if kind == 2:
        lying = max(0, len(body) + rng.choice([-1, 1, 100, 2**31]))
        return before + head(field.number, lying) + body + after
    if kind == 3:
        return before + varint(field.number << 3) + varint(rng.choice(NUMBERS)) + after
    if kind == 4:
        return before + varint(rng.randrange(1, 30) << 3 | field.kind) + content[field.start + 1:]
    for _ in range(rng.choice([2, 20, 120])):
        body = head(field.number, len(body)) + body
    return before + head(field.number, len(body)) + body + after


def originals(folder: Path) -> dict[str, bytes]:
    """Undamaged files: models, and a folded one with its sidecar."""
    from bnpass.cli import main
    from tests.commands.helpers import add_norm, mlp
    from tests.fuzz.generator import generate

    files = {f"random{seed}": generate(seed) for seed in range(8)}
    files |= {"mlp": add_norm(mlp()), "plain": mlp(ending="Softmax")}
    found = {name: model.SerializeToString() for name, model in files.items()}
    (folder / "m.onnx").write_bytes(found["mlp"])
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(["fold", str(folder / "m.onnx"), "-o", str(folder / "f.onnx"),
                     "--sidecar", str(folder / "s.undo"), "--no-verify", "-q"])
    assert code == 0
    return {**found, "folded": (folder / "f.onnx").read_bytes(),
            "sidecar": (folder / "s.undo").read_bytes()}


def run(place: Path, arguments: list[str]) -> int:
    """The command's exit code, or minus the signal that ended it."""
    from bnpass.cli import main

    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.chdir(place)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            signal.alarm(15 * SECONDS)  # a loaded machine is no fault of the file
            for number, name in ((1, ".out"), (2, ".err")):
                os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600), number)
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY,) * 2)
            code = main(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 127)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(place: Path, code: int, files: dict[str, bytes]) -> str:
    """``ok``, ``clean``, or what is wrong."""
    out, err = ((place / name).read_bytes().decode(errors="replace") for name in (".out", ".err"))
    left = {path.name for path in place.iterdir()} - set(files) - {".out", ".err"}
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    odd = {c for c in out + err if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160}
    if any((place / name).read_bytes() != content for name, content in files.items()):
        return "changed"
    if "internal error" in err or "Traceback" in err:
        return "internal: " + " ".join(lines)[:90]
    if code < 0 or code == 99:
        return f"ended by {code}"
    if "out of memory" in err or odd or len(lines) != (code != 0):
        return f"said: {' '.join(lines)[:90]}"
    if code and left:
        return f"left {sorted(left)[0]}"
    return "clean" if code else "ok"


def cpu_seconds() -> float:
    """Of this process and of those that it has started."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(arguments: list[str]) -> int:
    """Run N cases; 1 where one of them is neither done nor refused clearly."""
    count, seed = (int(a) for a in [*arguments, *("10000", "1")[len(arguments) :]][:2])
    folder, start = Path(tempfile.mkdtemp(prefix="bnpass-damage-")), time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    try:
        whole = originals(folder)
        gc.freeze()
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            command = rng.choice(COMMANDS)
            name = "sidecar" if command[0] == "unfold" else rng.choice(sorted(whole))
            files = {"m.onnx": damaged(rng, whole[name]), "f.onnx": whole["folded"]}
            place = folder / "case"
            place.mkdir()
            for target, content in files.items():
                (place / target).write_bytes(content)
            try:
                found = outcome(place, run(place, list(command)), files)
            except OSError:
                found = traceback.format_exc(limit=-1)
            counts[found] += 1
            if found not in ("ok", "clean"):
                print(f"{number}: {command[0]} {name}: {found}", flush=True)
            shutil.rmtree(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(", ".join(f"{what} {times}" for what, times in counts.most_common(12)),
          f"in {time.monotonic() - start:.0f} s, {cpu_seconds():.0f} s of them on a core")
    return int(bool(counts.keys() - {"ok", "clean"}))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
