"""Open a data set by what its name points to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnpass.data import arrays, callables, folder
from bnpass.data.dataset import Data
from bnpass.data.labels import tidy_labels
from bnpass.data.named import NamedData, named_data
from bnpass.data.recipe import Recipe, Samples, infer
from bnpass.data.spec import InputSpec
from bnpass.data.stream import Stream, with_mask
from bnpass.errors import InputError, UsageError

Array = npt.NDArray[Any]
FORMATS = (
    "an .npz, a folder of IDX files, images.npy,labels.npy, a folder of images per class, "
    "or package.module:callable"
)
_SPLITS = {"train": "train", "t10k": "test", "test": "test", "val": "test", "validation": "test"}
_SCANNED = 1 << 30


@dataclass
class _Raw:
    """What a reader found, before conversion."""

    x: Any
    y: Array | None
    source: dict[str, Any]
    class_names: tuple[str, ...] = ()
    layout: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)


def open_data(
    spec: str | os.PathLike[str],
    *,
    inputs: InputSpec | None = None,
    labels: bool = True,
    split: str = "train",
    recipe: dict[str, Any] | None = None,
    scale: float | None = None,
    layout: str = "auto",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    resize: tuple[int, int] | None = None,
    fit: str = "crop",
    workers: int = 2,
) -> Data:
    """Open labelled data and work out how to feed it to a model.

    Args:
        spec: an ``.npz`` with x and y, a folder with IDX files as MNIST ships them (gzipped or
            not), ``"images.npy,labels.npy"`` (memory-mapped), a folder of images per class (Pillow)
            or ``"package.module:callable"`` that returns a torch Dataset or arrays ``(x, y)``.
        inputs: what the model takes; type, layout and shape are inferred from it.
        labels: whether labels must be there.
        split: ``"train"`` or ``"test"``, where the source holds both.
        recipe: a recorded conversion (:attr:`Data.recipe`) to replay instead of inferring one.
        scale: factor for every element; by default 1/255 from 8-bit integers to floats.
        layout: how images are stored, ``"nhwc"``, ``"nchw"`` or ``"auto"``.
        mean: subtracted after scaling, one number or one a channel.
        std: divisor after that, one number or one a channel.
        resize: height and width of decoded images (default: what the model takes).
        fit: how decoded images are brought to that size, ``"crop"`` or ``"stretch"``.
        workers: threads that decode images.

    Raises:
        InputError: missing, empty or damaged data, NaN, no labels, or a shape that does not fit.
        UsageError: an unknown option value.
        MissingDependencyError: image files without Pillow.
    """
    if split not in _SPLITS:
        raise UsageError(f"unknown split {split!r}", "choose train or test")
    replayed = Recipe.from_dict(recipe) if recipe is not None else None
    images = {"resize": resize, "fit": fit}
    if replayed is not None and "size" in replayed.source:
        images = {"resize": tuple(replayed.source["size"]), "fit": replayed.source["fit"],
                  "channels": replayed.source["channels"]}
    raw = _read(os.fspath(spec), _SPLITS[split], inputs, labels, {**images, "workers": workers})
    where = str(spec)
    x, y = _checked(raw, labels, where)
    if replayed is not None:
        replayed.check(x)
    else:
        layout = raw.layout if layout == "auto" else layout
        replayed = infer(x, inputs, scale=scale, layout=layout, mean=mean, std=std,
                         source=raw.source)
    return Data(x, y, replayed, np.arange(len(x)), raw.class_names, where)


def open_inputs(
    spec: str, inputs: Mapping[str, InputSpec], *, labels: bool = True, split: str = "train",
    mask: str = "", **options: Any,
) -> Data | NamedData | Stream:
    """Open data for a model with any number of inputs.

    Args:
        spec: see :func:`open_data`; an ``.npz`` whose arrays are called like the model's inputs, or
            a callable that returns arrays by name, or batches (a DataLoader, any iterable).
        inputs: what each input takes.
        labels: whether there must be targets.
        split: ``"train"`` or ``"test"``, where the source holds both.
        mask: name of the array that says which positions count in statistics.
        options: of :func:`open_data`.

    Raises:
        InputError: an input has no array, or as :func:`open_data`.
    """
    first = next(iter(inputs.values()))
    found = _by_name(spec, inputs, split, mask)
    if isinstance(found, Stream):
        return with_mask(found, mask, inputs) if mask else found
    if isinstance(found, dict):
        given = {k: v for k, v in options.items() if k in ("scale", "layout", "mean", "std")}
        return named_data(found, inputs, labels=labels, where=spec, options=given,
                          mask=mask)
    if mask:
        raise InputError(f"{spec}: no array {mask!r} for the mask",
                         "give an .npz, or a callable, with arrays by name")
    if len(inputs) > 1:
        name, wanted = list(inputs.items())[1]
        raise InputError(f"no array for input {name!r} ({wanted.kind})",
                         f"{spec} holds samples and labels alone; give an .npz whose arrays are "
                         f"called like the inputs: {', '.join(inputs)}")
    return open_data(spec, inputs=first, labels=labels, split=split, **options)


def _by_name(
    spec: str, inputs: Mapping[str, InputSpec], split: str, mask: str = ""
) -> dict[str, Array] | Stream | None:
    """Arrays by name or batches, where the source holds such; None for samples and labels."""
    path = Path(spec)
    if path.suffix == ".npz" and path.is_file():
        names = set(arrays.npz_names(path))
        pair = arrays.find_pair(list(names), split)
        if len(inputs) == 1 and pair and (names <= set(pair) or pair[0] not in inputs):
            if not mask:
                return None  # samples and labels, whatever the input is called
            held = arrays.read_named(path)
            called = {pair[0]: next(iter(inputs))}
            return {called.get(k, k): x for k, x in held.items() if k in (*pair, mask)}
        by_name = len(inputs) > 1 or bool(names & set(inputs))
        return arrays.read_named(path) if by_name else None
    if path.exists() or "," in spec or not callables.is_callable_spec(spec):
        return None
    rank = len(next(iter(inputs.values())).sample)
    found = callables.read_callable(spec, _SPLITS.get(split, split), rank)
    return None if isinstance(found, tuple) else found


def from_arrays(
    x: Any, y: Array | None = None, *, inputs: InputSpec | None = None, **options: Any
) -> Data:
    """A data set of arrays in memory; options as for :func:`bnpass.data.recipe.infer`."""
    held = x if isinstance(x, callables.DatasetSamples) else np.asarray(x)
    samples, labels = _checked(_Raw(held, y, {"format": "arrays"}), y is not None, "data")
    recipe = infer(samples, inputs, source={"format": "arrays"}, **options)
    return Data(samples, labels, recipe, np.arange(len(samples)))


def splits(spec: str | os.PathLike[str]) -> tuple[str, ...]:
    """The named splits (``"train"``, ``"test"``) that a source holds, or none."""
    path = Path(spec)
    if path.is_dir():
        idx = tuple(s for s in ("train", "test") if arrays.idx_pair(path, s))
        return idx or folder.folder_splits(path)
    return arrays.npz_splits(path) if path.suffix == ".npz" and path.is_file() else ()


def _read(
    spec: str, split: str, inputs: InputSpec | None, labels: bool, images: dict[str, Any]
) -> _Raw:
    path = Path(spec)
    if path.is_dir():
        return _read_folder(path, split, inputs, labels, images)
    if path.suffix == ".npz" and path.is_file():
        return _Raw(*arrays.read_npz(path, split), {"format": "npz", "split": split})
    if "," in spec:
        return _read_pair(spec)
    if path.is_file():
        return _Raw(arrays.read_array(path), None, {"format": path.suffix.lstrip(".") or "idx"})
    if callables.is_callable_spec(spec):
        rank = len(inputs.sample) if inputs else None
        found = callables.read_callable(spec, split, rank)
        if not isinstance(found, tuple):
            raise InputError(f"{spec}: gives batches or arrays by name",
                             "read it with bnpass.data.open_inputs")
        return _Raw(found[0], found[1], {"format": "callable", "split": split})
    raise InputError(f"{spec}: no such file or folder", f"give {FORMATS}")


def _read_pair(spec: str) -> _Raw:
    parts = [part.strip() for part in spec.split(",")]
    if len(parts) != 2:
        raise InputError(f"{spec}: {len(parts)} files", "give two: images.npy,labels.npy")
    x, y = (arrays.read_array(Path(part)) for part in parts)
    return _Raw(x, np.asarray(y), {"format": "pair"})


def _read_folder(
    path: Path, split: str, inputs: InputSpec | None, labels: bool, images: dict[str, Any]
) -> _Raw:
    pair = arrays.idx_pair(path, split)
    if pair is not None:
        y = None if pair[1] is None else arrays.read_idx(pair[1])
        return _Raw(arrays.read_idx(pair[0]), y, {"format": "idx", "split": split})
    top = folder.class_folder(path, split)
    if top is None:
        raise InputError(f"{path}: no IDX files and no images of a {split} split in this folder",
                         f"give {FORMATS}")
    return _read_images(top, split, inputs, labels, images)


def _read_images(
    top: Path, split: str, inputs: InputSpec | None, labels: bool, images: dict[str, Any]
) -> _Raw:
    if labels or any(c.is_dir() for c in top.iterdir()):
        paths, numbers, names = folder.list_classes(top)
        y = np.asarray(numbers)
    else:
        paths, y, names = folder.list_images(top), None, ()
    size, channels = folder.image_geometry(paths, inputs, images["resize"])
    channels = images.get("channels", channels)
    x = folder.ImageFiles(paths, size, channels, images["fit"], images["workers"])
    source = {"format": "images", "split": split, "size": list(size), "channels": channels,
              "fit": images["fit"]}
    return _Raw(x, y, source, names, layout="nhwc" if _wants_images(inputs, size) else "auto")


def _wants_images(inputs: InputSpec | None, size: tuple[int, int]) -> bool:
    # A model with channels last takes decoded images as they are; every other one, channels first.
    sample = inputs.sample if inputs else ()
    return not (len(sample) == 3 and sample[:2] == size and sample[2] in (1, 3, 4))


def _checked(raw: _Raw, labels: bool, where: str) -> tuple[Samples, Array | None]:
    x = raw.x
    if not getattr(x, "shape", ()) or len(x) == 0:
        raise InputError(f"{where}: holds no samples", "the first axis must be the samples")
    if np.dtype(x.dtype).kind not in "iufb":
        raise InputError(f"{where}: samples are {x.dtype}, not numbers", "store numeric arrays")
    if labels and raw.y is None:
        raise InputError(f"{where}: has no labels", f"give labelled data: {FORMATS}")
    _scan(x, where)
    return x, None if raw.y is None else tidy_labels(raw.y, len(x), where)


def _scan(x: Any, where: str) -> None:
    """Look for NaN in arrays of a size that is cheap to read; larger ones are checked as used."""
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.nbytes > _SCANNED:
        return
    for start in range(0, len(x), 4096):
        finite = np.isfinite(x[start : start + 4096]).reshape(len(x[start : start + 4096]), -1)
        if not finite.all():
            bad = start + int(np.flatnonzero(~finite.all(axis=1))[0])
            raise InputError(f"{where}: sample {bad} holds NaN or infinity",
                             "remove such samples or fill in the values")
