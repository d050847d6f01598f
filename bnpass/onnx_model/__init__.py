"""ONNX files in memory: one object that reads, looks up, names, edits and saves."""
