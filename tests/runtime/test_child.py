"""onnxruntime in its child process: the same numbers, and its crash or endless run is one error."""

import os
import signal
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bnpass.errors import InputError
from bnpass.runtime.child import Child, CrashError, LimitError, Limits
from bnpass.runtime.frames import pack, unpack
from bnpass.runtime.ort import NoKernelError
from bnpass.runtime.session import run, session
from tests import processes
from tests.runtime.conftest import text

ENDLESS = """ g (float[N, 3] x) => (float[N, 3] y) {
    n = Constant<value_int = 2000000000>()
    c = Constant<value = bool {1}>()
    y = Loop(n, c, x) <body = b (int64 i, bool c1, float[N, 3] h) => (bool c2, float[N, 3] z) {
        c2 = Identity(c1)
        z = Relu(h)
    }>
}"""


@pytest.fixture
def child():
    made = Child()
    yield made
    made.stop()


def test_the_same_bits_as_in_process(child, convnet, rng):
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    feeds = {convnet.graph.input[0].name: x}
    for optimize in (False, True):
        (ours,) = child.session(convnet, optimize=optimize).run(None, feeds)
        (theirs,) = run(session(convnet, optimize=optimize), None, feeds)
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.5),
        np.zeros((0, 4), np.float16),
        np.array([True, False]),
        np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
        np.array([["a", "ß"], ["", "c"]], object),
        np.arange(12.0)[::-2],
    ],
)
def test_arrays_of_every_kind_cross_the_pipe(array):
    about, data = pack(array)
    back = unpack(about, bytearray(data))
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tolist() == array.tolist()


def test_an_endless_run_ends_at_its_limit_and_the_next_one_works(child):
    feeds = {"x": np.ones((1, 3), np.float32)}
    endless = child.session(text(ENDLESS), optimize=False, name="m.onnx")
    endless.limits = Limits(1.0)
    with pytest.raises(LimitError, match=r"longer than 1 s: running m\.onnx"):
        endless.run(None, feeds)
    again = child.session(text("g (float[N, 3] x) => (float[N, 3] y) { y = Neg(x) }"))
    assert (again.run(None, feeds)[0] == -1).all()
    with pytest.raises(CrashError, match=r"the process that held m\.onnx has ended"):
        endless.run(None, feeds)


@pytest.mark.skipif(sys.platform != "linux", reason="address space limits")
def test_too_much_memory_is_one_error(child):
    model = text("g (int64[1] n) => (float[N] y) { y = ConstantOfShape(n) }")
    made = child.session(model, optimize=False, limits=Limits(memory=1 << 28))
    with pytest.raises(LimitError, match="out of memory"):
        made.run(None, {"n": np.array([1 << 28])})
    assert made.run(None, {"n": np.array([1 << 10])})[0].shape == (1024,)


def test_a_crash_is_one_error_with_model_and_step(child):
    model = text("g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }")
    made = child.session(model, name="m.onnx")
    os.kill(child._process.pid, signal.SIGKILL)
    with pytest.raises(CrashError, match=r"onnxruntime crashed \(signal 9.*running m\.onnx"):
        made.run(None, {"x": np.ones((1, 3), np.float32)})
    assert child.session(model).run(None, {"x": np.ones((1, 3), np.float32)})[0].shape == (1, 3)


def test_errors_keep_their_kind(child):
    double = text("g (double[1, 1, 4, 4] x, double[1, 1, 3, 3] w) => (double[1, 1, 2, 2] y) "
                  "{ y = Conv(x, w) }")  # fmt: skip
    with pytest.raises(NoKernelError, match="Conv"):
        child.session(double)
    model = text("g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")
    with pytest.raises(InputError, match="cannot run"):
        child.session(model).run(None, {"x": np.ones((5, 5), np.float32)})


@pytest.mark.skipif(sys.platform == "win32", reason="posix process groups")
def test_the_child_ends_with_its_parent():
    script = (
        "import os, signal, onnx.parser\n"
        "from bnpass.runtime.child import shared\n"
        "shared().session(onnx.parser.parse_model('<ir_version: 8, opset_import: [\"\": 17]> "
        "g (float[1] x) => (float[1] y) { y = Relu(x) }'))\n"
        "print(shared()._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = processes.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    pid = int(done.stdout)
    for _ in range(100):
        if not _runs(pid):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} outlives its parent")


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
