"""Passes: a graph in, a plan out. Nothing here knows onnx or torch, and nothing is edited."""
