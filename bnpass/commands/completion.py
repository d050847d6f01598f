"""Print a script with which bash, zsh or fish complete commands, options and file names.

Put ``eval "$(bnpass completion bash)"`` into ~/.bashrc, the same with zsh into ~/.zshrc, or
``bnpass completion fish | source`` into ~/.config/fish/config.fish.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bnpass.commands import COMMANDS

if TYPE_CHECKING:
    from bnpass.report.ui import Ui

EXAMPLES = ("bnpass completion bash", "bnpass completion fish")
COMMON = ()

_BASH = """\
_bnpass() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="" ;;
  esac
  [ "$COMP_CWORD" = 1 ] && words="{commands}"
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "$words" -- "$word"))
       else COMPREPLY=($(compgen -f -- "$word")); fi ;;
  esac
}}
complete -o filenames -F _bnpass bnpass
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command."""
    known = _options()
    if args.shell == "fish":
        ui.print(_fish(known))
    else:
        start = "autoload -U +X bashcompinit && bashcompinit\n" if args.shell == "zsh" else ""
        ui.print(start + _bash(known))
    return 0


def _options() -> dict[str, list[str]]:
    """The long options of every command."""
    from bnpass.cli import build_parser

    found = {}
    for name in COMMANDS:
        parser = build_parser([name]).child(name)
        found[name] = sorted(o for a in parser._actions for o in a.option_strings if o[:2] == "--")
    return found


def _bash(known: dict[str, list[str]]) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(o)}" ;;' for name, o in known.items())
    return _BASH.format(cases=cases, commands=" ".join(known))


def _fish(known: dict[str, list[str]]) -> str:
    lines = [
        f"complete -c bnpass -n __fish_use_subcommand -f -a {name} -d '{COMMANDS[name]}'"
        for name in known
    ]
    lines += [
        f"complete -c bnpass -n '__fish_seen_subcommand_from {name}' -l {option[2:]}"
        for name, options in known.items()
        for option in options
    ]
    return "\n".join(lines) + "\n"
