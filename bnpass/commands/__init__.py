"""The commands of the bnpass program, one module each.

A command's module has a docstring (the text of ``bnpass COMMAND --help``),
``EXAMPLES`` and ``COMMON`` (what ``--help`` shows of it), ``add_arguments(parser)`` and
``run(args, ui) -> int`` (the exit code). Its name and its line in ``bnpass --help`` stand here, so
that nothing has to be imported to list the commands.
"""

from __future__ import annotations

COMMANDS: dict[str, str] = {
    "run": "the whole job: insert, train, calibrate, fold, verify",
    "insert": "put a BatchNorm in front of every nonlinearity",
    "strip": "take out LRN and Dropout",
    "train": "train an ONNX model in PyTorch",
    "calibrate": "population statistics for the BatchNorms, on onnxruntime",
    "fold": "fold every BatchNorm into the weights around it",
    "collapse": "turn linear branches into the one layer that computes the same",
    "repair": "bring a pruned, rounded or merged network's values back, without labels",
    "unfold": "undo a fold exactly, with the sidecar that it wrote",
    "inspect": "show what is in a model and check its BatchNorms",
    "verify": "compare two models on the same inputs",
    "bench": "time models side by side on onnxruntime",
    "draw": "draw the graph of a model",
    "completion": "print what lets bash, zsh or fish complete commands and options",
    "env": "show packages, versions and the providers that really work",
}
