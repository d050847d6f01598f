"""Shapes and sizes that ONNX's own inference leaves open."""

from bnpass.onnx_model.inference.engine import Known, ShapeEngine, ValueTypes, complete, dims

__all__ = ["Known", "ShapeEngine", "ValueTypes", "complete", "dims"]
