"""The inputs of a verification, with what the reference makes of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import onnx

from bnpass.errors import InputError
from bnpass.onnx_model.fitting import Fitting
from bnpass.onnx_model.signature import Port, inputs_of
from bnpass.runtime.child import CrashError, TimeLimitError
from bnpass.runtime.engines import Engine
from bnpass.runtime.inputs import (
    SIZES,
    STYLES,
    Draw,
    Feeds,
    batch_symbol,
    feeds_of,
    fixed_sizes,
    free_batch_of,
    free_sizes,
    random_inputs,
    split_batch,
)


@dataclass
class Case:
    """One set of inputs, and what the reference made of it."""

    label: str
    feeds: Feeds
    expected: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RandomPlan:
    """The plan of the random draws for a model.

    Attributes:
        model: whose inputs.
        seed: of the first draw.
        draws: how many.
        batches: sizes of each draw, where the batch is free.
        dims: sizes of free dimensions, and values of inputs that are counts.
        prepare: brings the inputs into the range that the model is meant for.
        alternate: each draw has one of the sizes, in turn.
    """

    model: onnx.ModelProto
    seed: int
    draws: int
    batches: tuple[int, ...]
    dims: dict[str, int]
    prepare: Callable[[Feeds], Feeds] | None = None
    alternate: bool = False

    def cases(
        self, engine: Engine, go_on: Callable[[float], bool] = lambda _: True
    ) -> tuple[list[Case], int]:
        """Draw inputs and run the reference on them; sizes that it refuses are left out.

        Args:
            engine: the reference.
            go_on: whether there is time for another case of so many seconds; one there always is.

        Returns:
            The cases, and how many there was no time for.
        """
        ports = inputs_of(self.model)
        batches = self.batches if free_batch_of(ports) else self.batches[:1]
        sizes = self._legal_sizes(engine, ports)
        wanted = [
            Draw(batch, self.seed + i, STYLES[i % len(STYLES)], sizes[i % len(sizes)], self._dims())
            for i in range(max(self.draws, 1))
            for batch in (batches[i % len(batches) :][:1] if self.alternate else batches)
        ]
        found: list[Case] = []
        for draw in wanted:
            start = time.perf_counter()
            found.append(self._case(engine, draw))
            if not go_on(time.perf_counter() - start):
                break
        return found, len(wanted) - len(found)

    def _dims(self) -> tuple[tuple[str, int], ...]:
        return tuple(self.sizes.items())

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes of free dimensions: what layers demand of them, and what the user says."""
        return {**fixed_sizes(self.model), **self.dims}

    def _case(self, engine: Engine, draw: Draw) -> Case:
        feeds = random_inputs(self.model, draw)
        feeds = feeds if self.prepare is None else self.prepare(feeds)
        shapes = ", ".join(f"{n} {list(a.shape)}" for n, a in feeds.items())
        label = f"{draw.style}, seed {draw.seed}: {shapes}"
        return Case(label, feeds, engine.run(feeds))

    def _legal_sizes(self, engine: Engine, ports: list[Port]) -> list[int]:
        """Return up to two sizes of the free dimensions (not the batch) that the model accepts."""
        free = [name for name in free_sizes(ports) if name not in self.sizes]
        if not free:
            return [SIZES[0]]
        found: list[int] = []
        last: InputError | None = None
        for size in SIZES:
            refusal = self._refusal(engine, size)
            last = refusal or last
            if refusal is None:
                found.append(size)
            if len(found) == 2:
                return found
        if not found and self._fit(free) and self._refusal(engine, SIZES[0]) is None:
            return [SIZES[0]]
        if not found:
            raise InputError(
                f"no legal size found for the free dimensions {', '.join(free)}: "
                f"{last.message if last else ''}",
                f"give them, e.g. --dims {free[0]}=224",
            )
        return found

    def _refusal(self, engine: Engine, size: int) -> InputError | None:
        """Why the reference does not take a size of all free dimensions; None where it does."""
        draw = Draw(self.batches[0], self.seed, "normal", size, self._dims())
        try:
            engine.run(random_inputs(self.model, draw))
        except (CrashError, TimeLimitError):
            raise  # the process has gone: no other size would be run
        except InputError as error:
            return error
        return None

    def _fit(self, free: list[str]) -> bool:
        """Fix free dimensions at sizes that the model's own shapes allow; False where none do."""
        ports = inputs_of(self.model)
        named = [batch_symbol(ports), *(f"{p.name}:0" for p in ports if p.shape and not p.shape[0])]
        batch = dict.fromkeys(filter(None, named), self.batches[0])
        fitting = Fitting(self.model).sizes(free, {**batch, **self.sizes})
        self.sizes.update(fitting)
        return bool(fitting)


def given(data: Iterable[Any], ports: list[Port], limit: int, engine: Engine) -> list[Case]:
    """Return up to ``limit`` cases from a caller's batches, cut to the model's fixed batch.

    Raises:
        InputError: a batch does not fit, holds NaN or Inf, or there is none.
    """
    cases = []
    parts = (part for batch in data for part in split_batch(batch, ports))
    for index, feeds in enumerate(islice((feeds_of(p, ports) for p in parts), limit)):
        bad = [n for n, a in feeds.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
        if bad:
            raise InputError(f"batch {index} of the data has NaN or Inf in {bad[0]!r}", "clean it")
        cases.append(Case(f"data, batch {index}", feeds, engine.run(feeds)))
    if not cases:
        raise InputError("the data holds no batch", "give at least one")
    return cases


def ports_of_data(data: Iterable[Any] | None) -> list[Port]:
    """Return the inputs that a list of batches suggests, for two torch modules."""
    if data is None:
        return []
    if not isinstance(data, Sequence) or not data:
        raise InputError("two torch modules want data= as a list of batches", "list(loader)")
    names = list(data[0]) if isinstance(data[0], Mapping) else ["input0"]
    kinds = [data[0][n] if isinstance(data[0], Mapping) else _first(data[0]) for n in names]
    return [
        Port(n, onnx.helper.np_dtype_to_tensor_dtype(np.asarray(k).dtype), None)
        for n, k in zip(names, kinds, strict=True)
    ]


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) else batch
