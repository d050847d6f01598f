"""Which output and which input of one model is which of the other."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from bnpass.errors import InputError, close_matches
from bnpass.onnx_model.signature import Port, dtype_of, inputs_of, is_float, outputs_of
from bnpass.runtime.inputs import Feeds


def pair_outputs(
    reference: onnx.ModelProto | None,
    candidate: onnx.ModelProto | None,
    mapping: Mapping[str, str],
) -> dict[str, str]:
    """Return the candidate's output for each of the reference's.

    By name; else as ``mapping`` says; else, where no name at all is common and number, types and
    ranks agree, by position. Empty when one side is a torch module: then by position at run time.

    Raises:
        InputError: an output has no counterpart.
    """
    if reference is None or candidate is None:
        return {}
    theirs = {p.name: p for p in outputs_of(candidate)}
    ours = {p.name: p for p in outputs_of(reference)}
    _known(mapping, ours, theirs)
    renamed = not mapping and len(ours) == len(theirs) and not set(ours) & set(theirs)
    if renamed and all(map(_alike, ours.values(), theirs.values())):
        return dict(zip(ours, theirs, strict=True))
    pairs = {name: mapping.get(name, name) for name in ours}
    for name, other in pairs.items():
        if other not in theirs:
            raise InputError(
                f"the candidate has no output {other!r}; it has {', '.join(theirs)}",
                close_matches(other, theirs) or f"map it: mapping={{{name!r}: ...}}",
            )
    if extra := [n for n in theirs if n not in pairs.values()]:
        raise InputError(
            f"the candidate has an output more than the reference: {', '.join(extra)}",
            "give models with the same outputs",
        )
    return pairs


def _known(mapping: Mapping[str, str], ours: dict[str, Port], theirs: dict[str, Port]) -> None:
    for name, other in mapping.items():
        for side, known, what in ((name, ours, "reference"), (other, theirs, "candidate")):
            if side not in known:
                raise InputError(
                    f"the mapping names {side!r}, which is no output of the {what}",
                    close_matches(side, known) or "its outputs are " + ", ".join(known),
                )


def _alike(a: Port, b: Port) -> bool:
    ranks = a.shape is None or b.shape is None or len(a.shape) == len(b.shape)
    return ranks and is_float(dtype_of(a.kind)) == is_float(dtype_of(b.kind))


def candidate_feeds(feeds: Feeds, candidate: onnx.ModelProto | None) -> Feeds:
    """Return the inputs under the candidate's names and in its types.

    Raises:
        InputError: the two models' inputs do not match.
    """
    if candidate is None:
        return feeds
    ports = inputs_of(candidate)
    names = [p.name for p in ports]
    if set(names) <= set(feeds):
        source = {n: n for n in names}
    elif len(names) == len(feeds) and not set(names) & set(feeds):
        source = dict(zip(names, feeds, strict=True))
    else:
        raise InputError(
            f"the inputs differ: {', '.join(feeds)} against {', '.join(names)}",
            "give models with the same inputs",
        )
    return {p.name: feeds[source[p.name]].astype(dtype_of(p.kind), copy=False) for p in ports}
