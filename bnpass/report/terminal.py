r"""Text from files on a terminal: what a terminal would obey is shown instead.

Names, attributes and messages come from files of strangers. Escape sequences in them could clear
the screen, set the window's title or hide text; a newline could forge a line ``error:``; marks of
writing direction show a name in another order than it has. Every such character is written out as
Python does it (``\x1b``), in one place: here, on the way out.
"""

from __future__ import annotations

import re
import unicodedata

LINE = 4000
"""Characters of a line from which on its middle is left out."""

CELL = 1000
"""The same of a cell of a table."""

_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
"""Unicode's control and format characters, separators of lines and paragraphs, surrogates."""

_PLAIN = re.compile(r"[ -~]*")


def escaped(text: str, keep: str = "") -> str:
    """The text with control and format characters written out, but for those in ``keep``."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(
        char if char in keep or unicodedata.category(char) not in _CATEGORIES
        else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


def shortened(text: str, width: int) -> str:
    """The text, its middle left out where it is longer than ``width`` characters."""
    if len(text) <= width:
        return text
    half = width // 2 - 20
    return f"{text[:half]}...({len(text) - 2 * half:,} more characters)...{text[-half:]}"


def one_line(text: str, width: int = LINE) -> str:
    """The text as one line that a terminal shows and does not obey."""
    return escaped(shortened(text, width))


def lines(text: str) -> str:
    """Text of several lines, such as a traceback, likewise; its newlines and tabs stay."""
    return escaped(text, keep="\n\t")
