"""The functions that an imported graph calls where no single torch call says the same.

Every function takes and returns tensors, has the name and the meaning of its ONNX operator (newest
version), and computes on the device of its data. ``Ints`` arguments are a tuple of ints, or a
tensor where the model computes them.
"""
