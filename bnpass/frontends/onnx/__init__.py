"""The ONNX frontend: reads a ModelProto as neutral graphs and applies what a pass has planned.

Edits are surgical: names, doc strings, metadata, symbolic dimensions, opset, IR version and the
order of everything that stays are left as they are.
"""
