"""A loop without an end is an error; a large model is one that the budget is too small for."""

from __future__ import annotations

import onnx
import pytest

from bnpass.cli import main
from bnpass.errors import InputError
from bnpass.runtime.verify import verify
from tests.runtime.conftest import text

LOOP = """ g (float[N, {size}] x) => (float[N, {size}] y) {{
    n = Constant<value_int = {trips}>()
    c = Constant<value = bool {{1}}>()
    {how}
}}"""
BODY = """<body = b (int64 i, bool c1, float[N, {size}] h)
                => (bool c2, float[N, {size}] z) {{
        c2 = Identity(c1)
        z = Relu(h)
    }}>"""


IF = """y = If (c) <then_branch = t () => (float[N, {size}] p) {{ p = Loop {body} (n, c, x) }},
                  else_branch = e () => (float[N, {size}] q) {{ q = Neg(x) }}>"""


def looping(trips=4 * 10**12, size="3", how="y = Loop {body} (n, c, x)"):
    """A Loop of so many trips; ``size`` is that of the values' second axis."""
    how = how.format(body=BODY.format(size=size), size=size)
    model = text(LOOP.format(trips=trips, size=size, how=how))
    model.graph.node[-1].name = f"around_{model.graph.node[-1].output[0]}"
    return model


def test_a_loop_without_an_end_of_the_candidate_alone():
    with pytest.raises(InputError, match=r"running .* did not end .* Loop 'around_y'"):
        verify(looping(trips=2), looping(), budget=3.0)


def test_sizes_are_not_tried_one_after_the_other_and_branches_are_looked_into():
    model = looping(size="C", how=IF)
    with pytest.raises(InputError, match="Loop 'p'"):
        verify(model, model, budget=3.0)


def test_loops_that_end_pass():
    model = looping(trips=5)
    assert verify(model, model, budget=20.0).outputs["y"].passed


def test_a_large_graph_without_loops_is_left_out():
    wide = "float[6000, 6000]"
    chain = "\n".join(f"v{i + 1} = MatMul(v{i}, v{i})" for i in range(30))
    model = text(f"""g (float[6000, 1] x) => ({wide} v30) {{
        s = Constant<value_ints = [6000, 6000]>()
        e = Expand(x, s)
        v0 = Identity(e)
        {chain}
    }}""")
    report = verify(model, model, budget=1.0)
    assert report.passed and not report.outputs
    assert "longer than" in report.left_out[0]


def test_verify_of_files_with_a_loop_without_an_end(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    onnx.save(looping(), path)
    assert main(["verify", str(path), str(path), "--check-budget", "3"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "'around_y'" in lines[0] and "m.onnx" in lines[0]
