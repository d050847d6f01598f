"""What runs a model in a verification: onnxruntime, its stand-ins, or a torch module itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from bnpass.errors import BnpassError, InputError, MissingDependencyError
from bnpass.onnx_model.attributes import is_onnx
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import all_nodes
from bnpass.onnx_model.shapes import with_open_sizes
from bnpass.onnx_model.signature import inputs_of, is_float, outputs_of
from bnpass.runtime import ort
from bnpass.runtime.child import NORMAL, CrashError, Limits, shared
from bnpass.runtime.inputs import Feeds
from bnpass.runtime.session import session

Array = np.ndarray[Any, Any]


class Engine(Protocol):
    """Runs one model; ``kind`` is what the report says."""

    kind: str

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return every output by name."""


class Loaded(OnnxModel):
    """An ONNX model that can be run, and the file that it came from.

    Args:
        proto: the model; external data is not read into it when it came from a file.
        path: the file, None for a model in memory.
        edited: ``proto`` is not what the file holds; the file's folder has its external data.

    Sizes of 0 and below are left open: onnxruntime takes 0 by its word, and no input fits.
    """

    def __init__(
        self, proto: onnx.ModelProto, path: Path | None = None, edited: bool = False
    ) -> None:
        freed = with_open_sizes(proto)
        super().__init__(freed, None if path is None else path.parent)
        self.path, self.edited = path, edited or (freed is not proto and path is not None)

    @classmethod
    def load(cls, model: str | os.PathLike[str] | onnx.ModelProto | Loaded) -> Loaded:
        """Load a path, or wrap a ModelProto; what is loaded comes back."""
        from bnpass.files import load_model

        if isinstance(model, Loaded):
            return model
        if isinstance(model, onnx.ModelProto):
            return cls(model)
        if Path(model).is_symlink():  # onnxruntime takes no data from where a link leads
            return cls(load_model(model))
        return cls(load_model(model, data=False), Path(model))

    def session(self, *, edited: bool = False, **options: Any) -> Any:
        """Build a session; ``edited`` says that ``proto`` is not what the file holds."""
        if self.path is None:
            return session(self.proto, **options)
        if not edited:
            return session(self.path, **options)
        return session(self.proto, folder=self.path.parent.resolve(), **options)

    def remote(self, *, edited: bool = False, limits: Limits = NORMAL, **options: Any) -> Any:
        """As :meth:`session`, in the child process that verifications share."""
        if self.path is None:
            return shared().session(self.proto, limits=limits, **options)
        name = os.fspath(self.path)
        if not (edited or self.edited):
            return shared().session(self.path, limits=limits, **options)
        folder = self.path.parent.resolve()
        return shared().session(self.proto, limits=limits, name=name, folder=folder, **options)


class OrtEngine:
    """onnxruntime, in a child process."""

    kind = "onnxruntime"

    def __init__(self, model: Loaded, outputs: Sequence[str] | None = None, **options: Any) -> None:
        """Build the session; ``outputs`` are fetched instead of the model's own.

        ``options`` are those of :func:`bnpass.runtime.session.session`, and ``limits``.
        """
        own = {o.name for o in model.proto.graph.output}
        extra = [name for name in outputs or () if name not in own]
        self.names = (
            list(outputs) if outputs is not None else [o.name for o in model.proto.graph.output]
        )
        if not extra:
            self.session = model.remote(**options)
            return
        # Appended and taken off again: a copy would double the memory of a large model.
        count = len(model.proto.graph.output)
        model.proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        try:
            self.session = model.remote(edited=True, **options)
        finally:
            del model.proto.graph.output[count:]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See :class:`Engine`."""
        return self.fetch(feeds, self.names)

    def fetch(self, feeds: Feeds, names: list[str]) -> dict[str, Array]:
        """Compute some of the outputs only."""
        return dict(zip(names, self.session.run(names, feeds), strict=True))


class OwnEngine:
    """Our own evaluator in float64: it needs no kernels, and judges no operator by its type.

    onnx's ReferenceEvaluator does not stand in: it mixes the batch's statistics into a
    BatchNormalization of opset 9 to 13, as momentum has a default there.
    """

    kind = "bnpass float64"

    def __init__(self, model: onnx.ModelProto) -> None:
        """Prepare the evaluator.

        Raises:
            UnsupportedError: it does not know an operator of the model.
        """
        from bnpass.verdict.evaluator import Evaluator, UnknownOperatorError, known

        own = {(f.domain, f.name) for f in model.functions}
        for node in all_nodes(model):
            kind = node.op_type if is_onnx(node) else f"{node.domain}::{node.op_type}"
            if not known(kind) and (node.domain, node.op_type) not in own:
                raise UnknownOperatorError(f"the evaluator does not know {kind}")
        self.evaluator = Evaluator(model)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See :class:`Engine`."""
        return self.evaluator.run(feeds)


class TorchEngine:
    """A torch module, in eval mode while it runs; its training flags come back afterwards."""

    def __init__(self, module: Any, ports: Sequence[str], kind: str = "torch") -> None:
        """Wrap a module whose positional inputs are called ``ports``."""
        self.module, self.ports, self.kind = module, list(ports), kind

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See :class:`Engine`; outputs are ``output0``, ``output1`` ... or a dict's own keys."""
        import torch

        modes = {m: m.training for m in self.module.modules()}
        like = next(self.module.parameters(), None)
        self.module.eval()
        try:
            with torch.no_grad():
                given = [_tensor(feeds[name], like) for name in self.ports]
                return _named(self.module(*given))
        finally:
            for module, mode in modes.items():
                module.training = mode


def _tensor(array: Array, like: Any) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        bits = np.ascontiguousarray(array).view(np.int16).copy()
        tensor = torch.from_numpy(bits).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.array(array))
    if like is None:
        return tensor
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() else None)


def _named(found: Any) -> dict[str, Array]:
    if isinstance(found, dict):
        return {str(name): _numpy(value) for name, value in found.items()}
    values = found if isinstance(found, tuple | list) else [found]
    return {f"output{i}": _numpy(value) for i, value in enumerate(values)}


def _numpy(tensor: Any) -> Array:
    import torch

    tensor = tensor.detach().cpu()
    wide = tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor
    return np.asarray(wide.numpy())


def is_module(model: object) -> bool:
    """Say whether something is a torch module, without importing torch."""
    import sys

    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def onnx_engine(model: Loaded, **options: Any) -> Engine:
    """Return onnxruntime for a model, or a stand-in where it has no kernel.

    Args:
        model: the model.
        **options: of :func:`bnpass.runtime.session.session`.

    Raises:
        NoKernelError: no stand-in can run it either.
    """
    try:
        return _onnxruntime(model, **options)
    except (ort.NoKernelError, CrashError) as error:
        if options.get("provider", "cpu") != "cpu":
            raise
        return stand_in(model, error)


def _onnxruntime(model: Loaded, **options: Any) -> Engine:
    from bnpass.runtime import parts

    if parts.worth_it(model.proto) and options.get("provider", "cpu") == "cpu":
        found = parts.split(model.proto)
        return parts.PartsEngine(model, found, lambda: OrtEngine(model, **options), **options)
    return OrtEngine(model, **options)


def close(engine: Engine) -> None:
    """Free what an engine holds, where it holds something in another process."""
    if isinstance(engine, OrtEngine):
        engine.session.close()
    elif hasattr(engine, "close"):
        engine.close()


_SLOW = 200  # nodes: from here on numpy's convolutions take long enough to prefer torch


def stand_in(model: Loaded, cause: BnpassError) -> Engine:
    """Return an engine for a model that onnxruntime's CPU provider cannot run."""
    choices = [_own, _torch_float64]
    if sum(1 for _ in all_nodes(model.proto)) > _SLOW:
        choices.reverse()
    for choice in choices:
        try:
            return choice(model)
        except (InputError, MissingDependencyError, ImportError):
            continue
    raise cause


def _own(model: Loaded) -> Engine:
    return OwnEngine(model.embedded())


def _torch_float64(model: Loaded) -> Engine:
    return Float64Engine(model)


class Float64Engine:
    """The model imported into torch and computed in float64, under the model's own names."""

    kind = "torch float64"

    def __init__(self, model: Loaded) -> None:
        """Import the model."""
        from bnpass.importer import to_torch

        module = to_torch(model.embedded()).double()
        self.inner = TorchEngine(module, [p.name for p in inputs_of(model.proto)])
        self.names = [p.name for p in outputs_of(model.proto)]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See :class:`Engine`."""
        wide = {n: a.astype(np.float64) if is_float(a.dtype) else a for n, a in feeds.items()}
        found = self.inner.run(wide)
        return dict(zip(self.names, found.values(), strict=True))
