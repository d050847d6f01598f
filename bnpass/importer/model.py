"""``to_torch``: the public entry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from bnpass.collector import collector_paused
from bnpass.errors import InputError, UnsupportedError, UsageError
from bnpass.frontends.onnx.free_batch import plan_batch
from bnpass.importer.convert import Importer
from bnpass.importer.functions.common import fixed_batch
from bnpass.importer.given import given_inputs, with_constants
from bnpass.importer.inlining import inline_functions
from bnpass.onnx_model.attributes import opsets
from bnpass.onnx_model.shapes import stated
from bnpass.onnx_model.storage.detached import open_light_model
from bnpass.onnx_model.validity import check_model
from bnpass.passes.free_batch import BatchPlan

OLDEST, META = 7, "bnpass"

Batch = Literal["auto", "free", "keep"]


def to_torch(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    batch: Batch = "auto",
    inputs: Mapping[str, Any] | None = None,
) -> torch.fx.GraphModule:
    """Import an ONNX model (opset 7 and newer) as a trainable torch.fx.GraphModule.

    In eval mode it computes what onnxruntime computes; in train mode BatchNormalization and Dropout
    behave as torch's own. Every float weight is an ``nn.Parameter`` at a path derived from its ONNX
    name (a weight that several nodes read is one parameter; it does not require a gradient where
    one of them takes it as a number that steers it, an exponent, say), running statistics are
    buffers of the :class:`~bnpass.importer.modules.BatchNorm` modules. ``gm.meta["bnpass"]`` holds
    ``"origins"`` (path -> :class:`~bnpass.importer.store.Origin`, what :func:`write_back` reads),
    ``"inputs"`` and ``"outputs"`` (ONNX names) and ``"batch"`` (why the batch size is fixed, or
    empty).

    Args:
        model: path, or a ModelProto (not changed).
        batch: ``"auto"`` frees a fixed batch size where it provably is one, and else lets the
            module refuse other sizes; ``"free"`` raises instead; ``"keep"`` leaves it alone.
        inputs: values (arrays or numbers) that inputs of the model have in every run, by name: they
            are no inputs of the module, and an If whose condition they decide can be imported.

    Returns:
        The module, in train mode like every new torch module. Several outputs come as a tuple.

    Raises:
        UnsupportedError: an operator is unknown, or cannot be imported exactly; lists all of them.
        InputError: no ONNX model; a value for an input that there is not, or of another shape; a
            BatchNormalization whose parameters do not fit; or, with ``batch="free"``, no provable
            batch (names the node).
    """
    if batch not in ("auto", "free", "keep"):
        raise UsageError(f"batch={batch!r} is unknown", "take 'auto', 'free' or 'keep'")
    with collector_paused():
        return _imported(model, batch, inputs or {})


def _imported(
    model: str | os.PathLike[str] | onnx.ModelProto, batch: Batch, values: Mapping[str, Any]
) -> torch.fx.GraphModule:
    folder: Path | None = None
    if not isinstance(model, onnx.ModelProto):
        folder, model = Path(model).parent, open_light_model(model)
    check_model(model)
    proto, shared = inline_functions(model)
    versions = opset_versions(proto)
    given = given_inputs(proto, values)
    plan, refusal = _plan(with_constants(proto, given) if given else proto, folder, batch)
    importer = Importer(versions, plan, folder, shared, given)
    inputs, outputs = importer.run(proto)
    if refusal is not None:
        _guard(importer.graph, proto, refusal)
    # The tensors go straight into the module: handed over as its root they would be copied.
    gm = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph(), "ImportedModel")
    origins = importer.store.install(gm)
    gm.graph = importer.graph
    reason = "" if refusal is None else refusal.message
    gm.meta[META] = {"origins": origins, "inputs": inputs, "outputs": outputs, "batch": reason}
    vars(gm)[_PICKLED] = gm.meta[META]
    return gm


_PICKLED = "bnpass_import"  # torch pickles the attributes of a GraphModule, but not its meta


def notes_of(module: torch.nn.Module) -> dict[str, Any]:
    """What the import has noted of a module: origins, inputs, outputs; empty for another one."""
    meta = module.meta if isinstance(module, torch.fx.GraphModule) else {}
    notes: dict[str, Any] = meta.get(META) or vars(module).get(_PICKLED, {})
    return notes


def opset_versions(proto: onnx.ModelProto) -> Mapping[str, int]:
    """Domain -> opset, with the limits of the importer checked.

    Raises:
        UnsupportedError: ONNX's own opset is older than 7 or newer than the installed onnx.
    """
    found = opsets(proto.opset_import)
    opset = found.setdefault("", OLDEST)
    found["ai.onnx"] = opset
    changed = sorted({n.op_type for n in proto.graph.node if not _same_since(n, opset)})
    if changed:
        raise UnsupportedError(
            f"the model has opset {opset}, and {', '.join(changed)} changed before opset {OLDEST}",
            "convert it with onnx.version_converter.convert_version",
        )
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise UnsupportedError(
            f"the model has opset {opset}, the installed onnx knows {newest}",
            "pip install --upgrade onnx",
        )
    return found


def _same_since(node: onnx.NodeProto, opset: int) -> bool:
    """Whether an operator has the meaning that it has in the oldest opset the table reads."""
    if opset >= OLDEST or node.domain not in ("", "ai.onnx"):
        return True
    try:
        then = onnx.defs.get_schema(node.op_type, opset, "").since_version
        since = onnx.defs.get_schema(node.op_type, OLDEST, "").since_version
    except onnx.defs.SchemaError:
        return False
    return bool(then == since)


def _plan(
    proto: onnx.ModelProto, folder: Path | None, batch: Batch
) -> tuple[BatchPlan | None, InputError | None]:
    if batch == "keep":
        return None, None
    try:
        return plan_batch(proto, folder), None
    except InputError as error:
        if batch == "free":
            raise
        return None, error


def _guard(graph: torch.fx.Graph, proto: onnx.ModelProto, refusal: InputError) -> None:
    """Let every input with a fixed axis 0 refuse other sizes instead of computing nonsense."""
    sizes = {i.name: stated(i) for i in proto.graph.input}
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        name = node.meta["onnx"][0]
        dims = sizes[name]
        if not dims or not isinstance(dims[0], int):
            continue
        with graph.inserting_after(node):
            users = list(node.users)
            check = graph.call_function(
                fixed_batch, (node, dims[0], name, refusal.message)
            )
            for user in users:
                user.replace_input_with(node, check)
