"""The neutral view of a network, the algebra of per-channel maps, and edits: no onnx, no torch."""
