"""Everything that decides how a network is trained, in one frozen value."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bnpass.errors import UsageError, close_matches

CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("constant", "step", "cosine", "onecycle"),
    "precision": ("fp32", "bf16", "fp16"),
    "validate_with": ("calibrated", "ema"),
    "norm": ("batch", "renorm"),
}
LOSSES = ("cross_entropy", "bce", "mse")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; :meth:`to_dict` is JSON.

    Attributes:
        lr: the highest learning rate of the schedule.
        optimizer: ``"sgd"`` or ``"adamw"`` (decoupled weight decay).
        momentum: of SGD, or beta1 of AdamW.
        nesterov: Nesterov's momentum (SGD).
        weight_decay: L2 factor, on weights of rank 2 and more only unless ``decay_all``.
        decay_all: decay gamma, beta and biases too.
        schedule: ``"constant"``, ``"step"``, ``"cosine"`` or ``"onecycle"``.
        warmup: steps over which the rate rises linearly to its schedule.
        decay_every: steps between two decays of the step schedule; 0 spreads them over the run.
        decays: equal parts of the run at whose ends it decays, where ``decay_every`` is 0.
        decay_factor: what each of them multiplies the rate with.
        batch_size: samples a step, over all devices.
        steps: length of the run; 0 means ``epochs``.
        epochs: passes over the training data, where ``steps`` is 0.
        seed: fixes the order of the samples, augmentation and Dropout.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        loss: ``"auto"``, ``"cross_entropy"``, ``"bce"``, ``"mse"``, one for each of several outputs
            (``"classes=cross_entropy,boxes=0.5*mse"``), or ``"package.module:loss"``; see
            :func:`bnpass.training.losses.objective`.
        metric: ``"auto"``: accuracy, RMSE and R2, F1 and mAP, or mean IoU, as the task is; or
            ``"package.module:metric"``.
        ignore_index: class label that is left out of the loss and of the metrics.
        label_smoothing: of the cross entropy.
        clip_norm: largest norm of the gradient; 0 does not clip.
        accumulate: micro-batches that one step's gradient is added up from.
        precision: ``"fp32"``, ``"bf16"`` (autocast) or ``"fp16"`` (autocast and loss scaling, GPU).
        channels_last: keep 4-D weights and inputs in torch's channels_last memory format.
        compile: run the network through torch.compile.
        deterministic: repeat to the bit on a GPU too; ``False`` lets it take faster algorithms.
        dropout: whether Dropout is live.
        freeze_bn: keep the statistics, gamma and beta of every BN as they are.
        norm: ``"batch"``, or ``"renorm"``: batch renormalisation, for small batches; folds alike.
        ema: decay of an exponential moving average of the weights, which is validated and left
            behind, with statistics taken anew for it; 0 keeps none.
        virtual_batch: samples over which a BN normalises (ghost batches); 0 takes the batch.
        crop: pixels by which training images are shifted at random (zeros move in).
        flip: mirror training images at random.
        eval_every: steps between validations; 0 means ten in the run.
        log_every: steps between rows of the metrics; 0 means a hundred in the run.
        checkpoint_every: steps between checkpoints; 0 means at each validation.
        validate_with: ``"calibrated"`` uses the statistics of 1,000 training samples, ``"ema"``
            torch's moving average, which lags after few or large steps.
        patience: validations without a better result after which to stop; 0 never stops.
        restore_best: end with the weights of the best validation instead of the last ones.
        watch: values (fx nodes, "NAME[3]" for one unit) whose percentiles are recorded (the
            paper's Figure 1).
    """

    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_all: bool = False
    schedule: str = "cosine"
    warmup: int = 0
    decay_every: int = 0
    decays: int = 3
    decay_factor: float = 0.1
    batch_size: int = 60
    steps: int = 0
    epochs: float = 1.0
    seed: int = 0
    device: str = "auto"
    loss: str = "auto"
    metric: str = "auto"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    accumulate: int = 1
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = True
    dropout: bool = True
    freeze_bn: bool = False
    norm: str = "batch"
    ema: float = 0.0
    virtual_batch: int = 0
    crop: int = 0
    flip: bool = False
    eval_every: int = 0
    log_every: int = 0
    checkpoint_every: int = 0
    validate_with: str = "calibrated"
    patience: int = 0
    restore_best: bool = False
    watch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                hint = close_matches(value, known) or f"choose {', '.join(known)}"
                raise UsageError(f"unknown {name} {value!r}", hint)
        if self.metric != "auto" and ":" not in self.metric:
            raise UsageError(f"unknown metric {self.metric!r}", "auto, or package.module:metric")
        check_loss(self.loss)
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"learning rate {self.lr}", "it must be above 0")
        for name in ("batch_size", "accumulate", "decays"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}", "it must be 1 or more")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "ignore_index":
                continue
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise UsageError(f"{field.name} {value}", "it must be finite and not negative")
        if self.virtual_batch == 1:
            raise UsageError("virtual_batch 1", "a variance needs 2 samples or more")
        if self.steps == 0 and self.epochs == 0:
            raise UsageError("neither steps nor epochs to train", "give one of them")
        if self.norm == "renorm" and self.virtual_batch:
            raise UsageError("renorm with virtual batches", "give one of them")
        for name in ("momentum", "label_smoothing", "ema"):
            if getattr(self, name) >= 1:
                raise UsageError(f"{name} {getattr(self, name)}", "it must be below 1")

    def total_steps(self, samples: int) -> int:
        """Steps of the run on this many training samples."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch(samples, self.batch_size)))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def check_loss(loss: str) -> None:
    """Refuse a loss that no network could be trained with.

    Raises:
        UsageError: its name is unknown.
    """
    if ":" not in loss.split("=", maxsplit=1)[0]:
        losses_asked(loss)


def losses_asked(loss: str) -> dict[str, tuple[str, float]]:
    """Kind and weight of the loss by output name; by the empty name for whichever there are.

    Raises:
        UsageError: an unknown loss.
    """
    found: dict[str, tuple[str, float]] = {}
    for part in loss.split(","):
        head, _, text = part.strip().rpartition("=")
        factor, _, kind = text.rpartition("*")
        if kind not in (*LOSSES, "auto"):
            hint = close_matches(kind, LOSSES) or f"choose {', '.join(LOSSES)} or module:loss"
            raise UsageError(f"unknown loss {kind!r}", hint)
        try:
            found[head] = (kind, float(factor or 1))
        except ValueError:
            raise UsageError(f"{factor!r} in the loss is no number", "as in 0.5*mse") from None
    return found


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Whole batches in one pass; the rest waits for the next pass, which is shuffled anew."""
    return max(1, samples // batch_size)


def paper_recipe(config: TrainConfig, *, faster: float = 5.0) -> TrainConfig:
    """The changes that BN allows, as a transform of a configuration for the plain network.

    A higher learning rate (5 times), a learning-rate decay six times as fast, L2 divided by 5 and
    no Dropout; samples are shuffled anew in each pass anyway. A schedule without a decay interval
    of its own becomes an exponential decay to a fortieth over the run. Removing LRN is a change of
    the network: see :func:`bnpass.strip`. Source: Ioffe & Szegedy 2015, section 4.2.1 and 4.2.2.
    """
    changed = replace(config, lr=config.lr * faster, weight_decay=config.weight_decay / 5,
                      schedule="step", dropout=False)
    if config.schedule == "step" and config.decay_every:
        return replace(changed, decay_every=max(1, config.decay_every // 6))
    return replace(changed, decay_every=0, decays=60, decay_factor=0.94)
