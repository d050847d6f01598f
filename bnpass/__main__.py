"""The bnpass command as a module: ``python -m bnpass fold model.onnx -o folded.onnx``."""

from bnpass.cli import script

if __name__ == "__main__":
    script()
