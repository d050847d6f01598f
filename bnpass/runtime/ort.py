"""The one place that imports onnxruntime, and the one that reads its error texts."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bnpass.errors import BnpassError, InputError, MissingDependencyError, UnsupportedError

INSTALL_CPU = "pip install onnxruntime"
INSTALL_GPU = 'pip install "onnxruntime-gpu[cuda,cudnn]"'

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-training",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-qnn",
)
"""Distributions that all install the same ``onnxruntime`` package, over one another."""


class NoKernelError(UnsupportedError):
    """This onnxruntime has no kernel for an operator of the model in the type that it has there."""


def onnxruntime() -> Any:
    """Return the onnxruntime module.

    Raises:
        MissingDependencyError: it is not installed, or broken (e.g. two of its packages clash).
    """
    try:
        module = importlib.import_module("onnxruntime")
    except ImportError as error:
        if "failed to map segment" in str(error):
            raise MemoryError(_first_line(error)) from error  # the loader found no room
        raise MissingDependencyError(
            f"onnxruntime cannot be imported: {_first_line(error)}",
            f"{INSTALL_CPU}   (or, with an NVIDIA GPU: {INSTALL_GPU})",
        ) from error
    if not hasattr(module, "InferenceSession"):
        raise MissingDependencyError(
            "the onnxruntime package is an empty shell: one of its packages was removed over "
            "another",
            clash_cure(installed_packages()) or f"pip install --force-reinstall {_any_package()}",
        )
    return module


def installed_packages() -> dict[str, str]:
    """Return the installed distributions that provide onnxruntime, with their versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def clash_cure(packages: dict[str, str]) -> str:
    """Return the pip commands that cure a clash of onnxruntime packages; empty if there is none."""
    if len(packages) < 2:
        return ""
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in packages else next(iter(packages))
    # A plain uninstall of one takes files of the other along: both go, one comes back.
    return f"pip uninstall -y {' '.join(packages)} && pip install {keep}"


def _any_package() -> str:
    return next(iter(installed_packages()), "onnxruntime")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence onnxruntime's own log (it prints to stderr what the raised error says anyway)."""
    module = onnxruntime()
    module.set_default_logger_severity(4)
    try:
        yield
    finally:
        module.set_default_logger_severity(2)


_IR_VERSION = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_OPSET = re.compile(r"Opset (\d+) is under development.*?till opset (\d+)", re.DOTALL)
_KERNEL = re.compile(r"Could not find an implementation for (\S+) node with name '([^']*)'")
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def translate(error: Exception, what: str) -> BnpassError:
    """Turn an exception of onnxruntime into one of ours.

    Args:
        error: what onnxruntime raised.
        what: what was being done, for the message (``"cannot load model.onnx"``).
    """
    text = str(error)
    version = onnxruntime().__version__
    update = f"pip install -U {_any_package()}"
    if found := _IR_VERSION.search(text):
        return MissingDependencyError(
            f"{what}: it has IR version {found[1]}, onnxruntime {version} reads up to {found[2]}",
            update,
        )
    if found := _OPSET.search(text):
        return MissingDependencyError(
            f"{what}: it has opset {found[1]}, onnxruntime {version} knows up to {found[2]}", update
        )
    if found := _KERNEL.search(text):
        return NoKernelError(
            f"{what}: onnxruntime {version} has no kernel for {found[1]} at node {found[2]!r} "
            "in the type it has there"
        )
    return InputError(f"{what}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _PREFIX.sub("", lines[0])[:300]
