"""Part 1: insert, fold back and compare, on models that people know."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.common import ROOT, heading, table
from benchmarks.folding.judge import affine, error, feeds_for
from benchmarks.folding.judge import run as outputs

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = ("light_squeezenet", "lenet", "inception")


def run(quick: bool) -> dict[str, Any]:
    """Print one row a model, then why nonlinearities were skipped; return both."""
    paths = sorted(LIGHT.glob("light_*.onnx")) + sorted((ROOT / "models").glob("*.onnx"))
    paths = [p for p in paths if not quick or p.stem in QUICK]
    found = {}
    for path in paths:
        model = with_random_weights(path)
        found[path.stem] = measured(model)
        if found[path.stem]["norms"]:
            import bnpass

            folded = bnpass.fold(model, verify=False)
            found[f"{path.stem}, folded"] = measured(folded)
    heading("Insertion: known models, with seeded He-scaled weights and random statistics")
    print("error = max|a-b| / max|a| on onnxruntime, optimizations off: after insert(preserve), "
          "and after\ninsert(preserve) and fold; BN left: of those inserted, after folding back; "
          "varies = how far the\noutput moves when the input is redrawn, relative to its largest "
          "entry\n")
    table(["model", "BN before", "nonlinearities", "sites", "of them on branches",
           "sites (--sums value)", "skipped", "biases dropped", "BN left", "preserve", "folded",
           "varies"],
          [[name, f["norms"], f["nonlinearities"], f["sites"], f["branches"], f["sums_value"],
            sum(f["skipped"].values()), f["dropped"], f["left"], f["preserve"], f["folded"],
            f["varies"]]
           for name, f in found.items()])
    print()
    table(["skipped in", "how many", "why"],
          [[name, count, reason] for name, f in found.items()
           for reason, count in f["skipped"].items()])
    return found


def measured(model: onnx.ModelProto) -> dict[str, Any]:
    """Everything about one model."""
    import bnpass

    plan = bnpass.insert(model, plan_only=True)
    inserted = bnpass.insert(model, init="preserve")
    skip = [n.name for n in model.graph.node if n.op_type == "BatchNormalization" and n.name]
    folded = bnpass.fold(inserted, verify=False, skip=skip)
    before, _ = affine(model)
    after, _ = affine(folded)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("model", "inserted", "folded")}
        for name, proto in (("model", model), ("inserted", inserted), ("folded", folded)):
            onnx.save(proto, files[name])
        feeds = feeds_for(model, 1)
        reference = outputs(files["model"], feeds)
        return {
            "norms": before,
            "nonlinearities": plan.to_dict()["nonlinearities"],
            "sites": len(plan.sites),
            "branches": sum(bool(site.branch_of) for site in plan.sites),
            "sums_value": len(bnpass.insert(model, plan_only=True, sums="value").sites),
            "skipped": Counter(f"{s.kind}: {_general(s.reason)}" for s in plan.skipped),
            "dropped": sum(len(site.dropped) for site in plan.sites),
            "left": after - before,
            "preserve": error(reference, outputs(files["inserted"], feeds)),
            "folded": error(reference, outputs(files["folded"], feeds)),
            "varies": error(reference, outputs(files["model"], feeds_for(model, 2))),
        }


def _general(reason: str) -> str:
    """A reason without its outermost names, so that equal ones are counted together."""
    words = reason.split("'")
    return "'...'".join(words[::2]) if len(words) > 2 else reason


def with_random_weights(path: Path) -> onnx.ModelProto:
    """A copy whose weights are drawn anew: all of a light model's are 0.02, which proves nothing.

    Filters and matrices become normal with He's scale (fan in), BatchNorms get random statistics
    with some negative gammas. Constants that ConstantOfShape makes become initializers.
    """
    model = onnx.load(path)
    if not path.stem.startswith("light_"):
        return model
    rng = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    filled = [n for n in model.graph.node if n.op_type == "ConstantOfShape"]
    sizes = {n.output[0]: tuple(int(v) for v in shapes[n.input[0]]) for n in filled}
    roles = _roles(model)
    sizes.update({name: a.shape for name, a in shapes.items()
                  if name in roles and a.dtype == np.float32})
    kept = [t for t in model.graph.initializer if t.name not in sizes]
    nodes = [n for n in model.graph.node if n.op_type != "ConstantOfShape"]
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    for name, shape in sizes.items():
        array = _drawn(roles.get(name, ""), shape, rng).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    listed = {i.name for i in model.graph.input}
    if model.ir_version < 4:
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(name, 1, shape)
            for name, shape in sizes.items() if name not in listed)
    return model


def _roles(model: onnx.ModelProto) -> dict[str, str]:
    """What each weight is for, by the operator that reads it."""
    roles = {}
    for node in model.graph.node:
        parts = {"Conv": ("", "filter", "bias"), "Gemm": ("", "matrix", "bias"),
                 "MatMul": ("", "matrix"), "Mul": ("", "scale"), "Add": ("", "bias"),
                 "BatchNormalization": ("", "scale", "bias", "bias", "variance")}
        read = zip(node.input, parts.get(node.op_type, ()), strict=False)
        roles.update({name: role for name, role in read if role})
    return roles


def _drawn(role: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if role in ("filter", "matrix"):
        fan = int(np.prod(shape[1:])) if role == "filter" else max(shape)
        return rng.standard_normal(shape) * (2 / fan) ** 0.5
    if role == "scale":
        return rng.uniform(0.5, 1.5, shape) * np.where(rng.random(shape) < 0.2, -1, 1)
    if role == "variance":
        return rng.uniform(0.5, 1.5, shape)
    return rng.standard_normal(shape) * 0.1
