"""The bnpass command from a source tree: ``python cli.py fold model.onnx -o folded.onnx``."""

from bnpass.cli import script

if __name__ == "__main__":
    script()
