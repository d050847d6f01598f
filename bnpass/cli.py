"""The command line: finds the command, parses its options, turns errors into lines and exit codes.

Only argparse is imported here, and only the chosen command's module after that, so that
``bnpass --help`` and ``--version`` start at once.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import gc
import os
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from bnpass import __version__, signals
from bnpass.commands import COMMANDS
from bnpass.errors import (
    BnpassError,
    LostPeerError,
    MissingDependencyError,
    OutOfMemoryError,
    UsageError,
    close_matches,
)
from bnpass.parser import Formatter, Parser, add_help, usage
from bnpass.report import streams
from bnpass.report.ui import Ui, process_count

EPILOG = """\
exit codes:
  0    done, or nothing to do and said so
  1    it ran and the answer is no: verification failed, or --require-change and nothing changed
  2    usage or input error
  3    environment: a package or an execution provider is missing, memory ran out, or a result
       could not be printed
  130  interrupted (143 after SIGTERM)

'bnpass help COMMAND' shows a command's options, 'bnpass COMMAND --help-all' the rare ones too.
"""


RESUMING = frozenset({"train", "run"})
"""Commands that take ``--resume``."""

REWRITING = frozenset({"insert", "strip", "fold", "collapse", "unfold", "inspect"})
"""Commands that edit a model and leave."""

PACKAGES = {
    **{name: name for name in ("matplotlib", "networkx", "numpy", "onnx", "onnxruntime",
                               "onnxscript", "rich", "safetensors", "tensorboard", "torch")},
    "PIL": "pillow",
    "ml_dtypes": "ml_dtypes",
}
"""What pip calls the packages that some command imports, by the module's name."""


_LAST_WORDS = b"error: out of memory\nhint: close other programs\n"
_LITTLE = 1 << 25  # bytes
_NO_MEMORY = ("annot allocate memory", "can't allocate memory", "out of memory", "bad_alloc",
              "Failed to serialize")
_PEER_GONE = ("onnection closed by peer", "onnection reset by peer", "onnection refused",
              "Broken pipe", "Timed out waiting", "NCCL", "gloo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one bnpass command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1, 2, 3, 130 or 143 (see :data:`EPILOG`).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None or sys.stderr is None:
        streams.repair()
    ui = Ui.from_arguments(arguments)
    if argv is None and arguments[:1] and arguments[0] in REWRITING:
        gc.disable()  # a process that ends in a moment: the collector would only cost time
    try:
        return _guarded(arguments, ui)
    except KeyboardInterrupt as error:  # also while another error is being looked into
        what = "terminated" if isinstance(error, signals.Terminated) else "interrupted"
        if process_count() > 1 and what == "terminated":
            what += ", as torchrun does with all processes when one is lost"
        ui.error(what, "every file that is there is whole; " + _way_on(arguments))
        return signals.exit_code(error)


def _guarded(arguments: list[str], ui: Ui) -> int:
    """The command, its errors as lines and exit codes."""
    try:
        return _printed(_dispatch(arguments, ui), ui)
    except BnpassError as error:
        return _failed(ui, error, arguments)
    except Exception as error:  # noqa: BLE001  # the last resort: a bug becomes one line too
        with contextlib.suppress(MemoryError):
            known = _lost_peer(error, arguments) or _missing_package(error) \
                or _no_memory(error) or _internal(error)
            known.__cause__ = error
            return _failed(ui, known, arguments)
        os.write(2, _LAST_WORDS)
        return OutOfMemoryError.exit_code


def script() -> NoReturn:
    """The process ``bnpass``: :func:`main`, and leave with its exit code."""
    streams.repair()
    signals.install()
    try:
        code = main()
    except KeyboardInterrupt as error:  # while an error was being printed
        code = signals.exit_code(error)
    signals.ignore()
    if sys.argv[1:2] and sys.argv[1] in REWRITING and threading.active_count() == 1:
        _leave(code)
    raise SystemExit(code)


def _leave(code: int) -> NoReturn:
    """End the process without freeing a large graph object by object: a tenth of a fold's time."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        streams.write(stream, "", flush=True)
    os._exit(code)


def _printed(code: int, ui: Ui) -> int:
    """The exit code in view of what could be printed: a result that is lost is an error.

    A reader that left (``| head``) has what it wanted; with a file written the result is that.
    """
    if ui.lost is None or isinstance(ui.lost, BrokenPipeError):
        return code
    lost = f"the result could not be printed: {ui.lost.strerror or ui.lost}"
    if code != 0 or ui.document.get("output"):
        ui.warn(lost)
        return code
    ui.error(lost, "free some space, or send it elsewhere")
    return 3


def _missing_package(error: Exception) -> BnpassError | None:
    """A failed import of a package that bnpass uses is no bug but one ``pip install`` away."""
    name = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name not in PACKAGES:
        return None
    return MissingDependencyError(f"the package {PACKAGES[name]!r} is not installed",
                                  f"pip install {PACKAGES[name]}")


def _no_memory(error: Exception) -> BnpassError | None:
    """Python, the system, the loader, C++ and torch each say in their own way that it ran out.

    And some extensions say nothing: where not even a little can be had, that was the reason.
    """
    telling = isinstance(error, OSError | ImportError | RuntimeError)
    said = str(error) if telling or type(error).__name__ == "EncodeError" else ""
    if not isinstance(error, MemoryError) and not any(words in said for words in _NO_MEMORY):
        try:
            bytearray(_LITTLE)
        except MemoryError:
            pass
        else:
            return None
    return OutOfMemoryError("out of memory", "close other programs, or use a smaller --batch-size")


def _way_on(arguments: list[str]) -> str:
    """How a command that was cut short is taken up."""
    if arguments[:1] and arguments[0] in RESUMING:
        again = "; torchrun --max-restarts N does so by itself" if process_count() > 1 else ""
        return f"the same command with --resume goes on from the last checkpoint{again}"
    return "run it again to go on"


def _lost_peer(error: Exception, arguments: list[str]) -> BnpassError | None:
    """What gloo and nccl say, each in its own words, when another process is gone."""
    if process_count() == 1 or not isinstance(error, RuntimeError):
        return None
    named = {kind.__name__ for kind in type(error).__mro__}
    if "DistError" not in named and not any(words in str(error) for words in _PEER_GONE):
        return None
    signals.ignore()  # torchrun's, which comes at the same moment: what is lost is to be said
    return LostPeerError(f"another of the {process_count()} processes was lost: "
                         f"{_one_line(str(error))}", _way_on(arguments))


def _internal(error: Exception) -> BnpassError:
    return BnpassError(f"internal error: {type(error).__name__}: {_one_line(str(error))}",
                       "this is a bug in bnpass: run again with --debug and report it")


def _dispatch(arguments: list[str], ui: Ui) -> int:
    if arguments[:1] == ["help"]:
        arguments = _asked_for(arguments[1:])
    parser = build_parser(arguments)
    try:
        args = parser.parse_args(arguments)
        args.arguments = arguments
    except SystemExit:  # argparse, after --help and --version
        ui.flush()
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    from bnpass.report.logs import shown

    with shown(ui):
        ui.document["command"] = args.command
        code = _run(args, ui)
    ui.close()
    return code


def _run(args: argparse.Namespace, ui: Ui) -> int:
    """The command; what goes wrong because a model is no valid ONNX is said of the model."""
    try:
        return int(args.run(args, ui))
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        where = f": {error.filename}" if error.filename else ""
        raise BnpassError(f"{error.strerror or error}{where}",
                          "check the file, its folder and the space on the disk") from error
    except Exception as error:
        from bnpass.onnx_model.faults import blame

        blamed = blame(error, vars(args).values())
        if blamed is None:
            raise
        raise blamed from error


def _asked_for(words: list[str]) -> list[str]:
    """The arguments that ``help`` stands for: ``help fold`` is ``fold --help``."""
    unknown = [word for word in words if word not in COMMANDS]
    if unknown:
        hint = close_matches(unknown[0], list(COMMANDS)) or "bnpass --help lists the commands"
        raise UsageError(f"unknown command {unknown[0]!r}", hint)
    return [*words[:1], "--help"]


def build_parser(arguments: Sequence[str] = ()) -> Parser:
    """The parser with every command's name; options are added to the one that is called."""
    parser = Parser(
        prog="bnpass",
        description="Insert Batch Normalization into ONNX and PyTorch networks, train it, and "
        "fold it away exactly.",
        epilog=EPILOG,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"bnpass {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=summary)
            continue
        module = import_module(f"bnpass.commands.{name}")
        child = commands.add_parser(
            name, help=summary, description=module.__doc__, allow_abbrev=False,
            formatter_class=Formatter, add_help=False,
        )
        add_help(child, module.EXAMPLES, module.COMMON)
        module.add_arguments(child)
        child.usage = usage(child)
        child.set_defaults(command=name, run=module.run, parser=child)
    return parser


def _failed(ui: Ui, error: BnpassError, arguments: list[str]) -> int:
    if "--debug" in arguments:
        import traceback

        ui.raw("".join(traceback.format_exception(error)))
    hint = error.hint or "run it again with --debug to see where this comes from"
    ui.error(_one_line(error.message), _one_line(hint))
    ui.document.update(
        ok=False, error={"message": error.message, "hint": hint},
        exit_code=error.exit_code,
    )
    ui.close()
    return error.exit_code


def _one_line(text: str) -> str:
    return " ".join(text.split())
