"""The whole job: insert, train, calibrate, fold, verify."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.data.recorded import record_recipe, record_statistics
from bnpass.errors import InputError, UsageError
from bnpass.files import atomic_write, load_model, make_folder, save_model
from bnpass.pipeline.arms import Arm, train_arm
from bnpass.pipeline.config import Listener, RunConfig
from bnpass.pipeline.datasets import open_for
from bnpass.pipeline.measure import metrics_of, outputs_of
from bnpass.pipeline.outputs import NAMES, PLAIN, check_folder
from bnpass.pipeline.summary import count_norms, summarise
from bnpass.report.ui import is_first_process

if TYPE_CHECKING:
    import onnx
    from torch import fx

    from bnpass.data import Data, NamedData
    from bnpass.passes.sites import InsertPlan

WITH, WITHOUT = "with BN", "without BN"


@dataclass
class Job:
    """What is known so far; filled from step to step.

    Attributes:
        config: of the run.
        model: the input, its batch free.
        network: the same in torch.
        inserted, trained, deploy: the model after each step.
        plan: where BN went.
        train, validation, test: the data.
        test_is: what the test data is, in words.
        arms: the networks.
        seconds: what each step took.
        facts: of the later steps, for the report.
        scores: metrics of the arms on the test data, by name.
    """

    config: RunConfig
    model: onnx.ModelProto
    network: fx.GraphModule
    train: Data | NamedData
    validation: Data | NamedData
    test: Data | NamedData
    test_is: str
    plan: InsertPlan
    inserted: onnx.ModelProto
    arms: list[Arm] = field(default_factory=list)
    trained: onnx.ModelProto | None = None
    deploy: onnx.ModelProto | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def deployed_test(self) -> Data | NamedData:
        """The test data as the deployed model takes it."""
        from bnpass.data import Data
        from bnpass.data.normalisation import as_stored

        if isinstance(self.test, Data) and self.config.fold_normalisation:
            return as_stored(self.test)
        return self.test

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note what a step took."""
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start


def run_pipeline(
    model: str | os.PathLike[str] | onnx.ModelProto,
    data: str,
    out: str | os.PathLike[str],
    config: RunConfig,
    *,
    force: bool = False,
    resume: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Insert BN into a model, train it, take population statistics, fold, verify.

    Writes ``inserted.onnx``, ``trained.onnx`` (with population statistics), ``deploy.onnx``,
    ``report.json``, ``report.html``, ``curves.png`` and ``metrics.csv`` into ``out``, each in one
    step, and ``deploy.onnx`` only if it agrees with ``trained.onnx``.

    Args:
        model: an ONNX model without BN in front of some nonlinearity.
        data: labelled data, see :func:`bnpass.data.open_data`.
        out: a folder; made if it is not there.
        config: how to run.
        force: replace files of an earlier run.
        resume: go on with a run of the same settings that was interrupted, at whatever step.
        listener: is shown the progress.

    Returns:
        The report, as written to ``report.json``; under torchrun, which shares training and
        statistics among its processes, in the first one alone.

    Raises:
        InputError: model or data cannot be used, or there is no nonlinearity to normalise.
        OutputError: the folder cannot be written, or holds an earlier run without ``force``.
        VerificationError: the folded model does not agree with the trained one.
        MissingDependencyError: torch or onnxruntime is missing.
    """
    from bnpass.nn import distributed
    from bnpass.report.curves import can_draw
    from bnpass.report.ui import Ui

    shown: Listener = listener or Ui(quiet=True)
    folder = Path(out)
    source = model if isinstance(model, str | os.PathLike) else None
    names = NAMES + (PLAIN if config.compare_plain else ())
    force = force or resume
    first = is_first_process()
    check_folder(folder, source, force=force or not first, names=names)
    job = _open(model, data, config)
    shown.log(f"insert: {len(job.plan.sites)} BatchNorms, {job.plan.dropped} biases dropped, "
              f"{job.plan.nonlinearities} nonlinearities")
    _make_arms(job)
    if not can_draw():
        shown.log("no pictures: matplotlib is not installed (pip install matplotlib); the numbers "
                  "are written all the same")
    if first:
        make_folder(folder)
        save_model(job.inserted, folder / "inserted.onnx", force=force, source=source)
    _train(job, folder, shown, resume=resume)
    _calibrate(job, shown)
    _score(job)
    distributed.leave()  # the rest is the first process's alone
    if not first:
        return {}
    _write_trained(job, folder, force, source)
    _fold(job, shown)
    assert job.deploy is not None
    save_model(job.deploy, folder / "deploy.onnx", force=force, source=source)
    _measure(job, shown)
    report = summarise(job)
    _write_report(job, report, folder)
    return report


def _open(model: Any, data: str, config: RunConfig) -> Job:
    """Read model and data, plan and insert; nothing is written yet."""
    import bnpass
    from bnpass.frontends.onnx.free_batch import free_batch

    start = time.perf_counter()
    free = free_batch(load_model(model))
    network = bnpass.to_torch(free)  # first: it names every operator that cannot be trained
    plan = bnpass.insert(free, plan_only=True, **config.insert)
    if not plan.sites:
        raise InputError("the model has no nonlinearity that a BatchNorm can go in front of",
                         "bnpass insert MODEL --dry-run --explain lists the reasons")
    inserted = bnpass.insert(free, **config.insert)
    took = time.perf_counter() - start
    train, validation, test, test_is = _open_data(free, data, config)
    return Job(config, free, network, train, validation, test, test_is, plan, inserted,
               seconds={"insert": took})


def _open_data(
    model: Any, spec: str, config: RunConfig
) -> tuple[Data | NamedData, Data | NamedData, Data | NamedData, str]:
    from bnpass.data import NamedData, splits

    seed = config.train.seed
    whole = _samples(open_for(model, spec, split="train", **config.data), spec)
    if config.test_data is not None:
        test = _samples(open_for(model, config.test_data, split="test", **config.data), spec)
        test_is = config.test_data
    elif "test" in splits(spec):
        test = _samples(open_for(model, spec, split="test", **config.data), spec)
        test_is = f"the test split of {spec}"
    else:
        whole, test = whole.split(config.validation, seed + 1)
        test_is = f"{len(test)} samples held out of {spec}"
    if config.fold_normalisation and isinstance(whole, NamedData):
        raise UsageError("--fold-normalisation with several arrays by name",
                         "leave it out, or fold what each input needs: bnpass fold --help")
    train, validation = whole.split(config.validation, seed)
    return train, validation, test, test_is


def _samples(data: Any, spec: str) -> Data | NamedData:
    from bnpass.data import Stream

    if isinstance(data, Stream):
        raise InputError(f"{spec}: gives batches, of which none can be held out",
                         "return arrays or a torch Dataset; or take the steps one by one: insert, "
                         "train, calibrate, fold")
    return data  # type: ignore[no-any-return]


def _make_arms(job: Job) -> None:
    """Import the networks and check that the labels fit them."""
    import torch

    import bnpass
    from bnpass.training.feed import Reader
    from bnpass.training.losses import objective

    job.arms = [Arm(WITH, job.inserted, bnpass.to_torch(job.inserted))]
    if job.config.compare_plain:
        job.arms.append(Arm(WITHOUT, job.model, job.network))
    gm, train = job.arms[0].gm, job.config.train
    example = Reader(job.train, torch.device("cpu"), gm).example()[0]
    for part in (job.train, job.validation, job.test):
        objective(gm, part.labels, example, loss=train.loss, metric=train.metric,
                  ignore_index=train.ignore_index)


def _train(job: Job, folder: Path, shown: Listener, *, resume: bool) -> None:
    with job.timed("train"):
        for arm in job.arms:
            out = folder if arm.name == WITH else folder / "plain"
            history = train_arm(arm, job.train, job.validation, job.config, shown, out, resume)
            if arm.name == WITHOUT and is_first_process():
                atomic_write(folder / "metrics_plain.csv", history.to_csv())


def _calibrate(job: Job, shown: Listener) -> None:
    from bnpass.training import calibrate
    from bnpass.training.devices import pick_device

    train = job.config.train
    shown.log(f"calibrate: population statistics over {len(job.train)} samples")
    with job.timed("calibrate"):
        calibrate(job.arms[0].gm, job.train, batch_size=job.config.statistics_batch,
                  device=pick_device(train.device), seed=train.seed)


def _write_trained(job: Job, folder: Path, force: bool, source: Any) -> None:
    import bnpass

    for arm in job.arms:
        written = record_recipe(bnpass.write_back(arm.gm, arm.model), job.train.recipe)
        if arm.name == WITH and not job.config.train.freeze_bn:
            record_statistics(written, "pooled")
        name = "trained.onnx" if arm.name == WITH else "plain.onnx"
        save_model(written, folder / name, force=force, source=source)
        if arm.name == WITH:
            job.trained = written


def _fold(job: Job, shown: Listener) -> None:
    from bnpass.data import Data
    from bnpass.data.normalisation import Normalisation
    from bnpass.deploy import DeployOptions, deploy
    from bnpass.frontends.onnx.folding import FoldOptions
    from bnpass.onnx_model.model import OnnxModel
    from bnpass.runtime.verify import verify

    assert job.trained is not None
    wanted = DeployOptions(FoldOptions(**job.config.fold))
    if job.config.fold_normalisation and isinstance(job.train, Data):
        wanted = replace(wanted, normalisation=Normalisation.of(job.train.converter))
    with job.timed("fold"):
        done = deploy(OnnxModel.of(job.trained).copy(), wanted)
    job.deploy, job.facts["fold"] = done.model, done.folded.plan.to_dict()
    left = count_norms(job.deploy)
    shown.log(f"fold: {count_norms(job.trained)} BatchNorms, {left} left")
    with job.timed("verify"):
        batches = (x for x, _ in job.deployed_test.batches(500))
        report = verify(done.reference, job.deploy, data=batches, limit=1 << 30,
                        provider=job.config.provider)
    if job.config.verify:
        report.raise_if_failed()
    job.facts["verify"] = report.to_dict()
    shown.log(f"verify: {'passed' if report.passed else 'FAILED'} on {job.test_is}")


def _score(job: Job) -> None:
    """How good the arms are on the test data; all processes share the work."""
    from bnpass.training import evaluate

    train = job.config.train
    with job.timed("score"):
        for arm in job.arms:
            score = evaluate(arm.gm, job.test, loss=train.loss, device=train.device,
                             metric=train.metric, ignore_index=train.ignore_index)
            job.scores[arm.name] = score.metrics
            job.facts.setdefault("loss", {})[arm.name] = score.loss


def _measure(job: Job, shown: Listener) -> None:
    from bnpass.runtime.determinism import determinism

    assert job.deploy is not None
    with job.timed("measure"):
        outputs = outputs_of(job.deploy, job.deployed_test, job.config.provider)
        found = metrics_of(outputs, job.test, job.arms[0].gm, job.config.train)
        scores = {**job.scores, "deployed": found}
        job.facts["metrics"] = {name: {who: values.get(name) for who, values in scores.items()}
                                for name in found}
        shown.log("determinism: the deployed model again, and in other batch compositions")
        sample, _ = next(job.deployed_test.batches(64))
        job.facts["determinism"] = determinism(job.deploy, sample).to_dict()


def _write_report(job: Job, report: dict[str, Any], folder: Path) -> None:
    from bnpass.pipeline.page import write_run_page
    from bnpass.pipeline.summary import curves_of, percentiles_of
    from bnpass.report.curves import can_draw, draw_curves, draw_range
    from bnpass.report.document import to_json
    from bnpass.report.percentiles import draw_percentiles

    atomic_write(folder / "report.json", to_json(report) + "\n")
    write_run_page(job, report, folder)
    if not can_draw():
        return
    draw_curves(curves_of(job.arms), folder / "curves.png", title=report["model"]["name"])
    if job.config.train.watch:
        draw_percentiles(percentiles_of(job.arms), folder / "percentiles.png")
    for arm in job.arms:
        if arm.range is not None:
            name = "lr_range.png" if arm.name == WITH else "lr_range_plain.png"
            draw_range(arm.range, folder / name)
