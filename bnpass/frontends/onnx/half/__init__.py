"""float16 and bfloat16 models: a model narrowed, and a fold that is narrowed behind it."""

from __future__ import annotations

from bnpass.frontends.onnx.half.model import HalfModel, half_type, to_half

__all__ = ["HalfModel", "half_type", "to_half"]
