"""The table that a run ends with."""

from __future__ import annotations

from typing import Any

from bnpass.report.tables import Table, percent


def result_table(report: dict[str, Any]) -> Table:
    """Accuracy of the arms and of the deployed file, what BN left behind, and the proof."""
    accuracy = report["accuracy"]
    table = Table("result", ["", "value"])
    for arm in report["arms"]:
        table.add(f"accuracy {arm['name']}, {_steps(arm)} steps, lr {arm['lr']:g}",
                  percent(accuracy[arm["name"]]))
    table.add("accuracy of deploy.onnx on onnxruntime", percent(accuracy["deployed"]))
    table.add("BN inserted", report["insert"]["inserted"])
    table.add("biases dropped", report["insert"]["biases_dropped"])
    table.add("BN left in deploy.onnx", report["fold"]["left"])
    worst = max(report["verify"]["outputs"].values(), key=lambda c: float(c["max_abs"]))
    table.add("largest error, trained against deployed",
              f"{float(worst['max_abs']):.2g} ({float(worst['max_rel']):.2g} relative)")
    checks = report["determinism"]["checks"]
    table.add("two runs agree", agreement(checks, ("the same input", "a fresh process")))
    table.add("batch compositions agree", agreement(checks, ("another batch", "batches of")))
    table.note = f"test data: {report['data']['test_is']} ({report['data']['test']} samples)"
    return table


def agreement(checks: list[dict[str, Any]], kinds: tuple[str, ...]) -> str:
    """Whether all checks of some kinds found equal bits, or by how much they differ."""
    made = [c for c in checks if c["name"].startswith(kinds) and c["equal"] is not None]
    if not made:
        return "not checked"
    worst = max(made, key=lambda c: float(c["max_abs"]))
    return "yes, bit for bit" if all(c["equal"] for c in made) else \
        f"no, up to {float(worst['max_abs']):.2g} ({worst['name']})"


def search_table(report: dict[str, Any]) -> Table | None:
    """How each arm's learning rate was chosen; None where it was given."""
    arms = [arm for arm in report["arms"] if arm["trials"]]
    if not arms:
        return None
    rates = [trial["lr"] for trial in arms[0]["trials"]]
    table = Table(f"learning rate, chosen on {report['data']['validation']} validation samples in "
                  f"runs of {arms[0]['trials'][0]['steps']} steps",
                  ["", *(f"{rate:g}" for rate in rates), "chosen"])
    for arm in arms:
        merits = [percent(_finite(trial["merit"])) for trial in arm["trials"]]
        table.add(arm["name"], *merits, f"{arm['lr']:g}")
    return table


def _steps(arm: dict[str, Any]) -> int:
    return int(arm["history"]["rows"][-1]["step"])


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if abs(number) < float("inf") else None
