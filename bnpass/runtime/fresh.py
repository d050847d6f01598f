"""Runs a model once in a process of its own, for the determinism report.

``python -m bnpass.runtime.fresh MODEL FOLDER PROVIDER`` reads FOLDER/in.npz, writes FOLDER/out.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from bnpass.runtime.mapping import candidate_feeds
from bnpass.runtime.session import run, session


def main(model: str, folder: str, provider: str) -> None:
    """Run the model on the inputs of the folder."""
    from bnpass.files import load_model

    with np.load(Path(folder) / "in.npz") as held:
        feeds = candidate_feeds(dict(held), load_model(model, data=False))
    found = run(session(model, provider), None, feeds)
    wide = [a.astype(np.float32) if a.dtype.name == "bfloat16" else a for a in found]
    np.savez(Path(folder) / "out.npz", **{f"out{i}": a for i, a in enumerate(wide)})


if __name__ == "__main__":
    main(*sys.argv[1:4])
