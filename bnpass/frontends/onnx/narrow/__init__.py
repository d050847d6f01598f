"""float16 and bfloat16 models: a model narrowed, and a fold that is narrowed behind it."""

from __future__ import annotations

from bnpass.frontends.onnx.narrow.model import Narrowed, narrow_model, narrow_type

__all__ = ["Narrowed", "narrow_model", "narrow_type"]
