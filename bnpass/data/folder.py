"""A folder of images per class, decoded by Pillow when a batch asks for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnpass.data.damaged import reading
from bnpass.data.spec import InputSpec
from bnpass.errors import InputError, MissingDependencyError, UsageError

Array = npt.NDArray[Any]
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "validation", "valid")}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageFiles:
    """Images in files as an array-like ``(n, height, width, channels)`` of uint8.

    Args:
        paths: one file a sample.
        size: height and width that every image is brought to.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        fit: ``"crop"`` scales until the image covers the size and cuts the middle out;
            ``"stretch"`` scales each axis alone.
        workers: threads that decode (Pillow works outside of Python's lock).
    """

    dtype = np.dtype(np.uint8)
    remembered = 1 << 30
    """Bytes of decoded images that are kept; larger sets are decoded in each pass."""

    def __init__(
        self, paths: list[Path], size: tuple[int, int], channels: int, fit: str = "crop",
        workers: int = 2,
    ) -> None:
        if fit not in ("crop", "stretch"):
            raise UsageError(f"unknown fit {fit!r}", "choose crop or stretch")
        self.paths, self.size, self.channels = paths, size, channels
        self.fit, self.workers = fit, max(1, workers)
        self._pool: ThreadPoolExecutor | None = None
        self._known = np.zeros(len(paths), bool)
        self._kept: Array | None = None
        if math.prod(self.shape) <= self.remembered:
            self._kept = np.empty(self.shape, np.uint8)  # takes memory as it is filled

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, height, width, channels)``."""
        return (len(self.paths), *self.size, self.channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Array:
        chosen = np.arange(len(self.paths))[index]
        if np.ndim(chosen) == 0:
            return self._decode(self.paths[int(chosen)])
        out = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        known = self._known[chosen]
        if self._kept is not None and known.any():
            out[known] = self._kept[chosen[known]]
        new = np.flatnonzero(~known)
        for row, image in zip(new, self._decode_all([self.paths[chosen[i]] for i in new]),
                              strict=True):
            out[row] = image
        if self._kept is not None and len(new):
            self._kept[chosen[new]] = out[new]
            self._known[chosen[new]] = True
        return out

    def _decode_all(self, paths: list[Path]) -> Iterable[Array]:
        if self.workers == 1 or len(paths) < 4:
            return map(self._decode, paths)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="bnpass-images")
        return self._pool.map(self._decode, paths)

    def _decode(self, path: Path) -> Array:
        from PIL import Image, ImageOps

        height, width = self.size
        with reading(path, "an image", "remove or replace this file"), Image.open(path) as image:
            picture = image.convert(_MODES[self.channels])
            if picture.size != (width, height):
                how = Image.Resampling.BILINEAR
                if self.fit == "crop":
                    picture = ImageOps.fit(picture, (width, height), method=how)
                else:
                    picture = picture.resize((width, height), how)
            return np.asarray(picture, np.uint8).reshape(height, width, self.channels)


def class_folder(root: Path, split: str) -> Path | None:
    """The folder whose children are the classes of a split, or ``None`` if there are no images."""
    for name in _SPLIT_FOLDERS.get(split, (split,)):
        if (root / name).is_dir() and _has_images(root / name):
            return root / name
    return root if split == "train" and _has_images(root) else None


def folder_splits(root: Path) -> tuple[str, ...]:
    """The splits that a folder names by sub-folders, or none."""
    return tuple(
        split for split, names in _SPLIT_FOLDERS.items()
        if any((root / name).is_dir() and _has_images(root / name) for name in names)
    )


def _has_images(folder: Path) -> bool:
    children = [c for c in folder.iterdir() if c.is_dir()]
    return any(_is_image(p) for child in [folder, *children] for p in child.iterdir())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def list_classes(folder: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Image files, their class numbers (in the order of the names) and the class names.

    Raises:
        InputError: a class without images, or no class folder at all.
    """
    names = sorted(c.name for c in folder.iterdir() if c.is_dir() and not c.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: images, but no folder for each class",
                         "put the images of each class in a folder with the class's name")
    paths: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        found = sorted(p for p in (folder / name).rglob("*") if _is_image(p))
        if not found:
            raise InputError(f"{folder / name}: a class without images", "remove the empty folder")
        paths += found
        labels += [number] * len(found)
    return paths, labels, tuple(names)


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their paths."""
    return sorted(p for p in folder.rglob("*") if _is_image(p))


def image_geometry(
    paths: list[Path], inputs: InputSpec | None, resize: tuple[int, int] | None
) -> tuple[tuple[int, int], int]:
    """Height, width and channels to decode to: the model's, else ``resize``, else the images' own.

    Raises:
        InputError: images of several sizes and nothing that says which one to use.
        MissingDependencyError: Pillow is not installed.
    """
    size, channels = _model_geometry(inputs)
    size = resize or size
    if size is not None and channels is not None:
        _require_pillow()
        return size, channels
    own_size, own_channels = _own_geometry(paths, alone=size is None)
    return size or own_size, channels or own_channels


def _model_geometry(inputs: InputSpec | None) -> tuple[tuple[int, int] | None, int | None]:
    sample = inputs.sample if inputs else ()
    if len(sample) == 3:
        # 1 and 3 are surely channels; a 4 (RGBA) may as well be a small height.
        last = sample[0] not in (1, 3) and (sample[2] in (1, 3) or sample[0] != 4)
        channels, height, width = (sample[2], *sample[:2]) if last else sample
        size = None if height is None or width is None else (height, width)
        return size, channels if channels in _MODES else None
    count = inputs.count if inputs else None
    for channels in (1, 3) if count else ():
        side = math.isqrt((count or 0) // channels)
        if side * side * channels == count:
            return (side, side), channels
    return None, None


def _own_geometry(paths: list[Path], *, alone: bool) -> tuple[tuple[int, int], int]:
    _require_pillow()
    from PIL import Image

    sizes: set[tuple[int, int]] = set()
    grey = True
    for path in paths if alone else paths[:1]:
        with reading(path, "an image", "remove or replace this file"), Image.open(path) as image:
            sizes.add((image.height, image.width))
            grey = grey and image.mode in ("1", "L", "I", "I;16", "F")
    if len(sizes) > 1:
        raise InputError(f"images of {len(sizes)} sizes and a model that takes any size",
                         "say the size with --resize HxW (resize=(height, width) in Python)")
    return sizes.pop(), 1 if grey else 3


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("reading image files needs Pillow",
                                     "pip install pillow") from error
