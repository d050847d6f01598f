"""Small models in ONNX text, with zeros as weights."""

from __future__ import annotations

import math
import re

import onnx


def parsed(port: str, weights: str, nodes: str) -> onnx.ModelProto:
    """One input, weights by type and name, and nodes that make ``y``."""
    filled = ", ".join(
        f"{kind}{dims} {name} = {{{', '.join(['0'] * _count(dims))}}}"
        for kind, dims, name in re.findall(r"(\w+)(\[[^\]]*\])? (\w+)", weights)
    )
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]>\n'
        f"net ({port}) => (float[] y)\n<{filled}>\n{{ {nodes} }}"
    )


def _count(dims: str) -> int:
    return math.prod(int(d) for d in re.findall(r"\d+", dims))
