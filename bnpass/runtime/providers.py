"""Execution providers: their settings, their libraries, and what is missing for them."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bnpass.errors import MissingDependencyError, UsageError
from bnpass.runtime import ort

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Our names of the providers and onnxruntime's."""

_LIBRARY = {
    "cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
}
_DYNAMIC, _NEEDED = 6, 1  # ELF: SHT_DYNAMIC, DT_NEEDED


def prepare(provider: str) -> None:
    """Make sure that onnxruntime was built with a provider, and load its libraries.

    Raises:
        MissingDependencyError: the installed onnxruntime does not have the provider.
    """
    module = ort.onnxruntime()
    if provider == "cpu":
        return
    wanted = PROVIDERS[provider]
    if wanted not in module.get_available_providers():
        raise MissingDependencyError(
            f"the installed onnxruntime {module.__version__} has no {wanted}", _install_gpu()
        )
    _preload(module)


def _install_gpu() -> str:
    installed = [name for name in ort.installed_packages() if name != "onnxruntime-gpu"]
    first = f"pip uninstall -y {' '.join(installed)} && " if installed else ""
    return first + ort.INSTALL_GPU


@cache
def _preload(module: Any) -> None:
    """Load CUDA's libraries from the nvidia wheels (torch brings them too), once."""
    if hasattr(module, "preload_dlls"):
        import contextlib
        import io

        # It prints what it does not find; check() says that better.
        with contextlib.redirect_stdout(io.StringIO()):
            module.preload_dlls()


def settings(
    provider: str, *, deterministic: bool, tf32: bool, cuda_graph: bool, device_id: int,
    more: Mapping[str, str] = MappingProxyType({}),
) -> list[Any]:
    """Return onnxruntime's ``providers`` argument; see :func:`bnpass.runtime.session.session`.

    Raises:
        UsageError: options for the CPU.
    """
    cuda = {
        "device_id": str(device_id),
        "use_tf32": str(int(tf32)),
        # DEFAULT is one fixed algorithm; EXHAUSTIVE times them all, so runs may choose differently.
        "cudnn_conv_algo_search": "DEFAULT" if deterministic else "EXHAUSTIVE",
        "enable_cuda_graph": str(int(cuda_graph)),
    }
    cpu: list[Any] = [PROVIDERS["cpu"]]
    if provider == "cpu":
        if more or tf32 or cuda_graph:
            given = next(iter(more), "TF32" if tf32 else "a CUDA graph")
            raise UsageError(f"{given} on the CPU", "it is for --provider cuda or tensorrt")
        return cpu
    if provider == "cuda":
        return [(PROVIDERS["cuda"], {**cuda, **more}), *cpu]
    tensorrt = {"device_id": str(device_id), "trt_cuda_graph_enable": str(int(cuda_graph)), **more}
    return [(PROVIDERS["tensorrt"], tensorrt), (PROVIDERS["cuda"], cuda), *cpu]


def check(session: Any, provider: str) -> None:
    """Raise unless the session really has the provider that was asked for.

    onnxruntime builds the session on the CPU, with only a log line, when a library is missing.

    Raises:
        MissingDependencyError: it has not; the message says which library is missing.
    """
    if PROVIDERS[provider] not in session.get_providers():
        raise explain(provider)


def explain(provider: str) -> MissingDependencyError:
    """Find out why a provider does not start: a library, the driver, the GPU."""
    missing = missing_libraries(provider)
    if missing:
        return MissingDependencyError(
            f"{PROVIDERS[provider]} cannot start: missing {', '.join(missing)}",
            _library_hint(missing),
        )
    if not gpu_count():
        return MissingDependencyError(
            f"{PROVIDERS[provider]} cannot start: no NVIDIA GPU or driver is visible",
            "nvidia-smi must list a GPU; in a container start it with the GPU passed through",
        )
    said = _load_error(provider) or "onnxruntime says no more"
    return MissingDependencyError(
        f"{PROVIDERS[provider]} cannot start: {said}",
        "compare the CUDA and cuDNN versions: `bnpass env` lists them",
    )


def _library_hint(missing: list[str]) -> str:
    if missing == ["libcuda.so.1"]:
        return "install the NVIDIA driver; in a container start it with the GPU passed through"
    if any("nvinfer" in name or "nvonnxparser" in name for name in missing):
        return "pip install tensorrt   (and " + ort.INSTALL_GPU + ")"
    return ort.INSTALL_GPU


def missing_libraries(provider: str) -> list[str]:
    """Return the shared libraries that a provider needs and the loader cannot find."""
    path = _provider_library(provider)
    if path is None:
        return [_LIBRARY[provider]]
    found = [name for name in _needed(path) if not _loads(name)]
    # Our own sibling is found by the file's run path, not by the loader's.
    return [name for name in found if not name.startswith("libonnxruntime")]


def _provider_library(provider: str) -> Path | None:
    path = Path(ort.onnxruntime().__file__).parent / "capi" / _LIBRARY[provider]
    return path if path.is_file() else None


def _needed(path: Path) -> list[str]:
    """Read the libraries that a 64-bit ELF file links to (its DT_NEEDED entries)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:5] != b"\x7fELF\x02":
            return []
        sections = _sections(data)
        dynamic = next((s for s in sections if s[1] == _DYNAMIC), None)
        if dynamic is None:
            return []
        strings = sections[dynamic[6]][4]
        names = []
        for at in range(dynamic[4], dynamic[4] + dynamic[5], 16):
            tag, value = struct.unpack_from("<qQ", data, at)
            if tag == _NEEDED:
                start = strings + value
                names.append(data[start : data.find(b"\0", start)].decode())
    return names


def _sections(data: mmap.mmap) -> list[tuple[int, ...]]:
    """Return the section headers: name, type, flags, address, offset, size, link, ..."""
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    return [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _load_error(provider: str) -> str:
    path = _provider_library(provider)
    if path is None:
        return ""
    try:
        ctypes.CDLL(str(path.parent / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)
    return ""


def gpu_count() -> int:
    """Return the number of NVIDIA GPUs that the driver shows, 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
