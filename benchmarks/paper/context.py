"""What every experiment is given: data, output folder, how many steps and seeds."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnpass.data import Data, from_arrays
from bnpass.errors import InputError
from bnpass.pipeline.datasets import input_spec, open_for
from bnpass.report.ui import Ui

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
SAMPLE = MODELS / "data"


@dataclass(frozen=True)
class Split:
    """Three disjoint sets: rates are chosen on ``validation``, results are told on ``test``."""

    train: Data
    validation: Data
    test: Data


@dataclass
class Context:
    """Settings of one call of the benchmark.

    Attributes:
        out: where CSVs, pictures, models and the table go.
        data: folder with mnist/ and fashion-mnist/ (IDX files), or ``None``: the sample of MNIST.
        scale: factor on every number of steps; below 1 the results are a smoke test.
        seeds: most seeds an arm is trained with.
        images: most training images; a sixth as many are tested on. 0 takes all.
        rates: most learning rates to choose from, spread over the grid. 0 tries all.
        started: of this call, for the log.
        row: the experiment that speaks in the log.
    """

    out: Path
    data: Path | None = None
    scale: float = 1.0
    seeds: int = 3
    images: int = 0
    rates: int = 0
    ui: Ui = field(default_factory=lambda: Ui(quiet=True))
    started: float = field(default_factory=time.perf_counter)
    row: str = ""

    def steps(self, full: int) -> int:
        """The number of steps to train, at least 20."""
        return max(20, round(full * self.scale))

    def seed_list(self, full: int = 3) -> range:
        """The seeds to train an arm with."""
        return range(min(full, self.seeds))

    def points(self, full: int) -> int:
        """Validations in a run; a smoke test does with few."""
        return min(full, 3) if self.images else full

    def grid(self, full: Sequence[float]) -> tuple[float, ...]:
        """The learning rates to choose from, the same for all arms."""
        if not 0 < self.rates < len(full):
            return tuple(full)
        chosen = np.linspace(0, len(full) - 1, self.rates).round().astype(int)
        return tuple(full[i] for i in chosen)

    def folder(self, name: str) -> Path:
        """The folder of one experiment, made."""
        path = self.out / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, text: str) -> None:
        """A line on stderr, with the time since the start and the row."""
        took = time.perf_counter() - self.started
        sys.stderr.write(f"[{took:6.0f} s] {self.row}{': ' if self.row else ''}{text}\n")
        sys.stderr.flush()

    def open(self, name: str, model: Any, *, validation: int = 5000, binary: bool = False) -> Split:
        """``"mnist"`` or ``"fashion-mnist"`` for a model's input.

        Args:
            name: the folder below :attr:`data`.
            model: path of the model or ModelProto.
            validation: most samples held out of the training set.
            binary: black and white pixels, as in the paper's section 4.1.

        Raises:
            InputError: the data is not there; there is a sample of MNIST only.
        """
        where = self._where(name)
        whole, test = (open_for(model, str(where), split=s) for s in ("train", "test"))
        if self.images:
            whole, test = some(whole, self.images), some(test, self.images // 6)
        if binary:
            whole, test = (black_and_white(d, model) for d in (whole, test))
        held = min(validation, len(whole) // 10)
        return Split(*whole.split(held / len(whole), seed=0), test)

    def _where(self, name: str) -> Path:
        where = SAMPLE if self.data is None and name == "mnist" else (self.data or Path()) / name
        if (self.data is None and name != "mnist") or not where.is_dir():
            raise InputError(f"no folder with the IDX files of {name}",
                             f"--data DIR, where DIR/{name}/ holds the four files")
        return where


def some(data: Data, most: int) -> Data:
    """The first samples of a set."""
    return data.subset(np.arange(min(most, len(data))))


def black_and_white(data: Data, model: Any) -> Data:
    """Pixels above one half are 1, all others 0."""
    from bnpass.files import load_model

    parts = [np.asarray(x) > 0.5 for x, _ in data.batches(4096)]
    pixels = np.concatenate(parts).astype(np.uint8)
    return from_arrays(pixels, data.labels, inputs=input_spec(load_model(model)), scale=1.0)
