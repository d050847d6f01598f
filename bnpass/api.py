"""The public passes: one function each, for ONNX models and for torch modules alike."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from bnpass.errors import UnsupportedError, UsageError, close_matches

if TYPE_CHECKING:
    from typing import Unpack

    import onnx
    import torch

    from bnpass.passes.fold import FoldPlan
    from bnpass.passes.inspect import Inspection
    from bnpass.passes.sites import InsertPlan
    from bnpass.signatures import (
        ExampleInputs,
        FoldKeywords,
        GraphSource,
        InsertKeywords,
        OnnxSource,
        StripKeywords,
        TorchSource,
    )

    Module = TypeVar("Module", bound=torch.nn.Module)

    from bnpass.deploy import DeployOptions, Proofs
    from bnpass.frontends.onnx.inserting import InsertOptions, Measure
    from bnpass.onnx_model.model import OnnxModel
    from bnpass.passes.sites import Site

P = ParamSpec("P")
R = TypeVar("R")

INITS = ("fresh", "preserve", "calibrated")
SUMS = ("branches", "value")
BRANCHES = ("repvgg", "acnet")
LEFTOVERS = ("bn", "affine")
TRAINING_MODES = ("refuse", "inference")
COLLAPSES = ("bn", "all", "none")


def is_module(model: object) -> bool:
    """Whether a model is a torch module or an exported program, found without importing torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    kinds = (torch.nn.Module, torch.export.ExportedProgram)
    return isinstance(model, kinds)


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        hint = close_matches(value, choices) or "one of " + ", ".join(choices)
        raise UsageError(f"{name} is {value!r}", hint)


def _edited(
    model: Any, output: Any, force: bool, edit: Callable[[OnnxModel], Any], whole: bool = False,
    check: Callable[[Any, Any], None] = lambda *_: None,
) -> Any:
    """The edited ModelProto, or the path that it was written to; the model given is unchanged.

    From file to file, the weights of a large model do not come into memory, unless the edit needs
    the ``whole`` of it. ``check`` is called with what was done and the result, before anything is
    written.
    """
    from bnpass.files import check_output, save_model
    from bnpass.onnx_model.editing import edit_file
    from bnpass.onnx_model.model import OnnxModel

    if output is not None and _is_path(model):
        edit_file(model, output, edit, force=force, whole=whole, check=check)
        return Path(output)
    if output is not None:
        check_output(output, force=force)
    done = edit(OnnxModel.to_edit(model))
    check(done, done.model)
    return done.model if output is None else save_model(done.model, output, force=force)


def _is_path(model: object) -> bool:
    return isinstance(model, str | os.PathLike)


def _check_output(model: Any, output: Any, force: bool) -> None:
    if output is not None:
        from bnpass.files import check_output

        check_output(output, force=force, source=model if _is_path(model) else None)


def _written(result: onnx.ModelProto, model: Any, output: Any, force: bool) -> Any:
    from bnpass.files import save_model

    if output is None:
        return result
    return save_model(result, output, force=force, source=model if _is_path(model) else None)


def _blaming(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose model may be no valid ONNX: then that is the error, with the place."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            from bnpass.onnx_model.faults import blame

            blamed = blame(error, [*args[:1], kwargs.get("model")])
            if blamed is None:
                raise
            raise blamed from error

    _readable(guarded, function)
    return guarded


def _readable(guarded: Any, function: Callable[..., Any]) -> None:
    """Let ``help()`` show names and defaults; the docstring says what types they have."""
    given = signature(function)
    plain = [p.replace(annotation=p.empty) for p in given.parameters.values()]
    guarded.__signature__ = given.replace(parameters=plain, return_annotation=given.empty)


@overload
def insert(
    model: OnnxSource | TorchSource, example_inputs: ExampleInputs = ..., *,
    plan_only: Literal[True], output: None = ..., **options: Unpack[InsertKeywords],
) -> InsertPlan: ...
@overload
def insert(
    model: GraphSource, example_inputs: ExampleInputs = ..., *, plan_only: Literal[False] = ...,
    **options: Unpack[InsertKeywords],
) -> torch.fx.GraphModule: ...
@overload
def insert(
    model: torch.nn.Module, example_inputs: ExampleInputs = ..., *, plan_only: Literal[False] = ...,
    **options: Unpack[InsertKeywords],
) -> torch.nn.Module: ...
@overload
def insert(
    model: OnnxSource, example_inputs: None = ..., *, plan_only: Literal[False] = ...,
    output: None = ..., **options: Unpack[InsertKeywords],
) -> onnx.ModelProto: ...
@overload
def insert(
    model: OnnxSource, example_inputs: None = ..., *, plan_only: Literal[False] = ...,
    output: str | os.PathLike[str], **options: Unpack[InsertKeywords],
) -> Path: ...
@_blaming
def insert(
    model: Any, example_inputs: ExampleInputs = None, *,
    output: str | os.PathLike[str] | None = None, init: str = "fresh", data: Any = None,
    gates: bool = False, last: bool = False, only: Sequence[str] = (), skip: Sequence[str] = (),
    before: Sequence[str] = (), norms: bool = False, allow_unfoldable: bool = False,
    clone: bool = False, sums: str = "branches", linear: bool = False, zero_gamma: bool = False,
    strip: Sequence[str] = (), eps: float = 1e-5, momentum: float = 0.1, sync: bool = False,
    branches: str = "", seed: int = 0, freeze_inputs: bool = False, max_growth: float = 4.0,
    plan_only: bool = False, force: bool = False,
) -> Any:
    """Insert a BatchNorm in front of every nonlinearity and drop the biases it makes redundant.

    Every BatchNorm that is inserted can be folded into the weights in front of it again. Source:
    arXiv:1502.03167, section 3.2.

    Example:
        >>> model = bnpass.insert(module, (torch.zeros(2, 1, 28, 28),))   # torch: trainable copy
        >>> bnpass.insert("net.onnx", output="net.bn.onnx")               # ONNX: a file
        >>> print(bnpass.insert("net.onnx", plan_only=True))              # only where they would go

    Args:
        model: path of an ONNX file or ModelProto; or an nn.Module, GraphModule, ExportedProgram.
        example_inputs: torch only: a tuple of what the module's forward takes; a tensor alone; a
            mapping of keyword arguments. Not needed for what bnpass has made.
        output: ONNX only: write the result there.
        init: ``fresh`` (gamma 1, beta 0: to train from scratch), ``preserve`` (outputs unchanged
            in eval mode, without data) or ``calibrated`` (the same, with the population's
            statistics from ``data``).
        data: for ``calibrated``: batches of inputs.
        gates: also in front of gates (a bounded result that only multiplies another path).
        last: also in front of the last nonlinearity before an output.
        only, skip: glob patterns on the nonlinearities' names and operator types.
        before: operator types, e.g. ``("relu", "sigmoid")``; empty: all.
        norms: also behind a LayerNorm, InstanceNorm or GroupNorm.
        allow_unfoldable: insert also where the BatchNorm could not be folded back.
        clone: duplicate the layer where something else reads its value too.
        sums: where a sum of several layers is normalised: ``branches`` (each of them, as the
            published residual networks do) or ``value`` (the sum).
        linear: also behind layers that no nonlinearity follows (linear bottlenecks).
        zero_gamma: gamma 0 in the BatchNorm that ends a residual branch (``fresh`` only).
        strip: take ``lrn`` or ``dropout`` out first, see :func:`strip`.
        eps: added to the variance.
        momentum: torch's momentum of the running statistics.
        sync: torch only: insert SyncBatchNorm.
        branches: ONNX only: ``repvgg`` or ``acnet``: parallel branches beside the convolutions that
            get a BatchNorm, see :mod:`bnpass.passes.branches`; :func:`fold` makes them one again.
        seed: of the branches' weights.
        freeze_inputs: ONNX only: take initializers that callers may override for constants.
        max_growth: none goes where its fold would copy shared weights until the model is more
            than so many times as large.
        plan_only: return the :class:`~bnpass.passes.sites.InsertPlan` and change nothing.
        force: replace an existing ``output``.

    Returns:
        A ModelProto, or the path written; or a module of the class of the one given, the
        BatchNorms children of its layers (a GraphModule where a site lies in the middle of its
        forward, or where it was one). The model given is unchanged.

    Raises:
        UsageError, InputError, OutputError, UnsupportedError.
    """
    from bnpass.passes.sites import Policy

    _check_start(init, data is not None or plan_only, zero_gamma)
    _choice("sums", sums, SUMS)
    _choice("branches", branches, ("", *BRANCHES))
    policy = Policy(gates, last, tuple(only), tuple(skip), tuple(before), norms, allow_unfoldable,
                    clone, sums, linear, zero_gamma)  # fmt: skip
    if is_module(model):
        return _insert_module(
            model, example_inputs, strip, branches, policy=policy, init=init, data=data, eps=eps,
            momentum=momentum, sync=sync, max_growth=max_growth, plan_only=plan_only,
        )  # fmt: skip
    from bnpass.frontends.onnx.inserting import InsertOptions

    options = InsertOptions(policy, init, eps, momentum, max_growth, freeze_inputs, branches, seed)
    return _insert_onnx(model, options, strip, data, output, plan_only=plan_only, force=force)


def _check_start(init: str, has_data: bool, zero_gamma: bool) -> None:
    _choice("init", init, INITS)
    if init == "calibrated" and not has_data:
        raise UsageError("init='calibrated' needs data", "pass data=..., or use init='preserve'")
    if zero_gamma and init != "fresh":
        raise UsageError(f"zero_gamma changes the function, init={init!r} keeps it",
                         "leave one of them out")


def _insert_module(
    model: Any, example_inputs: ExampleInputs, strip: Sequence[str], branches: str, **options: Any
) -> Any:
    from bnpass.frontends.fx import fx_insert

    if branches:
        raise UnsupportedError(
            "branches are put into ONNX models, not into modules",
            "insert into the exported file; bnpass.to_torch makes a module of it",
        )
    if strip:
        model = _strip(model, strip, example_inputs)
    return fx_insert(model, example_inputs, **options)


def _insert_onnx(
    model: Any, options: InsertOptions, strip: Sequence[str], data: Any, output: Any, *,
    plan_only: bool, force: bool,
) -> Any:
    from bnpass.frontends.onnx import inserting
    from bnpass.onnx_model.model import OnnxModel

    moments = _moments(data) if options.init == "calibrated" else None

    def edit(given: OnnxModel) -> Any:
        if strip:
            inserting.strip(given, inserting.StripOptions(strip))
        return inserting.insert(given, options, moments=moments, plan_only=plan_only)

    if plan_only:
        return edit(OnnxModel.of(model, data=False).copy()).plan
    return _edited(model, output, force, edit, whole=moments is not None)


def _moments(data: Any) -> Measure:
    def measure(model: onnx.ModelProto, sites: Sequence[Site]) -> Any:
        from bnpass.statistics.onnx_engine import batch_moments

        return batch_moments(model, [(site.value, site.axis) for site in sites], data)

    return measure


@overload
def fold(
    model: OnnxSource | TorchSource, example_inputs: ExampleInputs = ..., *,
    plan_only: Literal[True], output: None = ..., **options: Unpack[FoldKeywords],
) -> FoldPlan: ...
@overload
def fold(
    model: GraphSource, example_inputs: ExampleInputs = ..., *, plan_only: Literal[False] = ...,
    **options: Unpack[FoldKeywords],
) -> torch.fx.GraphModule: ...
@overload
def fold(
    model: torch.nn.Module, example_inputs: ExampleInputs = ..., *, plan_only: Literal[False] = ...,
    **options: Unpack[FoldKeywords],
) -> torch.nn.Module: ...
@overload
def fold(
    model: OnnxSource, example_inputs: None = ..., *, plan_only: Literal[False] = ...,
    output: None = ..., **options: Unpack[FoldKeywords],
) -> onnx.ModelProto: ...
@overload
def fold(
    model: OnnxSource, example_inputs: None = ..., *, plan_only: Literal[False] = ...,
    output: str | os.PathLike[str], **options: Unpack[FoldKeywords],
) -> Path: ...
@_blaming
def fold(
    model: Any, example_inputs: ExampleInputs = None, *,
    output: str | os.PathLike[str] | None = None, only: Sequence[str] = (),
    skip: Sequence[str] = (), leftover: str = "bn", training_mode: str = "refuse",
    freeze_inputs: bool = False, max_growth: float = 4.0, fold_norms: bool = False,
    collapse: str = "bn", to: str | None = None, to_io: bool = False, verify: bool = True,
    trust_shapes: bool = False, dims: Mapping[str, int] | None = None,
    data: Iterable[Any] | None = None, plan_only: bool = False, force: bool = False,
) -> Any:
    """Fold every per-channel affine map (BatchNorm, Mul, Add ...) into the weights around it.

    Each map goes backward, or else forward, or is split between both, where that is exact; numbers
    are computed in float64 and rounded once. Source: arXiv:1502.03167, Algorithm 2.

    Example:
        >>> deploy = bnpass.fold(model.eval())                 # torch: no BatchNorm left
        >>> bnpass.fold("net.onnx", output="net.folded.onnx")  # ONNX: verified, then written
        >>> print(bnpass.fold("net.onnx", plan_only=True))     # what goes where, and why not

    Args:
        model: path of an ONNX file or ModelProto; or an nn.Module or GraphModule in eval mode.
        example_inputs: torch only, for a module that :func:`insert` did not make.
        output: ONNX only: write the result there.
        only, skip: glob patterns on operator names.
        leftover: what a chain becomes that cannot fold: ``bn``, or ``affine`` (Mul and Add).
        training_mode: ``inference``: a BatchNorm in training mode means its running statistics;
            ``refuse``: it stays.
        freeze_inputs: take initializers that callers may override for constants; those that a
            fold has used are inputs no longer.
        max_growth: how many times the model may grow where shared weights have to be cloned.
        fold_norms: gamma and beta of norms that are spelt out go forward, too; runtimes that fuse
            such norms then find none.
        collapse: which linear regions become one operator first: those with a
            BatchNorm in them (``bn``), ``all`` or ``none``; see :func:`collapse`.
        to: ONNX only: also convert the folded model to ``"float16"`` or ``"bfloat16"``; see
            :mod:`bnpass.frontends.onnx.half`.
        to_io: with ``to``: inputs and outputs too; they stay float32 otherwise.
        verify: ONNX only: compare with the original on onnxruntime before returning.
        trust_shapes: ONNX only: fold also where a shape is only what the file declares behind an
            operator that nobody knows, and the network cannot be run to check that.
        dims: ONNX only, for the check: sizes of free dimensions by name (``input:axis`` where
            they have none), and values of inputs that are counts.
        data: ONNX only, for the check: batches of inputs instead of random ones.
        plan_only: return the :class:`~bnpass.passes.fold.FoldPlan` and change nothing.
        force: replace an existing ``output``.

    Returns:
        A ModelProto, or the path written, or a module; the model given is unchanged.

    Raises:
        VerificationError: the result differs from the original; nothing is written.
        UsageError, InputError, OutputError, RefusedError, MissingDependencyError.
    """
    _choice("leftover", leftover, LEFTOVERS)
    _choice("collapse", collapse, COLLAPSES)
    _choice("training_mode", training_mode, TRAINING_MODES)
    if is_module(model):
        if to is not None:
            raise UsageError("to= is for ONNX models", "call .half() or .bfloat16() on the result")
        from bnpass.frontends.fx import fx_fold

        return fx_fold(
            model, example_inputs, only=tuple(only), skip=tuple(skip), leftover=leftover,
            training_mode=training_mode, max_growth=max_growth, fold_norms=fold_norms,
            collapse=collapse, plan_only=plan_only,
        )  # fmt: skip
    from bnpass.deploy import DeployOptions, verified
    from bnpass.frontends.onnx.folding import FoldOptions

    folding = FoldOptions(tuple(only), tuple(skip), leftover, training_mode, freeze_inputs,
                          max_growth, fold_norms, collapse)  # fmt: skip
    options = DeployOptions(folding, to=to, io=to_io, trust_shapes=trust_shapes)
    proofs = verified(dims, data) if verify and not plan_only else None
    return _fold_onnx(model, options, proofs, output, plan_only=plan_only, force=force)


def _fold_onnx(
    model: Any, options: DeployOptions, proofs: Proofs | None, output: Any, *, plan_only: bool,
    force: bool,
) -> Any:
    from bnpass.deploy import deploy, deploy_file, plan_deployment
    from bnpass.onnx_model.model import OnnxModel

    _check_output(model, output, force)
    if plan_only:
        return plan_deployment(OnnxModel.of(model, data=False), options).folded.plan
    if output is not None and _is_path(model):
        deploy_file(Path(model), Path(output), options, proofs, force=force)
        return Path(output)
    reference = Path(model) if _is_path(model) else model
    done = deploy(OnnxModel.to_edit(model), options, proofs, reference=reference)
    return _written(done.model, model, output, force)


@_blaming
def collapse(
    model: Any,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    norms_only: bool = False,
    verify: bool = True,
    trust_shapes: bool = False,
    plan_only: bool = False,
    force: bool = False,
) -> Any:
    """Turn every region that is linear in one value into the one operator that computes the same.

    Parallel branches of convolutions (of any kernel, stride, group, dilation and zero padding),
    BatchNorms and other per-channel maps, identities, sums, pools that average their padding, and
    layers that follow each other, wherever the one operator has no more weights and no more
    multiply-adds. Sources: RepVGG (arXiv:2101.03697), Diverse Branch Block (arXiv:2103.13425).

    Args:
        model: path of an ONNX file or ModelProto; or an nn.Module or GraphModule in eval mode.
        example_inputs: torch only, a tuple of tensors as the module's forward takes them.
        output: ONNX only: write the result there.
        only, skip: glob patterns on operator names; ``only`` on those of a region's BatchNorms,
            or of all its operators where it has none.
        norms_only: only regions with a BatchNorm in them, as :func:`fold` does.
        verify: ONNX only: compare with the original before returning.
        trust_shapes: ONNX only: as :func:`fold` takes it.
        plan_only: return the :class:`~bnpass.passes.collapse.CollapsePlan` and change nothing.
        force: replace an existing ``output``.

    Returns:
        A ModelProto, or the path written, or a GraphModule; the model given is unchanged.

    Raises:
        VerificationError: the result differs from the original; nothing is written.
        UsageError, InputError, OutputError, RefusedError.
    """
    if is_module(model):
        from bnpass.frontends.fx import fx_collapse

        mode = "bn" if norms_only else "all"
        return fx_collapse(
            model, example_inputs, mode=mode, only=only, skip=skip, plan_only=plan_only
        )
    from bnpass.frontends.onnx import collapsing
    from bnpass.onnx_model.model import OnnxModel

    _check_output(model, output, force)
    options = collapsing.Options(tuple(only), tuple(skip), "bn" if norms_only else "all")
    given = OnnxModel.of(model)
    edited = given.copy()
    done = collapsing.collapse(edited, options)
    if plan_only:
        return done.plan
    if verify:
        from bnpass.verdict.judge import Edits, judge

        edits = Edits(done.pairs, None, done.correspondences.changed,
                      tuple(sorted(done.declared)), trust_shapes)
        judge(given.proto, edited.proto, edits).raise_if_failed()
    return _written(edited.proto, model, output, force)


@overload
def strip(
    model: GraphSource, what: Sequence[str] = ..., example_inputs: ExampleInputs = ...,
    **options: Unpack[StripKeywords],
) -> torch.fx.GraphModule: ...
@overload
def strip(
    model: torch.nn.Module, what: Sequence[str] = ..., example_inputs: ExampleInputs = ...,
    **options: Unpack[StripKeywords],
) -> torch.nn.Module: ...
@overload
def strip(
    model: OnnxSource, what: Sequence[str] = ..., example_inputs: None = ..., *, output: None = ...,
    **options: Unpack[StripKeywords],
) -> onnx.ModelProto: ...
@overload
def strip(
    model: OnnxSource, what: Sequence[str] = ..., example_inputs: None = ..., *,
    output: str | os.PathLike[str], **options: Unpack[StripKeywords],
) -> Path: ...
@_blaming
def strip(
    model: Any,
    what: Sequence[str] = ("lrn", "dropout"),
    example_inputs: ExampleInputs = None,
    *,
    dropout: float | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    verify: bool = True,
    force: bool = False,
) -> Any:
    """Take out what BatchNorm makes unnecessary: LRN and Dropout (arXiv:1502.03167, 4.2.1).

    Args:
        model: path of an ONNX file or ModelProto; or a torch module.
        what: ``lrn``, ``dropout`` or both.
        example_inputs: torch only, for a module that is not traced yet.
        dropout: keep every Dropout, with this ratio instead.
        only, skip: glob patterns on operator names.
        output: ONNX only: write the result there.
        verify: ONNX only: compare with the original before returning, at inference; where LRNs go,
            with the original without them.
        force: replace an existing ``output``.

    Returns:
        A ModelProto, or the path written, or a module; the model given is unchanged.

    Raises:
        VerificationError: the result computes something else than the original without its LRNs.
    """
    if is_module(model):
        from bnpass.frontends.fx import fx_strip

        return fx_strip(model, what, example_inputs, dropout=dropout, only=only, skip=skip)
    from bnpass.frontends.onnx import inserting as onnx_passes

    options = onnx_passes.StripOptions(what, dropout, only, skip)


    def check(done: onnx_passes.Stripped, result: Any) -> None:
        if verify and done.plan.does_something:
            from bnpass.files import load_model
            from bnpass.verdict.judge import Edits, judge

            given = load_model(model, data=False) if _is_path(model) else model
            original = onnx_passes.without_norms(given, done.plan)
            edits = Edits(done.plan.edits.correspondences, original)
            judge(Path(model) if _is_path(model) else model, result, edits).raise_if_failed()

    return _edited(
        model, output, force, lambda proto: onnx_passes.strip(proto, options), check=check
    )


_strip = strip  # :func:`insert` has an argument of that name


@overload
def calibrate(model: Module, data: Any, *, output: None = ..., **options: Any) -> Module: ...
@overload
def calibrate(
    model: OnnxSource, data: Any, *, output: None = ..., force: bool = ..., **options: Any
) -> onnx.ModelProto: ...
@overload
def calibrate(
    model: OnnxSource, data: Any, *, output: str | os.PathLike[str], force: bool = ...,
    **options: Any,
) -> Path: ...
@_blaming
def calibrate(
    model: Any, data: Any, *, output: Any = None, force: bool = False, **options: Any
) -> Any:
    """Give every BatchNorm the population statistics of the data, in one pass.

    Example:
        >>> bnpass.calibrate(model, images.split(128))  # torch: in place, eval mode
        >>> bnpass.calibrate("net.onnx", batches, output="net.ready.onnx")

    Args:
        model: an ONNX path or ModelProto (runs on onnxruntime, without torch), or a torch module,
            which is changed and left in eval mode.
        data: batches of inputs, or of (inputs, labels).
        output: ONNX only: write the result there.
        force: replace an existing ``output``.
        options: ``method`` (``pooled``, ``paper``, ``ema``), ``batch_size``, ``seed``; see
            :func:`bnpass.statistics.torch_engine.calibrate` and
            :func:`bnpass.statistics.onnx_engine.calibrate_onnx`.

    Returns:
        A ModelProto, or the path written, or the module.
    """
    if is_module(model):
        from bnpass.statistics.torch_engine import calibrate as calibrate_module

        return calibrate_module(model, data, **options)
    from bnpass.statistics.onnx_engine import calibrate_onnx

    _check_output(model, output, force)
    return _written(calibrate_onnx(model, data, **options), model, output, force)


@_blaming
def repair(
    reference: Any,
    damaged: Any,
    data: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    verify: bool = True,
    force: bool = False,
    **options: Any,
) -> Any:
    """Give a pruned, rounded, merged or averaged network the statistics of its original again.

    BatchNorms are inserted into the reference, calibrated; the damaged weights take its weights'
    places, the BatchNorms are calibrated on them and folded: no labels, no gradient. A weight that
    is zero stays zero, a scale of codes that was one a tensor is one a channel afterwards, and a
    network that has its own BatchNorms is only calibrated anew.

    Args:
        reference: an ONNX path or ModelProto: the network as it was.
        damaged: the same graph with other weights, by name.
        data: batches of inputs, or of (inputs, labels).
        output: write the result there.
        verify: compare the fold with what was folded before returning.
        force: replace an existing ``output``.
        options: ``batch_size``, ``seed``; see :func:`calibrate`.

    Returns:
        A ModelProto, or the path written.

    Raises:
        InputError: the two are not one graph, or are quantised.
        VerificationError: the fold is wrong; nothing is written.
    """
    from bnpass.deploy.repair import repair_model
    from bnpass.onnx_model.model import OnnxModel

    _check_output(damaged, output, force)
    before, after = (OnnxModel.of(model).proto for model in (reference, damaged))
    done = repair_model(before, after, data, **options)
    if verify and done.folded.does_something:
        from bnpass.verdict.judge import judge

        judge(done.ready, done.model, done.edits).raise_if_failed()
    return _written(done.model, damaged, output, force)


@_blaming
def inspect(model: Any, example_inputs: ExampleInputs = None) -> Inspection:
    """What is in a model: BatchNorms, nonlinearities, what would fold, what its statistics say.

    Example:
        >>> print(bnpass.inspect("net.onnx"))

    Returns:
        An :class:`~bnpass.passes.inspect.Inspection` with ``to_dict()``.
    """
    if is_module(model):
        from bnpass.frontends.fx import fx_inspect

        return fx_inspect(model, example_inputs)
    from dataclasses import replace

    from bnpass.frontends.onnx.read import read
    from bnpass.onnx_model.facts import facts_of
    from bnpass.onnx_model.model import OnnxModel
    from bnpass.passes.inspect import inspect_graph

    reading = read(OnnxModel.of(model, data=False))
    inside = len(reading.scopes) - 1 + len(reading.model.proto.functions)
    facts = facts_of(reading.model)
    return replace(inspect_graph(reading.main.graph), subgraphs=inside,
                   parameters=facts.parameters, multiply_adds=facts.multiply_adds)
