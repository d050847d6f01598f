"""The argument parser: help that fits a screen, and errors with close matches as their hint."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from bnpass.commands import COMMANDS
from bnpass.errors import UsageError, close_matches


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written; room for the longest names beside their help."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{**options, "max_help_position": 28})

    def add_argument(self, action: argparse.Action) -> None:
        """Declare an option; argparse forgets the indent of commands when it measures them."""
        super().add_argument(action)
        self._action_max_length = max(self._action_max_length, 4 + max(map(len, COMMANDS)))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`UsageError` with close matches as the hint."""

    examples: tuple[str, ...] = ()
    common: frozenset[str] = frozenset()
    """Options that ``--help`` shows; ``--help-all`` shows the others too."""

    def short_help(self) -> str:
        """Examples, usage, what the command does, and its common options, a line or two each."""
        rows = [(a, str(a.metavar or a.dest)) for a in self._actions if not a.option_strings]
        options = [a for a in self._actions if not self.common.isdisjoint(a.option_strings)]
        rows += [(a, _invocation(a)) for a in options]
        what = (self.description or "").split("\n\n")[0]
        lines = [*(f"  {line}" for line in self.examples), "", f"usage: {usage(self)}", "",
                 *textwrap.wrap(what, _WIDTH), "",
                 *(line for action, name in rows for line in _row(action, name))]  # fmt: skip
        rest = sum(bool(a.option_strings) for a in self._actions) - len(options) - 1
        more = f"{rest} more options: {self.prog} --help-all" if rest > 0 else ""
        return "\n".join([*lines, "", more]).strip("\n") + "\n"

    def format_help(self) -> str:
        """All there is, the examples first."""
        examples = "".join(f"  {line}\n" for line in self.examples)
        return f"{examples}\n{super().format_help()}" if examples else super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        choice = re.search(r"invalid choice: '?([^'\s]+)'? \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w.:-]+", choice[2])
            hint = close_matches(choice[1], known) or f"one of: {', '.join(known)}"
            if message.startswith("argument COMMAND"):
                message = f"unknown command {choice[1]!r}"
            raise UsageError(message, hint)
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown and unknown[1].startswith("-"):
            hint = close_matches(unknown[1].split("=")[0], self._option_strings())
            raise UsageError(f"unknown option {unknown[1]!r}",
                             hint or f"{self.prog} --help lists the options")
        raise UsageError(message, f"see {self.prog} --help")

    def child(self, name: str) -> Parser:
        """The parser of a command."""
        (commands,) = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        found: Parser = commands.choices[name]
        return found

    def _option_strings(self) -> list[str]:
        return [text for action in self._actions for text in action.option_strings]

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; unknown options are reported by the command's own parser, which knows its own."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(parsed, "parser", self)
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed


class _Help(argparse.Action):
    """``--help`` and ``--help-all``: print, and leave."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "dest": argparse.SUPPRESS, "nargs": 0})

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print the help on stdout."""
        assert isinstance(parser, Parser)
        every = "--help-all" in self.option_strings
        parser._print_message(parser.format_help() if every else parser.short_help(), sys.stdout)
        parser.exit()


def add_help(parser: Parser, examples: Sequence[str], common: Sequence[str]) -> None:
    """Declare ``--help``, which shows examples and common options, and ``--help-all``.

    Args:
        parser: of a command.
        examples: lines that can be typed as they are, shown first.
        common: options that ``--help`` shows.
    """
    parser.examples, parser.common = tuple(examples), frozenset(("-h", *common))
    parser.add_argument("-h", "--help", action=_Help, help="show this and leave")
    parser.add_argument("--help-all", action=_Help, help="show all options, and leave")


_WIDTH, _COLUMN = 79, 25


def _invocation(action: argparse.Action) -> str:
    """``-o, --output FILE``."""
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    choices = "|".join(map(str, action.choices)) if action.choices is not None else ""
    return f"{names} {action.metavar or choices or action.dest.upper()}"


def _row(action: argparse.Action, name: str) -> list[str]:
    """An option and the first thing to know about it; the rest is in ``--help-all``."""
    text = re.split(r";| \((?!default)", action.help or "")[0].replace("%%", "%")
    lines = textwrap.wrap(text, _WIDTH - _COLUMN) or [""]
    head = f"  {name}"
    if len(head) > _COLUMN - 2:
        return [head, *(f"{'':{_COLUMN}}{line}" for line in lines)]
    return [f"{head:{_COLUMN}}{lines[0]}", *(f"{'':{_COLUMN}}{line}" for line in lines[1:])]


def usage(parser: Parser) -> str:
    """``bnpass fold [options] MODEL.onnx``: the list of options stands below anyway."""
    positionals = [str(a.metavar or a.dest) for a in parser._actions if not a.option_strings]
    required = [f"{a.option_strings[0]} {a.metavar}" for a in parser._actions
                if a.option_strings and a.required]
    return " ".join([parser.prog, *positionals, *required, "[options]"])
