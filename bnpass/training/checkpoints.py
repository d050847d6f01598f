"""Checkpoints: written in one step, read without executing anything, complete to the last bit."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnpass.errors import InputError
from bnpass.files import atomic_write
from bnpass.training.config import TrainConfig
from bnpass.training.history import History

VERSION = 3
_HINT = "give a last.pt or best.pt that bnpass wrote"
_KINDS: dict[str, type] = {
    "step": int, "model": dict, "optimizer": dict, "scaler": dict, "history": str,
    "waited": int, "about": dict, "average": dict,
}
_MAY_CHANGE = {"device", "log_every", "watch", "compile", "checkpoint_every", "metric"}
"""Settings that a resumed run may have otherwise: they do not decide the weights."""


@dataclass(frozen=True)
class Checkpoint:
    """A training run at a step.

    Attributes:
        step: steps done.
        model: the network's ``state_dict``.
        optimizer: the optimizer's.
        scaler: the loss scaler's (fp16).
        history: the run so far.
        waited: validations since the best one.
        about: fingerprints of what it belongs to: the ``network`` and the ``data``.
        average: of the weights, where one is kept.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    history: History
    waited: int = 0
    about: dict[str, str] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the checkpoint; whatever happens, ``path`` is whole: the old one or this one."""
        content = {
            "version": VERSION,
            "step": self.step,
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "history": json.dumps(self.history.to_dict()),
            "waited": self.waited,
            "about": self.about,
            "average": self.average,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        atomic_write(path, buffer.getvalue())


def load_checkpoint(path: Path, config: TrainConfig | None = None) -> Checkpoint:
    """Read a checkpoint (tensors and plain values only: nothing in it is executed).

    Args:
        path: the file.
        config: settings of the run to go on with; those that decide the weights must be the same.

    Raises:
        InputError: no such file, no checkpoint, or one of a run with other settings.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint", "train with an output folder first")
    content = _content(path)
    try:
        history = History.from_dict(json.loads(content["history"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as a checkpoint: its history is odd",
                         _HINT) from error
    found = Checkpoint(content["step"], content["model"], content["optimizer"],
                       content["scaler"], history, content["waited"], content["about"],
                       content["average"])
    if config is not None:
        _check_settings(path, history.config, config.to_dict())
    return found


def _content(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch reads a tensor with a flipped bit without a word
        content: Any = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the two readers raise
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint: {line}", _HINT) from error
    if damaged:
        raise InputError(f"{path}: cannot be read as a checkpoint: {damaged} is damaged", _HINT)
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise InputError(f"{path}: a checkpoint of version {version}, not {VERSION}",
                         "go on with the bnpass that wrote it, or start a new run with --force")
    odd = [key for key, kind in _KINDS.items()
           if not isinstance(content, dict) or not isinstance(content.get(key), kind)]
    if odd or not isinstance(version, int) or content["step"] < 1:
        raise InputError(f"{path}: cannot be read as a checkpoint: it holds something else", _HINT)
    return content  # type: ignore[no-any-return]


def restore(
    module: nn.Module, checkpoint: Checkpoint, path: Path, about: dict[str, str] | None = None
) -> None:
    """Put a checkpoint's weights and statistics into a network.

    Args:
        module: the network.
        checkpoint: of a run.
        path: where it was read, for messages.
        about: the fingerprints that its own must be equal to.

    Raises:
        InputError: they are those of another network, or of a run on other data.
    """
    for what, fingerprint in (about or {}).items():
        if checkpoint.about.get(what) != fingerprint:
            whose = "another network" if what == "network" else "a run on other data"
            raise InputError(f"{path}: a checkpoint of {whose}",
                             "resume with the model and the data that the run was started with")
    try:
        module.load_state_dict(checkpoint.model)
    except (RuntimeError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: a checkpoint of another network: {line}",
                         "resume with the model that the run was started with") from error


def restore_optimizer(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, checkpoint: Checkpoint,
    path: Path,
) -> None:
    """Put a checkpoint's state into an optimizer and a loss scaler.

    Raises:
        InputError: it is that of another one.
    """
    try:
        optimizer.load_state_dict(checkpoint.optimizer)
        scaler.load_state_dict(checkpoint.scaler)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: a checkpoint of another optimizer: {error}", _HINT) from error


def _check_settings(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [k for k in new if k not in _MAY_CHANGE and old.get(k) != new[k]]
    if changed:
        first = changed[0]
        raise InputError(
            f"{path}: the run had {first} {old.get(first)!r}, not {new[first]!r}",
            "resume with the settings of the run, or start a new one in another folder",
        )
