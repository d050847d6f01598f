"""The child process that runs onnxruntime: ``python -m bnpass.runtime.worker``, never by hand.

A crash or an endless run of onnxruntime ends this process and not the caller's. It reads requests
from stdin and answers on stdout; when stdin ends, because the parent has gone, so does it.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from bnpass.errors import BnpassError
from bnpass.runtime.frames import pack, read_frame, unpack, write_frame

Frame = tuple[dict[str, Any], list[bytearray]]


def main() -> None:
    """Answer requests until stdin ends."""
    answers = _private_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    requests: queue.Queue[Frame] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    sessions: dict[int, Any] = {}
    while True:
        header, parts = requests.get()
        _answer(answers, header, parts, sessions)


def _private_stdout() -> BinaryIO:
    """The pipe to the parent; what libraries print goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _listen(requests: queue.Queue[Frame]) -> None:
    while True:
        try:
            requests.put(read_frame(sys.stdin.buffer))
        except (EOFError, OSError, ValueError):
            os._exit(0)  # also out of the middle of a run


def _answer(
    answers: BinaryIO, header: dict[str, Any], parts: list[bytearray], sessions: dict[int, Any]
) -> None:
    try:
        reply, data = _ACTIONS[header["do"]](header, parts, sessions)
    except BnpassError as error:
        known = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        reply, data = known, []
    except MemoryError:
        reply, data = {"error": "MemoryError", "message": "out of memory", "hint": ""}, []
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        reply, data = {"error": "InputError", "message": _line(error), "hint": ""}, []
    write_frame(answers, reply, data)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {(lines or ['no more is known'])[0][:300]}"


def _limit(header: dict[str, Any], _: Any, __: Any) -> tuple[dict[str, Any], list[Any]]:
    """Bound the process's address space: what it has now and so many bytes more."""
    try:
        import resource
    except ImportError:  # not on this platform
        return {"limited": False}, []
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = header["memory"]
    soft = hard if wanted is None else _mapped() + int(wanted)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return {"limited": wanted is not None}, []


def _mapped() -> int:
    """Bytes of address space that the process has."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 32  # libraries and stacks take less


def _open(
    header: dict[str, Any], parts: list[bytearray], sessions: dict[int, Any]
) -> tuple[dict[str, Any], list[Any]]:
    from bnpass.runtime.session import session

    source = header["path"] if header["path"] is not None else bytes(parts[0])
    built = session(source, name=header["name"], spinning=False, **header["options"])
    sessions[header["session"]] = built
    ports = {
        "inputs": [[i.name, str(i.type)] for i in built.get_inputs()],
        "outputs": [[o.name, str(o.type)] for o in built.get_outputs()],
    }
    return {**ports, "providers": built.get_providers()}, []


def _run(
    header: dict[str, Any], parts: list[bytearray], sessions: dict[int, Any]
) -> tuple[dict[str, Any], list[Any]]:
    from bnpass.runtime.session import run

    feeds = {
        name: unpack(about, data)
        for (name, about), data in zip(header["feeds"], parts, strict=True)
    }
    found = run(sessions[header["session"]], header["names"], feeds)
    packed = [pack(array) for array in found]
    return {"arrays": [about for about, _ in packed]}, [data for _, data in packed]


def _close(
    header: dict[str, Any], _: Any, sessions: dict[int, Any]
) -> tuple[dict[str, Any], list[Any]]:
    sessions.pop(header["session"], None)
    return {}, []


_ACTIONS = {"limit": _limit, "open": _open, "run": _run, "close": _close}


if __name__ == "__main__":
    main()
