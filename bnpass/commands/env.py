"""Show packages, versions, and the execution providers that really work.

Each provider is tried with a tiny convolution; what is missing is listed with the command that
installs it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bnpass.commands import options
from bnpass.report.tables import Table
from bnpass.report.ui import Ui

if TYPE_CHECKING:
    from bnpass.runtime.environment import Environment


EXAMPLES = (
    "bnpass env",
    "bnpass env --json",
)
COMMON = ("--no-torch", "--json", "-q")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--no-torch", action="store_true",
                        help="do not import torch (which takes seconds)")
    options.add_output_options(parser)


def run(args: argparse.Namespace, ui: Ui) -> int:
    """Run the command; problems are shown, but are no failure."""
    from bnpass import __version__
    from bnpass.runtime.environment import environment

    found = environment(torch=not args.no_torch)
    ui.document.update(ok=not found.problems, bnpass=__version__, **found.to_dict())
    ui.say(f"bnpass {__version__}, Python {found.python}, {found.system}, {found.cores} cores")
    ui.table(package_table(found))
    ui.table(provider_table(found))
    for problem, cure in found.problems:
        ui.say(f"problem: {problem}")
        ui.say(f"cure:    {cure}")
    if not found.problems:
        ui.say("no problems found")
    return 0


def package_table(found: Environment) -> Table:
    """Versions, or how to install what is missing."""
    table = Table("packages", ["package", "version", "install with"])
    for name, version in found.packages.items():
        table.add(name, version, found.install.get(name, ""))
    if found.torch:
        devices = found.torch.get("devices") or ["no GPU"]
        table.note = f"torch is built for {found.torch.get('built_for')}: {', '.join(devices)}"
    return table


def provider_table(found: Environment) -> Table:
    """Which of onnxruntime's execution providers ran."""
    table = Table("onnxruntime's providers", ["provider", "works", "reason", "hint"])
    for fact in found.providers:
        table.add(fact.name, fact.works, fact.reason, fact.hint)
    return table
