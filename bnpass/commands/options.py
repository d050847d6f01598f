"""Options that several commands share, so that they are spelt and explained the same everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnpass.errors import UsageError

if TYPE_CHECKING:
    from bnpass.report.ui import Ui


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--json``, ``-q``, ``-v``, ``--debug``: how the command talks."""
    group = parser.add_argument_group("output on the terminal")
    group.add_argument("--json", action="store_true",
                       help="print one JSON object on stdout and nothing else there")
    group.add_argument("-q", "--quiet", action="store_true",
                       help="print nothing but warnings and errors")
    group.add_argument("-v", "--verbose", action="store_true", help="also details")
    group.add_argument("--debug", action="store_true", help="print tracebacks of errors")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The positional ``model``."""
    parser.add_argument("model", metavar="MODEL.onnx", help="the model to read; never written")


def add_written(parser: argparse.ArgumentParser) -> None:
    """``-o/--output`` and ``--force`` of commands that write a model."""
    parser.add_argument("-o", "--output", metavar="FILE", help="the model to write")
    parser.add_argument("--force", action="store_true", help="replace an existing output")


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """``--explain``, ``--dry-run``, ``--require-change``, ``--only``, ``--skip``."""
    group = parser.add_argument_group("planning")
    group.add_argument("--explain", action="store_true",
                       help="list every place, what is done there, or the reason why nothing is")
    group.add_argument("--dry-run", action="store_true", help="plan only; write nothing")
    group.add_argument("--require-change", action="store_true",
                       help="exit with 1 when there is nothing to do")
    for name, what in (("--only", "take only"), ("--skip", "leave out")):
        group.add_argument(name, action="append", default=[], metavar="GLOB",
                           help=f"{what} nodes whose name matches (again for several patterns)")


def sizes(text: str) -> dict[str, int]:
    """``n=3,x:1=5``: whole numbers by name, for argparse."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.rpartition("=")
        if not name or not number.strip().isdecimal():
            raise argparse.ArgumentTypeError(f"{part!r} is not NAME=N")
        found[name.strip()] = int(number)
    return found


def add_constants(group: argparse._ArgumentGroup) -> None:
    """What may be taken for a constant, and how often it may be copied."""
    group.add_argument("--freeze-inputs", action="store_true",
                       help="take initializers that callers may override for constants; those "
                       "that are used as such are inputs no longer")
    group.add_argument("--max-growth", type=positive, default=4.0, metavar="N",
                       help="times the file may grow where shared weights have to be copied "
                       "(default 4)")


def say_overridable(reasons: Iterable[str], ui: Ui) -> None:
    """How many things stay because a caller may give another weight, and what changes that."""
    count = sum("--freeze-inputs" in reason for reason in reasons)
    if count:
        ui.say(f"{count} of them because weights are inputs too, which callers may override: "
               "--freeze-inputs takes these as they are in the file")


def add_strip(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: tuple[str, ...] = ()
) -> None:
    """``--strip`` and ``--dropout``."""
    shown = ",".join(default) or "nothing"
    parser.add_argument("--strip", type=names, default=default, metavar="lrn,dropout",
                        help=f"layers to take out (default {shown})")
    parser.add_argument("--dropout", type=fraction, metavar="N",
                        help="do not take Dropout out, but give it this ratio")


def add_seed(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--seed``."""
    parser.add_argument("--seed", type=count, default=0, help="fixes everything random (default 0)")


def add_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--device``."""
    parser.add_argument("--device", type=device, default="auto", metavar="auto|cpu|cuda[:N]",
                        help="where torch computes (default auto: CUDA if there is one)")


def add_provider(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--provider``."""
    parser.add_argument("--provider", default="cpu", choices=("cpu", "cuda", "tensorrt"),
                        help="onnxruntime's execution provider (default cpu); never silently "
                        "another one")


def add_gpu(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--tf32`` and ``--provider-option``."""
    parser.add_argument("--tf32", action="store_true",
                        help="let float32 matrix products round their operands to 10 bits (CUDA)")
    parser.add_argument("--provider-option", action="append", default=[], type=pair,
                        metavar="KEY=VALUE", help="an option of onnxruntime's provider, by its own "
                        "name (again for several): trt_fp16_enable=1")


def gpu_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of :func:`bnpass.runtime.session.session` for what :func:`add_gpu` declares.

    Raises:
        UsageError: they were given for the CPU.
    """
    given = dict(args.provider_option)
    wanted = "--tf32" if args.tf32 else "--provider-option" if given else ""
    if wanted and args.provider == "cpu":
        raise UsageError(f"{wanted} with --provider cpu", "add --provider cuda or tensorrt")
    return {"tf32": args.tf32, "provider_options": given}


# -- values ----------------------------------------------------------------------------------------


def _number(
    convert: Callable[[str], float], good: Callable[[float], bool], what: str
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not good(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


count = _number(int, lambda v: v >= 0, "a whole number of 0 or more")
at_least_one = _number(int, lambda v: v >= 1, "a whole number of 1 or more")
positive = _number(float, lambda v: 0 < v < float("inf"), "a positive number")
non_negative = _number(float, lambda v: 0 <= v < float("inf"), "a number of 0 or more")
fraction = _number(float, lambda v: 0 < v < 1, "a number between 0 and 1")


def ratio(text: str) -> float:
    """A positive number or a quotient of two: ``1/255``."""
    over, slash, under = text.partition("/")
    return positive(over) / positive(under) if slash else positive(text)


def device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    head, _, number = text.partition(":")
    if text in {"auto", "cpu", "cuda"} or (head == "cuda" and number.isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")


def pair(text: str) -> tuple[str, str]:
    """``key=value``."""
    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key.strip(), value.strip()


def positive_list(text: str) -> tuple[float, ...]:
    """Positive numbers with commas between them: ``0.1,0.3,1``."""
    return tuple(positive(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them: ``lrn,dropout``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


# -- checks ----------------------------------------------------------------------------------------


def refuse_together(args: argparse.Namespace, *pairs: tuple[str, str]) -> None:
    """Refuse options that contradict each other, or of which one makes the other idle.

    Args:
        args: with ``arguments``, as they were typed.
        pairs: long names of options.

    Raises:
        UsageError: both of a pair were given.
    """
    given = {word.partition("=")[0] for word in args.arguments if word.startswith("--")}
    for one, other in pairs:
        if one in given and other in given:
            raise UsageError(f"{one} with {other}", "leave one of them out")


def want_output(args: argparse.Namespace, suggested: str) -> Path | None:
    """The checked output path, or None for a dry run.

    Args:
        args: with ``model``, ``output``, ``force``, ``dry_run`` and ``explain``.
        suggested: the suffix of the file name that the hint proposes, e.g. ``folded``.

    Raises:
        UsageError: neither an output nor ``--dry-run`` (or ``--explain`` alone) was given.
        OutputError: the output cannot be written (see :func:`bnpass.files.check_output`).
    """
    from bnpass.files import check_output

    if args.output and not args.dry_run:
        return check_output(args.output, force=args.force, source=args.model)
    if args.dry_run or args.explain:
        return None
    name = sibling(Path(args.model), suggested).name
    raise UsageError("no output given", f"add -o {name}, or --dry-run to plan only")


def unchanged(args: argparse.Namespace, why: str, ui: Ui) -> int:
    """The exit code where nothing changed: 1 with ``--require-change``, which is said.

    Args:
        args: with ``require_change``.
        why: nothing changed.
        ui: gets an ``error:`` line.
    """
    if args.require_change:
        ui.document["ok"] = False
        ui.error(f"--require-change, and nothing changed: {why}",
                 "leave the option out to take that for success")
    return int(args.require_change)


def sibling(path: Path, word: str) -> Path:
    """The name that the next step's output could have: ``net.trained.onnx`` beside ``net.onnx``."""
    steps = {".bn", ".trained", ".ready", ".folded", ".stripped"}
    stem = path.name.removesuffix(".onnx")
    kept = stem.removesuffix(next((s for s in steps if stem.endswith(s)), ""))
    return path.with_name(f"{kept}.{word}.onnx")


def _node_names(path: str) -> list[str]:
    """Names and operator types that ``--only`` and ``--skip`` can match."""
    from bnpass.onnx_model.attributes import node_name
    from bnpass.onnx_model.model import OnnxModel

    names: dict[str, int] = {}
    nodes = list(OnnxModel.of(path, data=False).nodes())
    for node in nodes:
        name = node_name(node)
        names[name] = names.get(name, 0) + 1
    # Nodes that share a name are told apart by a number, as in reports.
    again = [f"{name}#{n}" for name, times in names.items() for n in range(2, times + 1)]
    return [*names, *again, *sorted({node.op_type for node in nodes})]


def check_patterns(patterns: Sequence[str], path: str) -> None:
    """Refuse a glob pattern that matches none of the nodes of a model file.

    Raises:
        UsageError: with close matches as the hint.
    """
    from fnmatch import fnmatchcase

    from bnpass.errors import close_matches

    names = _node_names(path) if patterns else []
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"no node matches {pattern!r}", close_matches(pattern, names)
                             or "bnpass inspect lists the nodes; patterns are globs: 'block1/*'")
