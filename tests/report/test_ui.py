"""Where output goes."""

from __future__ import annotations

import json
import time

import pytest

from bnpass.report import progress, status
from bnpass.report.tables import Table
from bnpass.report.ui import Ui


def test_results_go_to_stdout_and_the_log_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ui = Ui()
    ui.log("working")
    ui.detail("hidden")
    ui.table(Table("t", ["c"]))
    ui.say("done")
    ui.close()
    out, err = capsys.readouterr()
    assert err == "working\n"
    assert out.splitlines()[-1] == "done"


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    ui = Ui(json=True)
    ui.document["n"] = 1
    ui.log("working")
    ui.warn("careful")
    ui.table(Table("t", ["c"]))
    ui.say("done")
    ui.close()
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema": 1, "n": 1, "warnings": ["careful"]}
    assert err == "working\nwarning: careful\n"


def test_quiet_keeps_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    ui = Ui.from_arguments(["-q", "fold", "-v"])
    ui.log("working")
    ui.warn("careful")
    ui.error("broken", "mend it")
    with ui.progress("training", 10) as shown:
        shown.update(10)
    assert capsys.readouterr().err == "warning: careful\nerror: broken\nhint: mend it\n"


def test_progress_without_a_terminal_is_a_line_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 5.0, 6.0, 14.5, 18.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Ui().progress("training", 5) as shown:
        for step in range(1, 6):
            shown.update(step, f"loss {step}")
    assert capsys.readouterr().err.splitlines() == [
        "training: 1/5, 16 s left, loss 1", "training: 4/5, 4 s left, loss 4",
        "training: 5/5, loss 5",
    ]


@pytest.mark.parametrize(("seconds", "said"), [
    (0.4, "0 s"), (99, "99 s"), (125, "2:05 min"), (7200, "2:00 h"),
])  # fmt: skip
def test_durations_have_one_unit(seconds: float, said: str) -> None:
    assert progress.duration(seconds) == said


def test_what_takes_long_says_what_it_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "QUIET", 0.02)
    monkeypatch.setattr(status, "AGAIN", 0.02)
    ui = Ui()

    def wait(words: str) -> None:
        deadline = time.monotonic() + 20
        seen = ""
        while words not in seen and time.monotonic() < deadline:
            seen += capsys.readouterr().err
        assert words in seen

    with ui.status("reading") as says:
        wait("reading ... 0 s")
        says("planning")
        wait("planning ... ")
        with ui.status("verifying"):  # the one that is there goes on
            wait("verifying ... ")
    with Ui(quiet=True).status("reading"):
        time.sleep(0.1)
    assert "reading" not in capsys.readouterr().err
