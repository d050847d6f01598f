"""onnxruntime in a child process: its crash or its endless run is one error of ours.

``python -m``, not multiprocessing: spawn wants a ``__main__`` guard in the user's script, and a
fork behind torch's threads can hang. The child costs about 0.25 s once and serves many sessions;
it ends with its parent.
"""

from __future__ import annotations

import atexit
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

from bnpass import errors
from bnpass.errors import BnpassError, InputError
from bnpass.runtime import ort
from bnpass.runtime.frames import pack, read_frame, unpack, write_frame

Array = np.ndarray[Any, Any]
Model = str | os.PathLike[str] | onnx.ModelProto

_TWO_GIB = 2**31 - 1


class CrashError(InputError):
    """onnxruntime ended its process."""


class LimitError(InputError):
    """onnxruntime needed more time or memory than it was given."""


class TimeLimitError(LimitError):
    """onnxruntime did not finish a step in its time.

    Attributes:
        seconds: what the step was given.
        first_run: the step was a session's first run: not one of that model has ended.
    """

    def __init__(self, seconds: float, step: str) -> None:
        super().__init__(
            f"onnxruntime took longer than {seconds:g} s: {step}", "give it more time"
        )
        self.seconds, self.step, self.first_run = seconds, step, False


@dataclass(frozen=True)
class Limits:
    """What one step (opening a model, one run) may take.

    Attributes:
        seconds: wall clock; None for no limit.
        memory: bytes beyond what the child has when idle; None for no limit. Only where the
            platform has such limits (not on Windows).
    """

    seconds: float | None = 600.0
    memory: int | None = None


NORMAL = Limits()


class Child:
    """A process that runs onnxruntime; started at the first request, again after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[Any] = queue.Queue()
        self._owner = 0
        self._busy = False
        self._memory: int | None = None
        self._opened = 0
        self.generation = 0

    def session(
        self, model: Model, *, limits: Limits = NORMAL, name: str = "", **options: Any
    ) -> RemoteSession:
        """Build a session in the child.

        Args:
            model: a path or a ModelProto.
            limits: of this step and of every run of the session.
            name: what messages call the model.
            **options: of :func:`bnpass.runtime.session.session`.

        Raises:
            CrashError, LimitError: onnxruntime crashed, took too long, or too much memory.
            MissingDependencyError: onnxruntime is not installed.
            BnpassError: what :func:`bnpass.runtime.session.session` raises.
        """
        self._ready()
        ort.onnxruntime()  # while the child starts: where it is missing, that is the error
        name = name or ("the model" if isinstance(model, onnx.ModelProto) else os.fspath(model))
        if not isinstance(model, onnx.ModelProto):
            return self._open(os.fspath(Path(model).absolute()), [], limits, name, options)
        if model.ByteSize() < _TWO_GIB:
            return self._open(None, [model.SerializeToString()], limits, name, options)
        import tempfile

        from bnpass.files import save_model

        with tempfile.TemporaryDirectory(prefix="bnpass-") as place:
            path = save_model(model, Path(place) / "model.onnx", external=True)
            return self._open(os.fspath(path), [], limits, name, options)

    def _open(
        self, path: str | None, parts: list[bytes], limits: Limits, name: str, options: Any
    ) -> RemoteSession:
        options = {k: os.fspath(v) if isinstance(v, Path) else v for k, v in options.items()}
        self._opened += 1
        header = {"do": "open", "session": self._opened, "path": path, "name": name}
        found, _ = self.request(
            {**header, "options": options}, parts, limits, f"loading {name}"
        )
        return RemoteSession(self, self._opened, name, limits, found)

    def request(
        self, header: dict[str, Any], parts: Sequence[Any], limits: Limits, step: str
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """Send one request and wait for the answer.

        Args:
            header, parts: the request.
            limits: of time and memory.
            step: what is being done, for messages (``"loading model.onnx"``).
        """
        self._ready()
        if limits.memory != self._memory:
            self._memory = limits.memory
            self._ask({"do": "limit", "memory": limits.memory}, [], 60.0, step)
        return self._ask(header, parts, limits.seconds, step)

    def _ask(
        self, header: dict[str, Any], parts: Sequence[Any], seconds: float | None, step: str
    ) -> tuple[dict[str, Any], list[bytearray]]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._busy = True
        try:
            write_frame(self._process.stdin, header, parts)  # type: ignore[arg-type]
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            assert seconds is not None
            raise TimeLimitError(seconds, step) from None
        except OSError:
            answer = None
        if answer is None:
            self._crashed(step)
        self._busy = False
        reply, data = answer
        if "error" in reply:
            _raise(reply, step)
        return reply, data

    def _ready(self) -> None:
        """Start the process unless it is there, idle and ours."""
        if self._owner != os.getpid():  # forked: the pipes belong to the parent
            self._process, self._owner = None, os.getpid()
        elif self._process is not None and (self._busy or self._process.poll() is not None):
            self.stop()
        if self._process is None:
            self._start()

    def _start(self) -> None:
        places = [os.fspath(Path(p or ".").absolute()) for p in sys.path]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bnpass.runtime.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env,
        )  # fmt: skip
        self._busy, self._memory, self._answers = False, None, queue.Queue()
        self.generation += 1
        threading.Thread(
            target=_listen, args=(self._process.stdout, self._answers), daemon=True
        ).start()

    def _crashed(self, step: str) -> NoReturn:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0
        self.stop()
        raise CrashError(
            f"onnxruntime crashed ({_why(code)}): {step}",
            "the file is one that this onnxruntime cannot take; bnpass env tells its version",
        )

    def stop(self) -> None:
        """End the process; the next request starts another one."""
        process, self._process, self._busy = self._process, None, False
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # what was still to be flushed has no reader


class RemoteSession:
    """A session that lives in a child process.

    Attributes:
        inputs, outputs: (name, onnxruntime's type) of each.
        providers: where it runs.
    """

    def __init__(
        self, child: Child, number: int, name: str, limits: Limits, found: dict[str, Any]
    ) -> None:
        self._child, self._number, self._generation = child, number, child.generation
        self.name, self.limits = name, limits
        self.inputs: list[tuple[str, str]] = [(n, t) for n, t in found["inputs"]]
        self.outputs: list[tuple[str, str]] = [(n, t) for n, t in found["outputs"]]
        self.providers: list[str] = found["providers"]
        self._has_run = False

    def run(self, names: list[str] | None, feeds: dict[str, Array]) -> list[Array]:
        """Compute outputs; as :func:`bnpass.runtime.session.run`.

        Raises:
            CrashError, LimitError: onnxruntime crashed, took too long, or too much memory.
        """
        if self._generation != self._child.generation:
            raise CrashError(f"the process that held {self.name} has ended", "try again")
        packed = {name: pack(array) for name, array in feeds.items()}
        header = {"do": "run", "session": self._number, "names": names,
                  "feeds": [[name, about] for name, (about, _) in packed.items()]}  # fmt: skip
        try:
            reply, data = self._child.request(
                header, [part for _, part in packed.values()], self.limits, f"running {self.name}"
            )
        except TimeLimitError as error:
            error.first_run = not self._has_run
            raise
        self._has_run = True
        return [unpack(about, part) for about, part in zip(reply["arrays"], data, strict=True)]

    def close(self) -> None:
        """Free the session's memory."""
        if self._generation == self._child.generation and self._child._process is not None:
            header = {"do": "close", "session": self._number}
            self._child.request(header, [], self.limits, f"closing {self.name}")


def _listen(stream: Any, answers: queue.Queue[Any]) -> None:
    while True:
        try:
            answers.put(read_frame(stream))
        except (EOFError, OSError, ValueError):
            answers.put(None)
            return


def _why(code: int) -> str:
    if code < 0:
        try:
            return f"signal {-code}, {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def _raise(reply: dict[str, Any], step: str) -> NoReturn:
    """Raise here what was raised in the child."""
    kind, message, hint = reply["error"], reply["message"], reply["hint"]
    if kind == "MemoryError" or "bad_alloc" in message or "Failed to allocate" in message:
        raise LimitError(f"onnxruntime ran out of memory: {step}", "give it more memory")
    known = ort.NoKernelError if kind == "NoKernelError" else getattr(errors, kind, InputError)
    made: BnpassError = known(message, hint)
    raise made


_shared = Child()


def shared() -> Child:
    """The child that all verifications of this process share."""
    return _shared


atexit.register(_shared.stop)
