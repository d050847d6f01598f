"""What `bnpass env` shows: packages, providers that really work, clashes, and cures."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from bnpass.errors import BnpassError
from bnpass.runtime import ort, providers
from bnpass.runtime.session import run, session

CORE = ("numpy", "onnx", "networkx", "rich")
EXTRAS = {
    "torch": "pip install torch",
    "onnxscript": "pip install onnxscript",
    "matplotlib": "pip install matplotlib",
    "safetensors": "pip install safetensors",
    "pillow": "pip install pillow",
    "tensorboard": "pip install tensorboard",
}
"""Packages that some commands need, with the command that installs each."""


@dataclass
class ProviderFact:
    """Whether an execution provider really works, tried with a tiny session.

    Attributes:
        name: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        works: it ran.
        reason: what is missing otherwise.
        hint: what to do about it.
    """

    name: str
    works: bool
    reason: str = ""
    hint: str = ""


@dataclass
class Environment:
    """Facts about this machine.

    Attributes:
        python: version.
        system: operating system and processor.
        cores: processors that this process may use.
        packages: version by name; None for a package that is not installed.
        install: pip command by name of each missing package.
        providers: onnxruntime's.
        gpus: GPUs that the NVIDIA driver shows.
        torch: facts on torch (``cuda``: does it see a GPU; ``devices``: their names).
        problems: (what, cure) pairs.
    """

    python: str
    system: str
    cores: int
    packages: dict[str, str | None]
    install: dict[str, str]
    providers: list[ProviderFact]
    gpus: int
    torch: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts; JSON-able."""
        found = asdict(self)
        found["problems"] = [{"problem": p, "cure": c} for p, c in self.problems]
        return found


def environment(*, torch: bool = True) -> Environment:
    """Look at the machine: what is installed, what works, what to do about the rest.

    Args:
        torch: also import torch (seconds) to ask it about GPUs.
    """
    packages: dict[str, str | None] = {name: _version(name) for name in (*CORE, *EXTRAS)}
    runtimes = ort.installed_packages()
    packages.update(runtimes)
    if not runtimes:
        packages["onnxruntime"] = None
    install = {n: EXTRAS.get(n, f"pip install {n}") for n, v in packages.items() if v is None}
    if not runtimes:
        install["onnxruntime"] = f"{ort.INSTALL_CPU}   (NVIDIA GPU: {ort.INSTALL_GPU})"
    found = Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=_cores(),
        packages=packages,
        install=install,
        providers=[_try(name) for name in providers.PROVIDERS],
        gpus=providers.gpu_count(),
        torch=_torch() if torch and packages["torch"] else {},
    )
    found.problems = _problems(found, runtimes)
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    import os

    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _try(name: str) -> ProviderFact:
    """Run a tiny convolution on a provider (it needs cuBLAS and cuDNN, as real models do)."""
    try:
        (found,) = run(session(_tiny(), name), None, {"x": np.ones((1, 1, 4, 4), np.float32)})
    except BnpassError as error:
        return ProviderFact(name, False, error.message, error.hint)
    right = bool(np.allclose(found, 4.0))
    return ProviderFact(name, right, "" if right else "it computed a wrong result")


def _tiny() -> Any:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (1, 1, 2, 2), [1.0] * 4)
    io = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, size, size])
        for n, size in (("x", 4), ("y", 3))
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "tiny", io[:1], io[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a broken library inside the wheel
        return {"broken": str(error)}
    cuda = torch.cuda.is_available()
    count = torch.cuda.device_count() if cuda else 0
    return {
        "cuda": cuda,
        "built_for": torch.version.cuda or "cpu",
        "devices": [torch.cuda.get_device_name(i) for i in range(count)],
    }


def _problems(found: Environment, runtimes: dict[str, str]) -> list[tuple[str, str]]:
    problems = []
    if cure := ort.clash_cure(runtimes):
        names = " and ".join(runtimes)
        problems.append((f"{names} are installed over one another: which one runs is chance", cure))
    works = {p.name: p for p in found.providers}
    if found.gpus and not works["cuda"].works:
        problems.append((f"a GPU that is not used: {works['cuda'].reason}", works["cuda"].hint))
    if found.gpus and found.torch and not found.torch.get("cuda"):
        problems.append(
            (
                f"torch does not see the GPU (it is built for {found.torch.get('built_for')})",
                "install torch for your CUDA version: https://pytorch.org/get-started",
            )
        )
    if broken := found.torch.get("broken"):
        cure = "pip install --force-reinstall torch"
        problems.append((f"torch cannot be imported: {broken}", cure))
    if not works["cpu"].works and runtimes:
        problems.append((f"onnxruntime does not run: {works['cpu'].reason}", works["cpu"].hint))
    return problems
