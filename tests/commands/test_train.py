"""bnpass train."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import processes
from tests.commands.helpers import Run, files, mlp, write

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ("--steps", "20", "--device", "cpu")


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_training_writes_the_parameters_back_by_name(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("train", normed, "--data", data, "-o", out, "--steps", "80", "--lr", "0.3")
    assert result.code == 0, result.err
    before, after = weights(normed), weights(out)
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before)
    assert [n.op_type for n in onnx.load(out).graph.node] == [
        n.op_type for n in onnx.load(normed).graph.node
    ]
    accuracy = float(result.out.split("validation accuracy ")[1].split(" %")[0])
    assert accuracy > 80
    assert "next: bnpass calibrate" in result.out.splitlines()[-1]


def test_the_run_leaves_metrics_curves_and_checkpoints(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    bnpass("train", plain, "--data", data, "-o", tmp_path / "out.onnx", *SHORT)
    assert files(tmp_path / "out.run") == [
        "checkpoints/best.pt", "checkpoints/last.pt", "curves.png", "metrics.csv"
    ]
    rows = list(csv.DictReader((tmp_path / "out.run/metrics.csv").open()))
    assert rows[-1]["step"] == "20"


def test_the_same_seed_gives_the_same_file(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        bnpass("train", normed, "--data", data, "-o", tmp_path / f"{name}.onnx", *SHORT,
               "--seed", seed)
    a, b, c = ((tmp_path / f"{name}.onnx").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_an_earlier_run_needs_force_or_resume(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    first, again = tmp_path / "a.onnx", tmp_path / "b.onnx"
    common = ("--data", data, *SHORT, "--run-dir", tmp_path / "run")
    assert bnpass("train", plain, "-o", first, *common).code == 0
    bnpass("train", plain, "-o", again, *common).assert_refused(2, "earlier run", "--resume")
    assert bnpass("train", plain, "-o", again, *common, "--resume").code == 0
    assert first.read_bytes() == again.read_bytes()


def test_a_rate_can_be_found_by_a_range_test(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    result = bnpass("train", normed, "--data", data, "-o", out, *SHORT, "--lr", "auto", "--json")
    assert result.code == 0, result.err
    found = result.document["lr_range"]
    assert result.document["history"]["config"]["lr"] == found["suggestion"]
    assert (tmp_path / "out.run/lr_range.png").read_bytes().startswith(b"\x89PNG")


def test_percentiles_of_watched_values_as_table_and_picture(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path
) -> None:
    common = ("train", normed, "--data", data, "-o", tmp_path / "out.onnx", *SHORT)
    result = bnpass(*common, "--watch", "before:act0", "--watch", "act0[2]", "--log-every", "5",
                    "--eval-every", "10")
    assert result.code == 0, result.err
    folder = tmp_path / "out.run"
    rows = list(csv.DictReader((folder / "percentiles.csv").open()))
    assert [(r["step"], r["value"]) for r in rows[-4:]] == [
        ("15", "before:act0"), ("15", "act0[2]"), ("20", "before:act0"), ("20", "act0[2]")]
    assert all(float(r["p15"]) < float(r["p50"]) < float(r["p85"]) for r in rows)
    assert (folder / "percentiles.png").read_bytes().startswith(b"\x89PNG")
    assert bnpass(*common, "--force").code == 0
    assert not (folder / "percentiles.csv").exists()
    bnpass(*common, "--force", "--watch", "act").assert_refused(2, "no value 'act'", "act0")


def test_tensorboard_is_optional(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = bnpass("train", normed, "--data", data, "-o", tmp_path / "out.onnx", *SHORT,
                    "--tensorboard")
    result.assert_refused(3, "TensorBoard", "pip install tensorboard")


@pytest.mark.parametrize("option", [("--virtual-batch", "16"), ("--freeze-bn",)])
def test_ghost_batches_and_frozen_norms_fold(
    bnpass: Run, normed: Path, data: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    out, deploy = tmp_path / "out.onnx", tmp_path / "deploy.onnx"
    assert bnpass("train", normed, "--data", data, "-o", out, *SHORT, *option).code == 0
    kept = all((weights(normed)[f"h0_{n}"] == weights(out)[f"h0_{n}"]).all()
               for n in ("gamma", "beta", "mean", "var"))
    assert kept == ("--freeze-bn" in option)
    assert bnpass("fold", out, "-o", deploy).code == 0
    assert "BatchNormalization" not in [n.op_type for n in onnx.load(deploy).graph.node]


@pytest.mark.parametrize(("limit", "file"), [(2_000, "best.pt"), (20_000, "metrics.csv")])
def test_a_full_disk_is_one_line_and_leaves_whole_files(
    normed: Path, data: Path, tmp_path: Path, limit: int, file: str
) -> None:
    """A limit on the size of a file stands in for it: the same error of the system."""
    import resource

    out = tmp_path / "out.onnx"
    steps = ("--steps", "1000", "--log-every", "1", "--eval-every", "2000", "--device", "cpu") \
        if file == "metrics.csv" else SHORT
    done = processes.run(
        [sys.executable, "-B", "-m", "bnpass", "train", str(normed), "--data", str(data), "-o",
         str(out), "-q", *steps], capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert file in lines[-2] and "File too large" in lines[-2]
    assert lines[-1].startswith("hint: free some space")
    assert not out.exists()
    assert not [name for name in files(tmp_path / "out.run") if name.endswith((".tmp", ".pt"))]


def test_a_folder_of_images_in_the_size_that_is_wanted(bnpass: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for number, colour in enumerate(("blue", "red", "white")):
        (tmp_path / "images" / colour).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 80, (10 + i % 3, 12, 3)).astype(np.uint8)
            pixels[..., number] += 150
            image.fromarray(pixels).save(tmp_path / "images" / colour / f"{i}.png")
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 20]>
        g (float[N,3,H,W] x) => (float[N,3] y) {
            a = Conv <kernel_shape=[3,3]> (x, w) b = Sigmoid(a) c = GlobalAveragePool(b)
            y = Flatten(c) }""")
    array = rng.normal(size=(3, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    path, out = write(model, tmp_path / "net.onnx"), tmp_path / "out.onnx"
    common = ("train", path, "--data", tmp_path / "images", "-o", out, "--device", "cpu", "--steps",
              "30", "--validation", "0.2", "--json")
    bnpass(*common[:-1]).assert_refused(2, "images of 3 sizes", "resize")
    result = bnpass(*common, "--resize", "8x6", "--fit", "stretch", "--workers", "1", "--mean",
                    "0.5,0.5,0.4", "--std", "0.2")
    assert result.code == 0, result.err
    recipe = result.document["data"]
    assert recipe["shape"] == [3, 8, 6]
    assert (recipe["source"]["size"], recipe["source"]["fit"]) == ([8, 6], "stretch")
    (tmp_path / "images" / "yellow").mkdir()
    bnpass(*common[:-1], "--force", "--resize", "8").assert_refused(2, "yellow: a class without")
    bnpass(*common[:-1], "--force", "--resize", "0x3").assert_refused(2, "--resize")


@pytest.mark.parametrize("ending", ["Softmax", "LogSoftmax"])
def test_a_final_softmax_is_kept_and_trained_in_front_of(
    bnpass: Run, data: Path, tmp_path: Path, ending: str
) -> None:
    model = write(mlp(ending=ending), tmp_path / "net.onnx")
    out = tmp_path / "out.onnx"
    document = bnpass("train", model, "--data", data, "-o", out, *SHORT, "--json").document
    assert onnx.load(out).graph.node[-1].op_type == ending
    assert 0.5 < document["history"]["rows"][0]["loss"] < 3


def test_labels_that_do_not_fit_are_refused(bnpass: Run, plain: Path, tmp_path: Path) -> None:
    x = np.zeros((40, 6), np.float32)
    np.savez(tmp_path / "bad.npz", x=x, y=np.arange(40) % 5)
    before = files(tmp_path)
    result = bnpass("train", plain, "--data", tmp_path / "bad.npz", "-o", tmp_path / "o.onnx",
                    *SHORT)
    result.assert_refused(2, "label")
    assert files(tmp_path) == before


def test_an_operator_that_is_not_known_is_named(bnpass: Run, data: Path, tmp_path: Path) -> None:
    model = mlp()
    model.graph.node[1].op_type = "Sigmoyd"
    path = write(model, tmp_path / "odd.onnx")
    result = bnpass("train", path, "--data", data, "-o", tmp_path / "o.onnx", *SHORT)
    result.assert_refused(2, "Sigmoyd")
    assert files(tmp_path) == ["data.npz", "odd.onnx"]


def test_a_setting_that_cannot_be_is_refused(bnpass: Run, plain: Path, data: Path) -> None:
    common = ("train", plain, "--data", data, "-o", plain.with_name("o.onnx"))
    bnpass(*common, "--lr", "-1").assert_refused(2, "not a positive number")
    bnpass(*common, "--optimizer", "adam").assert_refused(2, "adam", "did you mean 'adamw'?")
    bnpass(*common, "--device", "gpu").assert_refused(2, "gpu")
    bnpass(*common, "--precision", "fp16", "--device", "cpu").assert_refused(2, "fp16")


def test_a_gpu_that_is_not_there_is_exit_3(bnpass: Run, plain: Path, data: Path) -> None:
    import torch

    result = bnpass("train", plain, "--data", data, "-o", plain.with_name("o.onnx"), "--steps", "2",
                    "--device", f"cuda:{torch.cuda.device_count()}")
    result.assert_refused(3, "cuda")


def test_ctrl_c_ends_with_130_and_keeps_the_checkpoint(
    bnpass: Run, plain: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    common = ("train", str(plain), "--data", str(data), "-o", str(out), "--steps", "100000",
              "--eval-every", "10", "--device", "cpu")
    command = [sys.executable, "-m", "bnpass", *common]
    with processes.started(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("train:"):
                break
        checkpoint = tmp_path / "out.run/checkpoints/last.pt"
        while not checkpoint.exists() and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        left = running.stderr.read().splitlines()
        assert running.wait() == 130
    assert left[-2] == "error: interrupted"
    assert left[-1].startswith("hint:")
    assert not any("Traceback" in line for line in left)
    assert not out.exists()
    assert checkpoint.exists()


def test_under_torchrun_one_process_speaks_and_writes(
    normed: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    done = processes.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "bnpass", "train", str(normed), "--data", str(data), "-o", str(out), *SHORT],
        capture_output=True, text=True, check=False, timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert done.stderr.count("data: ") == 1
    assert out.exists()
