"""What a terminal would obey is shown instead."""

from __future__ import annotations

import json
import unicodedata
import warnings

import pytest

from bnpass.report.document import to_json
from bnpass.report.logs import shown
from bnpass.report.tables import Table
from bnpass.report.terminal import escaped, lines, one_line
from bnpass.report.ui import Ui

DECEIT = "\x1b[2J\x1b]0;title\x07\r\nerror: fake\x7f\x9b1m\u202e\u2066\u2028\u200b\ufeff\x00\ud800"


def obeyed(text: str) -> set[str]:
    """The characters of a text that are no letters to show."""
    return {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp", "Cs"}}


def test_every_control_character_is_written_out() -> None:
    everything = "".join(map(chr, range(0x11000)))
    assert obeyed(everything)
    assert not obeyed(escaped(everything))
    assert escaped("\x1b[31m\u202e") == "\\x1b[31m\\u202e"


def test_letters_of_all_languages_stay() -> None:
    for text in ("conv1/weight", "Größe", "层", "свёртка", "a b", "😀"):
        assert escaped(text) == text


def test_tracebacks_keep_their_lines() -> None:
    assert lines("a\n\tb\x1b\r") == "a\n\tb\\x1b\\r"


def test_long_names_are_shortened_in_the_middle() -> None:
    text = one_line("a" * 10**6 + "the end")
    assert len(text) < 5000
    assert text.startswith("aaa")
    assert text.endswith("the end")
    assert "more characters" in text


def test_all_that_is_printed_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    ui = Ui(verbose=True)
    table = Table(DECEIT, [DECEIT, "b"], note=DECEIT)
    table.add(DECEIT, DECEIT)
    ui.table(table)
    for speak in (ui.say, ui.log, ui.detail, ui.warn):
        speak(DECEIT)
    ui.error(DECEIT, DECEIT)
    with ui.progress(DECEIT, 2) as progress:
        progress.update(2, DECEIT)
    with shown(ui):
        warnings.warn(DECEIT, stacklevel=1)
    ui.close()
    out, err = capsys.readouterr()
    assert obeyed(out + err) == {"\n"}
    assert not any(line.startswith("error: fake") for line in (out + err).splitlines())


def test_json_is_escaped_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    text = to_json({"name": DECEIT})
    assert not obeyed(text.replace("\n", ""))
    assert json.loads(text)["name"] == DECEIT
