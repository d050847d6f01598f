"""The one way to a deployed model, under the API, the command and ``run``.

1. Normalise: scale, mean and std of the input come in front, to be folded with the rest.
2. Fold; the result is proved against the model given.
3. Narrow, where a type is given; proved once more, with the tolerance of that type.
4. Write: all or nothing, after the proofs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bnpass.deploy.proofs import Proofs
from bnpass.deploy.result import Deployed, DeployOptions, Model
from bnpass.frontends.onnx import folding
from bnpass.frontends.onnx.half import half_type, to_half
from bnpass.frontends.onnx.preprocessing import fold_in_front
from bnpass.onnx_model.editing import edit_file
from bnpass.onnx_model.model import OnnxModel


def plan_deployment(model: OnnxModel, options: DeployOptions) -> Deployed:
    """What :func:`deploy` would do; the model is unchanged.

    Raises:
        InputError, RefusedError, UsageError: as :func:`deploy`.
    """
    if options.normalisation is not None:
        return _normalised(model, options)
    return Deployed(model.proto, folding.plan(model, options.fold))


def deploy(
    model: OnnxModel,
    options: DeployOptions,
    proofs: Proofs | None = None,
    *,
    reference: Model | None = None,
) -> Deployed:
    """Make a model ready to be deployed, in place.

    Args:
        model: the model.
        options: what is asked for.
        proofs: how the result is proved; None: not at all.
        reference: the model as it was given; None: as :meth:`OnnxModel.as_given` says.

    Raises:
        InputError, RefusedError, UnsupportedError, UsageError, and what the proofs raise.
    """
    done = _edit(model, options, proofs, reference or model.as_given())
    _prove(done, done.model, proofs)
    return done


def deploy_file(
    path: Path,
    output: Path,
    options: DeployOptions,
    proofs: Proofs | None = None,
    *,
    force: bool = False,
    shown: Callable[[OnnxModel], None] = lambda _: None,
) -> Deployed:
    """Deploy ``path`` as ``output``; nothing is written where a proof fails.

    The weights of a large model do not come into memory, unless ``options`` need them.

    Args:
        path: the model file.
        output: the file to write.
        options: what is asked for.
        proofs: how the result is proved; None: not at all.
        force: replace an existing output.
        shown: is shown the model before it is edited, and after.

    Raises:
        OutputError, and as :func:`deploy`.
    """

    def edit(model: OnnxModel) -> Deployed:
        shown(model)
        done = _edit(model, options, proofs, path)
        shown(model)
        return done

    return edit_file(
        path,
        output,
        edit,
        check=lambda done, result: _prove(done, result, proofs),
        force=force,
        whole=options.whole,
    )


def _edit(
    model: OnnxModel, options: DeployOptions, proofs: Proofs | None, reference: Model
) -> Deployed:
    """All but the last proof, which needs what is about to be written."""
    if options.to is not None:
        half_type(options.to)
    if options.normalisation is not None:
        done = _normalised(model, options)
        model.proto = done.folded.model
    else:
        done = Deployed(reference, folding.fold(model, options.fold))
    done.trust_shapes = options.trust_shapes
    if options.to is not None:
        _prove(done, done.model, proofs)
        done.half = to_half(done.folded.model, options.to, io=options.io)
        model.proto = done.half.model
    return done


def _normalised(model: OnnxModel, options: DeployOptions) -> Deployed:
    """The normalisation folded, and then the rest; ``model`` itself is unchanged."""
    from bnpass.data.recorded import record_recipe, recorded_recipe

    wanted = options.normalisation
    assert wanted is not None
    front = wanted.in_front_of(model.proto)
    folded = fold_in_front(front, options.fold)
    recipe = recorded_recipe(folded.model)
    if recipe is not None:  # what the samples need is less now
        record_recipe(folded.model, wanted.left_of(recipe).to_dict())
    return Deployed(front.model, folded, front, normalisation=wanted)


def _prove(done: Deployed, result: Model, proofs: Proofs | None) -> None:
    if proofs is None or not done.does_something:
        return
    proof = proofs.fold if done.half is None else proofs.half
    proof(done, result)
