"""What a deployment is asked for, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from bnpass.frontends.onnx.folding import Folded, FoldOptions

if TYPE_CHECKING:
    from bnpass.data.normalisation import Normalisation
    from bnpass.frontends.onnx.half import HalfModel
    from bnpass.frontends.onnx.preprocessing import InFront
    from bnpass.verdict.judge import Edits

Model = Path | onnx.ModelProto
"""A model as proofs take it: a file, or in memory."""

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class DeployOptions:
    """What is asked for.

    Attributes:
        fold: of the fold.
        normalisation: of the input, which the deployed model does itself; None: none.
        to: the narrow type, see :func:`bnpass.frontends.onnx.half.to_half`; None: none.
        io: with ``to``: inputs and outputs too.
        trust_shapes: take what only the file declares of shapes, even where no check can run.
    """

    fold: FoldOptions = field(default_factory=FoldOptions)
    normalisation: Normalisation | None = None
    to: str | None = None
    io: bool = False
    trust_shapes: bool = False

    @property
    def whole(self) -> bool:
        """Whether all weights must be in memory."""
        return self.normalisation is not None or self.to is not None


@dataclass
class Deployed:
    """A deployed model, and how it came about.

    Attributes:
        reference: computes what the deployed model must: the model given, the normalisation in
            front of it where one was asked for.
        folded: the fold.
        front: the normalisation in front of the model, before it was folded.
        half: the narrowed model.
        normalisation: as asked for.
        trust_shapes: as asked for.
    """

    reference: Model
    folded: Folded
    front: InFront | None = None
    half: HalfModel | None = None
    normalisation: Normalisation | None = None
    trust_shapes: bool = False

    @property
    def model(self) -> onnx.ModelProto:
        """The deployed model."""
        return self.folded.model if self.half is None else self.half.model

    @property
    def does_something(self) -> bool:
        """Whether it is another model than the reference."""
        changed = self.half is not None or self.front is not None
        return changed or self.folded.does_something

    @property
    def edits(self) -> Edits:
        """What a verdict is told of the fold."""
        from bnpass.verdict.judge import Edits

        folded = self.folded
        return Edits(folded.pairs, folded.original, folded.changed, folded.declared,
                     self.trust_shapes)

    @property
    def prepare(self) -> Callable[[Feeds], Feeds] | None:
        """Makes of random inputs such as stored samples are; None: nothing is to be done."""
        if self.front is None or self.normalisation is None:
            return None
        from bnpass.data.normalisation import preparation

        return preparation(self.normalisation, self.front.port.name)
