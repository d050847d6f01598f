"""Running models: onnxruntime sessions, verification, calibration, determinism, timing.

Nothing heavy is imported here: onnxruntime comes in through :mod:`bnpass.runtime.ort`, torch only
where a torch module is given.
"""
