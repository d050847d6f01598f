"""The table that a run ends with."""

from __future__ import annotations

from typing import Any

from bnpass.report.tables import Table, is_share, measure


def result_table(report: dict[str, Any]) -> Table:
    """How good the arms and the deployed file are, what BN left behind, and the proof."""
    metric = report["metric"]
    table = Table("result", ["", "value"])
    for arm in report["arms"]:
        value = measure(metric, report[metric][arm["name"]]) if metric else \
            f"{float(report['loss'][arm['name']]):.4g}"
        table.add(f"{metric or 'loss'} {arm['name']}, {_steps(arm)} steps, lr {arm['lr']:g}", value)
    if metric:
        table.add(f"{metric} of deploy.onnx on onnxruntime",
                  measure(metric, report[metric]["deployed"]))
    table.add("BatchNorm inserted", report["insert"]["inserted"])
    table.add("biases dropped", report["insert"]["biases_dropped"])
    table.add("BatchNorm left in deploy.onnx", report["fold"]["left"])
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
        merits = [_merit(report["metric"], trial["merit"]) for trial in arm["trials"]]
        table.add(arm["name"], *merits, f"{arm['lr']:g}")
    return table


def _steps(arm: dict[str, Any]) -> int:
    return int(arm["history"]["rows"][-1]["step"])


def _merit(metric: str | None, value: Any) -> str:
    """A trial's result in the metric's unit; errors and losses are negated in it."""
    number = float(value)
    if not abs(number) < float("inf"):
        return "-"
    return measure(metric, number) if metric and is_share(metric) else f"{abs(number):.4g}"
