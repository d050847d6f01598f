"""The public surface: its names, its signatures' first arguments, and what importing it costs."""

import inspect
import sys

import pytest

import bnpass
from tests import processes

NAMES = {
    "BnpassError": (),
    "calibrate": ("model", "data"),
    "collapse": ("model", "example_inputs"),
    "export": ("module", "example_inputs", "path"),
    "fold": ("model", "example_inputs"),
    "insert": ("model", "example_inputs"),
    "inspect": ("model", "example_inputs"),
    "register_op": ("op_type",),
    "repair": ("reference", "damaged", "data"),
    "session": ("model",),
    "strip": ("model", "what", "example_inputs"),
    "to_torch": ("model",),
    "train": ("model", "data", "validation"),
    "verify": ("reference", "candidate"),
    "write_back": ("gm", "model"),
}

HEAVY = ("torch", "onnx", "onnxruntime", "networkx", "numpy", "rich", "matplotlib", "PIL")


def test_the_names_are_these_and_no_others():
    assert set(bnpass.__all__) == set(NAMES)
    assert set(NAMES) <= set(dir(bnpass))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"BnpassError"}))
def test_every_function_is_documented_and_takes_these(name):
    function = getattr(bnpass, name)
    assert function.__doc__
    parameters = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert tuple(parameters[: len(NAMES[name])]) == NAMES[name]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'folds'"):
        _ = bnpass.folds


def test_importing_it_imports_nothing_heavy():
    code = f"import bnpass, sys; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = processes.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
