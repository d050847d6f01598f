"""Where in a module an edit of a value can be made: at a module's output, at its input, or inside.

(a) at the module, leaf or container, whose output the value is;
(b) else in front of the module, called once, that is the value's only reader;
(c) else in the forward of the module that computes it, which becomes a GraphModule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from bnpass.frontends.fx.recording import FRAME, ORIGIN, Frame, Recording


@dataclass(frozen=True)
class Anchor:
    """A place for a BatchNorm.

    Attributes:
        frame: the call of the module that holds it; for kind ``c`` the one that is rewritten.
        kind: ``a``, ``b`` or ``c``.
        key: for ``b``: the argument that is normalised.
        node: the value's node in the recording.
    """

    frame: Frame
    kind: str
    node: fx.Node
    key: int | str | None = None


def anchor_of(recording: Recording, node: fx.Node) -> Anchor:
    """The place for a norm on what ``node`` makes, for all its readers."""
    found = _at_output(recording, node) or _at_input(recording, node)
    if found is not None:
        return found
    return Anchor(frame_of(node), "c", node)


def frame_of(node: fx.Node) -> Frame:
    """The call inside of which a node's call stands."""
    frame = node.meta.get(FRAME)
    assert isinstance(frame, Frame)
    return frame


def _takes_hooks(recording: Recording, frame: Frame) -> bool:
    """Whether a norm may hang on a module: copies of a GraphModule would lose its hook."""
    return is_once(recording, frame) and not isinstance(frame.module, fx.GraphModule)


def is_once(recording: Recording, frame: Frame) -> bool:
    """Whether a module is called once, with its hooks."""
    return len(recording.calls[id(frame.module)]) == 1 and not frame.direct


def _at_output(recording: Recording, node: fx.Node) -> Anchor | None:
    if isinstance(frame_of(node).module, fx.GraphModule) and node.meta.get(ORIGIN) is not None:
        return None  # its graph can be edited as it is
    for frame in reversed(recording.frames):
        inside = frame.node is node or frame_of(node).within(frame)
        if frame.output is not node or not inside or not _takes_hooks(recording, frame):
            continue
        if not any(_within(user, frame) for user in node.users):
            return Anchor(frame, "a", node)
    return None


def _within(user: fx.Node, frame: Frame) -> bool:
    at = user.meta.get(FRAME)
    return at is not None and at.within(frame)


def _at_input(recording: Recording, node: fx.Node) -> Anchor | None:
    users = list(node.users)
    for frame in reversed(recording.frames):
        keys = [key for key, value in frame.args.items() if value is node]
        if len(keys) != 1 or not users or not _takes_hooks(recording, frame):
            continue
        if all(user is frame.node or _reads_inside(user, frame) for user in users):
            return Anchor(frame, "b", node, keys[0])
    return None


def _reads_inside(user: fx.Node, frame: Frame) -> bool:
    at: Any = user.meta.get(FRAME)
    early = at is frame and user.meta.get("bnpass_phase") == "before"
    return _within(user, frame) and not early
