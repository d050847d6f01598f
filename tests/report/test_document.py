"""JSON documents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bnpass.report.document import SCHEMA, to_json


class Reported:
    def to_dict(self) -> dict[str, object]:
        return {"max": np.float32(0.5), "at": (1, 2)}


def test_the_schema_version_stands_in_front() -> None:
    text = to_json({"a": 1})
    assert json.loads(text) == {"schema": SCHEMA, "a": 1}
    assert text.index("schema") < text.index('"a"')


def test_everything_that_a_report_holds_has_a_json_form() -> None:
    document = {
        "nan": float("nan"), "inf": -np.inf, "n": np.int64(3), "x": np.zeros((2, 1), np.float32),
        "path": Path("a/b"), "report": Reported(), "none": None, 4: [True, ("x",)],
    }
    assert json.loads(to_json(document)) == {
        "schema": SCHEMA, "nan": "nan", "inf": "-inf", "n": 3, "x": [[0.0], [0.0]],
        "path": "a/b", "report": {"max": 0.5, "at": [1, 2]}, "none": None, "4": [True, ["x"]],
    }


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json({"x": object()})
