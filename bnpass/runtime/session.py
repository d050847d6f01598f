"""Deployment sessions on onnxruntime: the provider that was asked for, or an error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx

from bnpass.errors import InputError, NotLoadedError, UsageError, close_matches
from bnpass.runtime import ort, providers

Model = str | os.PathLike[str] | onnx.ModelProto | bytes
"""A model file, a model in memory, or a serialised one."""

_TWO_GIB = 2**31 - 1


def session(
    model: Model,
    provider: str = "cpu",
    *,
    optimize: bool = True,
    deterministic: bool = True,
    threads: int | None = None,
    spinning: bool = True,
    tf32: bool = False,
    cuda_graph: bool = False,
    device_id: int = 0,
    provider_options: Mapping[str, str] = MappingProxyType({}),
    folder: str | os.PathLike[str] | None = None,
    disabled: Sequence[str] = (),
    name: str = "",
) -> Any:
    """Build an onnxruntime session with settings that suit deployment.

    Args:
        model: a path (external data stays on disk and is mapped by onnxruntime), a ModelProto
            (serialised; beyond 2 GiB it goes through a temporary file) or its bytes.
        provider: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``. Never replaced by another one.
        optimize: onnxruntime's graph optimizations. Off for a reference: its basic level folds
            Conv+BN itself at load and would hide a mistake.
        deterministic: kernels that give the same bits in every run (``use_deterministic_compute``)
            and, on CUDA, one fixed convolution algorithm instead of a timed search.
        threads: threads inside one operator; None leaves it to onnxruntime (all cores).
        spinning: let threads that wait for work spin, which is faster and costs a core's time.
        tf32: on CUDA, let float32 matrix products round their operands to 10 bits.
        cuda_graph: on CUDA, record the kernels once and replay them: needs fixed shapes and IO
            binding with fixed addresses.
        device_id: which GPU.
        provider_options: onnxruntime's own options of the provider, by their names.
        folder: where the external data of a ModelProto that was loaded without it lies.
        disabled: names of graph optimizers to leave out.
        name: what messages call the model.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        MissingDependencyError: onnxruntime, the provider, or one of its libraries is missing; or
            the model is newer than the installed onnxruntime.
        NoKernelError: onnxruntime has no kernel for an operator in the type it has there.
        InputError: the model is missing or broken.
        UsageError: no such provider.
    """
    if provider not in providers.PROVIDERS:
        hint = close_matches(provider, providers.PROVIDERS) or "choose cpu, cuda or tensorrt"
        raise UsageError(f"unknown provider {provider!r}", hint)
    providers.prepare(provider)
    options = _options(optimize, deterministic, threads, spinning)
    if folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, os.fspath(folder))
    settings = providers.settings(
        provider, deterministic=deterministic, tf32=tf32, cuda_graph=cuda_graph,
        device_id=device_id, more=provider_options,
    )  # fmt: skip
    try:
        built = _create(model, options, settings, list(disabled), name)
    except InputError:
        if provider != "cpu" and providers.missing_libraries(provider):
            raise providers.explain(provider) from None
        raise
    providers.check(built, provider)
    return built


def _options(optimize: bool, deterministic: bool, threads: int | None, spinning: bool) -> Any:
    module = ort.onnxruntime()
    options = module.SessionOptions()
    levels = module.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.use_deterministic_compute = deterministic
    options.log_severity_level = 4
    options.inter_op_num_threads = 1
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        options.intra_op_num_threads = threads
    return options


def _create(
    model: Model, options: Any, settings: list[Any], disabled: list[str], name: str
) -> Any:
    def load(source: str | bytes, otherwise: str) -> Any:
        return _load(source, options, settings, disabled, name or otherwise)

    if isinstance(model, bytes):
        return load(model, "the model")
    if not isinstance(model, onnx.ModelProto):
        return load(_existing(model), os.fspath(model))
    if model.ByteSize() < _TWO_GIB:
        return load(model.SerializeToString(), "the model")
    from bnpass.files import save_model

    # The data is mapped or copied while the session is built: the file may go afterwards.
    with tempfile.TemporaryDirectory(prefix="bnpass-") as place:
        path = save_model(model, Path(place) / "model.onnx", external=True)
        return load(os.fspath(path), "the model")


def _existing(path: str | os.PathLike[str]) -> str:
    if not Path(path).is_file():
        raise InputError(f"no such model file: {os.fspath(path)}", "check the path")
    return os.fspath(path)


def _load(
    source: str | bytes, options: Any, settings: list[Any], disabled: list[str], name: str
) -> Any:
    module = ort.onnxruntime()
    try:
        with ort.quiet():
            # Its own fallback would go on with another provider.
            return module.InferenceSession(
                source, options, providers=settings, enable_fallback=0, disabled_optimizers=disabled
            )
    except Exception as error:
        known = ort.translate(error, f"onnxruntime cannot load {name}")
        if type(known) is InputError:
            known = NotLoadedError(known.message, known.hint)
        raise known from error


def run(built: Any, outputs: list[str] | None, feeds: dict[str, Any]) -> list[Any]:
    """Run a session; bfloat16 goes in and out as ``ml_dtypes.bfloat16`` arrays.

    Args:
        built: an ``onnxruntime.InferenceSession``.
        outputs: names of the outputs to compute, None for all.
        feeds: arrays by input name.

    Raises:
        InputError: onnxruntime refuses the inputs or fails in a node.
        NoKernelError: it finds out only now that it has no kernel.
    """
    names = outputs if outputs is not None else [o.name for o in built.get_outputs()]
    try:
        with ort.quiet():
            if _plain(built):
                return list(built.run(names, feeds))
            return _run_values(built, names, feeds)
    except Exception as error:
        raise ort.translate(error, "onnxruntime cannot run the model") from error


def _plain(built: Any) -> bool:
    """Say whether numpy knows every type: ``session.run`` takes no bfloat16 and no float8."""
    types = {str(o.type) for o in [*built.get_inputs(), *built.get_outputs()]}
    return not any("bfloat16" in t or "float8" in t for t in types)


def _run_values(built: Any, names: list[str], feeds: dict[str, Any]) -> list[Any]:
    module = ort.onnxruntime()
    kinds = {i.name: str(i.type) for i in built.get_inputs()}
    values = {name: _value(module, array, kinds[name]) for name, array in feeds.items()}
    wanted = {o.name: str(o.type) for o in built.get_outputs()}
    found = built.run_with_ort_values(names, values)
    return [_array(value, wanted[name]) for name, value in zip(names, found, strict=True)]


def _value(module: Any, array: Any, kind: str) -> Any:
    import numpy as np

    if "bfloat16" not in kind:
        return module.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    raw = np.ascontiguousarray(array).view(np.uint16)
    return module.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, onnx.TensorProto.BFLOAT16)


def _array(value: Any, kind: str) -> Any:
    if "bfloat16" not in kind:
        return value.numpy()
    import ctypes

    import ml_dtypes
    import numpy as np

    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.zeros(shape, ml_dtypes.bfloat16)
    # OrtValue.numpy() knows no bfloat16: read the bits where they lie (outputs are on the CPU).
    buffer = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.array(buffer, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(shape)
