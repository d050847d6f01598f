"""torch -> ONNX through torch's own exporter, checked on onnxruntime against the torch module."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import InputError, MissingDependencyError, UnsupportedError
from bnpass.files import check_output, save_model

if TYPE_CHECKING:
    import onnx
    import torch

_BATCH = "batch"


def export(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    force: bool = False,
    verify: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    external: bool | None = None,
    seed: int = 0,
) -> Path:
    """Write a torch module as an ONNX file, as inference sees it (eval mode, whatever its mode).

    The exporter's own optimizer stays off: it would fold BatchNorms without being asked. A network
    that still has BatchNorms keeps them as nodes and can continue as an ONNX file.

    Args:
        module: nn.Module or GraphModule; unchanged.
        example_inputs: a tuple of what ``forward`` takes, batch first.
        path: the file to write.
        dynamic_batch: let axis 0 of every input be free (named ``batch``).
        force: replace an existing file.
        verify: compare with the module on onnxruntime before anything is written.
        input_names, output_names: names in the ONNX graph.
        opset: ONNX opset; None: the exporter's own choice.
        external: weights in a file of their own; None: only above 2 GiB.
        seed: of the inputs of the verification.

    Returns:
        The path written.

    Raises:
        MissingDependencyError: torch, onnxscript or onnxruntime is missing.
        UnsupportedError: the exporter cannot translate the module.
        VerificationError: onnxruntime does not compute what torch does; nothing is written.
        OutputError: the path exists, or cannot be written.
    """
    _check_packages(verify)
    check_output(path, force=force)
    from bnpass.frontends.fx.copying import duplicate
    from bnpass.frontends.fx.info import as_tuple

    inputs = tuple(_on_cpu(x) for x in as_tuple(example_inputs))
    still = duplicate(module).cpu().eval()
    names = {"input_names": input_names, "output_names": output_names, "opset_version": opset}
    proto = _to_onnx(still, inputs, dynamic_batch, {k: v for k, v in names.items() if v})
    if verify:
        from bnpass.runtime.verify import verify as compare

        compare(still, proto, seed=seed).raise_if_failed()
    return save_model(proto, path, force=force, external=external)


def _check_packages(verify: bool) -> None:
    wanted = ["torch", "onnxscript", *(["onnxruntime"] if verify else [])]
    for package in wanted:
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"export needs {package}, which is not installed", f"pip install {package}"
            )


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if hasattr(value, "detach") else value


def _to_onnx(
    module: torch.nn.Module, inputs: tuple[Any, ...], dynamic: bool, options: dict[str, Any]
) -> onnx.ModelProto:
    import torch

    if dynamic:
        inputs = tuple(_two_samples(x) for x in inputs)
        options["dynamic_shapes"] = tuple(
            {0: _BATCH} if isinstance(x, torch.Tensor) and x.dim() else None for x in inputs
        )
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, inputs, dynamo=True, optimize=False, verbose=False, **options
            )
    except Exception as error:  # the exporter raises whatever it meets
        raise _failed(error, dynamic) from error
    if program is None:
        raise UnsupportedError("torch's exporter gave no model")
    _tidy(program.model)
    proto: onnx.ModelProto = program.model_proto
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    _drop_made_biases(proto, own)
    _drop_traces(proto)
    if dynamic:
        _check_batch(proto)
    return proto


def _tidy(model: Any) -> None:
    """Evaluate constants (biases of zeros, axes); no rewriting, so that BatchNorms stay."""
    from onnxscript import optimizer

    optimizer.fold_constants(model, onnx_shape_inference=False)
    optimizer.remove_unused_nodes(model)


def _drop_made_biases(model: onnx.ModelProto, own: set[str]) -> None:
    """The exporter gives a convolution without a bias one of zeros: it goes."""
    from onnx import numpy_helper

    from bnpass.onnx_model.scopes import has_bodies

    held = {t.name: t for t in model.graph.initializer if t.name not in own}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.input) < 3:
            continue
        bias = held.get(node.input[2])
        if bias is not None and not numpy_helper.to_array(bias).any():
            del node.input[2]
    read = {name for node in model.graph.node for name in node.input}
    if any(has_bodies(node) for node in model.graph.node):
        return  # nested graphs could read an initializer
    dead = {name for name in held if name not in read}
    for place in reversed([i for i, t in enumerate(model.graph.initializer) if t.name in dead]):
        del model.graph.initializer[place]


def _drop_traces(model: onnx.ModelProto) -> None:
    """The exporter notes the source lines and paths of whoever ran it: they go."""
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    infos = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    for holder in (*nodes, *infos, *model.graph.initializer, model.graph):
        notes = [(p.key, p.value) for p in holder.metadata_props]
        kept = [(key, value) for key, value in notes if not key.startswith("pkg.torch")]
        if len(kept) < len(holder.metadata_props):
            del holder.metadata_props[:]
            for key, value in kept:
                holder.metadata_props.add(key=key, value=value)


def _two_samples(value: Any) -> Any:
    """The exporter takes a batch of 1 for a constant."""
    import torch

    single = isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == 1
    return torch.cat([value, value]) if single else value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's chatter on stdout, in warnings and in the log is not for the user."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _failed(error: Exception, dynamic: bool) -> UnsupportedError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else type(cause).__name__
    hint = "the batch may be fixed in the code: try dynamic_batch=False" if dynamic else ""
    return UnsupportedError(f"torch's exporter cannot translate the module: {text}", hint)


def _check_batch(proto: onnx.ModelProto) -> None:
    from bnpass.onnx_model.shapes import stated

    for value in proto.graph.input:
        dims = stated(value)
        if dims and isinstance(dims[0], int):
            raise InputError(
                f"the exporter has fixed the batch of {value.name!r} at {dims[0]}",
                "the module's code may use the batch size; else pass dynamic_batch=False",
            )
