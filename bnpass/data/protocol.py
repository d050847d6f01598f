"""What a batch may be, and which part of it goes where: one meaning for every command and call.

Inputs are one array, a tuple, or a mapping by name, nested where the network takes nested inputs. A
labelled batch is ``(inputs, targets)``, or a mapping: its arrays that are called like an input are
inputs, all others are targets (``target.NAME`` where a target has an input's name).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnpass.data.trees import is_array
from bnpass.errors import InputError

TARGET = "target."
"""In front of a name: a target, although an input has that name."""

MASK = "mask."
"""In a mapping of inputs: the array ``(n, positions...)`` that says which positions count."""


@dataclass(frozen=True)
class Slot:
    """One input of a network.

    Attributes:
        name: the argument's or the graph input's.
        required: whether it must be given.
        keyword: whether it may be passed by its name.
        also: other names for it.
        kind: type and shape for messages: ``"int64[N,7]"``; empty where unknown.
    """

    name: str
    required: bool = True
    keyword: bool = True
    also: tuple[str, ...] = ()
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.name!r}" + (f" ({self.kind})" if self.kind else "")


@dataclass(frozen=True)
class Takes:
    """What a network takes.

    Attributes:
        slots: its inputs, in order.
        more: whether it takes any number of further arrays (``*args``).
        any_name: whether it takes arrays of any name (``**kwargs``).
        example: :func:`kind_of` what it was given by position in an example, if there was one.
    """

    slots: tuple[Slot, ...]
    more: bool = False
    any_name: bool = False
    example: tuple[Any, ...] = ()

    @property
    def required(self) -> list[Slot]:
        """The inputs that must be given."""
        return [slot for slot in self.slots if slot.required]

    def slot(self, name: str) -> Slot | None:
        """The input of a name, or None."""
        return next((s for s in self.slots if name == s.name or name in s.also), None)


@dataclass(frozen=True)
class Arguments:
    """Inputs bound to a network: ``network(*args, **kwargs)``.

    Attributes:
        args, kwargs: the inputs.
        mask: which positions count in statistics, ``(n, positions...)``, true where they do; None
            for all of them.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    mask: Any = None

    @property
    def trees(self) -> tuple[Any, ...]:
        """All that it holds by samples."""
        held = (self.args, self.kwargs)
        return held if self.mask is None else (*held, self.mask)

    def by_name(self, takes: Takes) -> dict[str, Any]:
        """The same by the names of the inputs."""
        named = dict(zip((s.name for s in takes.slots), self.args, strict=False))
        return {**named, **self.kwargs}


def labelled(item: Any, takes: Takes) -> tuple[Arguments, Any]:
    """The inputs, bound, and the targets of a batch to train on.

    Args:
        item: ``(inputs, targets)``, or a mapping with both.
        takes: what the network takes.

    Raises:
        InputError: it is neither, an input is missing, or there are no targets.
    """
    inputs: Any
    if isinstance(item, Mapping):
        inputs, targets = _named(item, takes)
    elif isinstance(item, tuple | list) and len(item) == 2:
        inputs, targets = item
    else:
        what = f"a batch of {len(item)}" if isinstance(item, tuple | list) else _kind(item)
        raise InputError(f"{what} is no labelled batch",
                         "give (inputs, targets), several inputs as a tuple or a mapping")
    if targets is None:
        raise InputError("the batch has no targets", "training needs labelled data")
    return bind(inputs, takes), targets


def unlabelled(item: Any, takes: Takes) -> tuple[Arguments, Any]:
    """The inputs, bound, of a batch that may or may not have targets; and those, or None.

    A flat tuple is all inputs if it is like the example that the network was given, if there are as
    many as the network requires, and at least two, or if it leaves an input out in the middle, with
    None; otherwise its last member is a target.

    Raises:
        InputError: an input is missing, or there is one too many.
    """
    if isinstance(item, Arguments):
        return item, None
    if isinstance(item, Mapping):
        named, targets = _named(item, takes)
        return bind(named, takes), targets
    if not isinstance(item, tuple | list):
        return bind(item, takes), None
    if not item:
        raise InputError("a batch without arrays", "give inputs, or (inputs, targets)")
    if len(item) == 1:
        return bind(item[0], takes), None
    flat = not any(isinstance(part, tuple | list | Mapping) for part in item)
    if len(item) == len(takes.required) and (flat or len(item) > 2):
        return bind(tuple(item), takes), None
    if tuple(map(kind_of, item)) == takes.example or (flat and _has_gap(item, takes)):
        return bind(tuple(item), takes), None
    inputs = item[0] if len(item) == 2 else tuple(item[:-1])
    return bind(inputs, takes), item[-1]


def kind_of(value: Any) -> Any:
    """What makes two arguments alike: for arrays the rank, and whether they hold floats."""
    if is_array(value):
        return len(value.shape), "float" in str(value.dtype)
    return None if value is None else type(value).__name__


def _has_gap(item: tuple[Any, ...] | list[Any], takes: Takes) -> bool:
    """Whether an input in the middle is left out, and no example says how many there are."""
    fits = len(item) <= len(takes.slots) or takes.more
    return fits and not takes.example and None in map(kind_of, item[:-1])


def _named(item: Mapping[str, Any], takes: Takes) -> tuple[dict[str, Any], Any]:
    """The inputs of a mapping by name, and its targets: alone, by name, or None."""
    inputs: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    for name, value in item.items():
        if name.startswith(TARGET):
            targets[name.removeprefix(TARGET)] = value
        elif name == MASK or takes.slot(name) is not None or takes.any_name:
            inputs[name] = value
        else:
            targets[name] = value
    _check_names(inputs, takes, held=item)
    return inputs, next(iter(targets.values())) if len(targets) == 1 else targets or None


def bind(inputs: Any, takes: Takes) -> Arguments:
    """Inputs, without targets, as the arguments of a network.

    Raises:
        InputError: an input is missing, or there is one too many.
    """
    if isinstance(inputs, Mapping):
        return _by_name(inputs, takes)
    if not isinstance(inputs, tuple | list):
        return _in_order((inputs,), takes)
    if len(takes.slots) == 1 and not takes.more and len(inputs) > 1:
        return Arguments((inputs,))  # its one input is itself a tuple
    return _in_order(tuple(inputs), takes)


def _by_name(inputs: Mapping[str, Any], takes: Takes) -> Arguments:
    _check_names(inputs, takes, held=inputs)
    found = {slot.name if slot else name: value
             for name, value in inputs.items() if name != MASK
             and ((slot := takes.slot(name)) is not None or takes.any_name)}
    args = [found.pop(slot.name) for slot in takes.slots
            if not slot.keyword and slot.name in found]
    return Arguments(tuple(args), found, inputs.get(MASK))


def _check_names(given: Iterable[str], takes: Takes, held: Iterable[str]) -> None:
    names = set(given)
    for slot in takes.required:
        if not names & {slot.name, *slot.also}:
            raise missing(slot, held)


def missing(slot: Slot, held: Iterable[str], where: str = "the batch") -> InputError:
    """The error for an input without an array."""
    names = ", ".join(held)
    return InputError(f"no array for input {slot}", f"{where} holds {names or 'nothing'}")


def _in_order(args: tuple[Any, ...], takes: Takes) -> Arguments:
    if len(args) < len(takes.required):
        raise InputError(f"no array for input {takes.required[len(args)]}",
                         f"the batch holds {len(args)} of the {len(takes.required)} inputs")
    if len(args) > len(takes.slots) and not takes.more:
        names = ", ".join(slot.name for slot in takes.slots)
        raise InputError(
            f"{len(args)} inputs in a batch for a network with {len(takes.slots)}: {names}",
            "give (inputs, targets); several targets as a tuple or a mapping")
    return Arguments(args)


def _kind(item: Any) -> str:
    return f"an array of shape {list(item.shape)}" if is_array(item) else type(item).__name__
