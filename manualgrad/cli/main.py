"""The command `manualgrad`: a table of subcommands, each imported only when it is called."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from manualgrad.explain.printable import printable
from manualgrad.extras import MissingExtraError, require


class Command(NamedTuple):
    """A subcommand: where its function is, and one line for `manualgrad --help`.

    The function takes the arguments after the subcommand's name and returns the exit status, None for success.
    """

    function: str  # "module:name"
    summary: str
    needs: tuple[str, ...] = ()  # packages of the `demo` extra, looked for before anything is imported


LONGEST_LINE = 2000  # characters of an error
INTERRUPTED = 130  # what shells report for a program that Ctrl-C has ended

LIGHTNING = ("lightning", "torchmetrics", "jsonargparse")

COMMANDS = {
    "fit": Command("manualgrad.cli.fit:fit", "train; with no arguments, on handwritten digits", LIGHTNING),
    "validate": Command("manualgrad.cli.fit:validate", "evaluate on the validation data", LIGHTNING),
    "test": Command("manualgrad.cli.fit:test", "evaluate on the test data", LIGHTNING),
    "predict": Command("manualgrad.cli.fit:predict", "write predictions to a file", LIGHTNING),
    "compare": Command("manualgrad.cli.compare:compare", "set gradients by hand beside autograd's", LIGHTNING),
    "explain": Command(
        "manualgrad.cli.explain:main", "show every number of a training step, on a page too", ("sklearn",)
    ),
    "bench": Command("manualgrad.cli.bench:main", "measure time and memory against autograd", ("matplotlib",)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `manualgrad` with these arguments, by default those of the command line. Returns the exit status: 0 for success,
    1 for a failure, 2 for arguments that make no sense, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from manualgrad import __version__

        print(f"manualgrad {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _failed(f"expected a command, got {name!r}. Known: {', '.join(COMMANDS)}.", status=2)
    module, function = COMMANDS[name].function.split(":")
    try:
        for package in COMMANDS[name].needs:
            require(package, extra="demo", purpose=f"manualgrad {name}")
        return getattr(import_module(module), function)(rest) or 0
    except MissingExtraError as error:
        return _failed(str(error), status=1)
    except SystemExit as stop:  # raised with a sentence by a command that cannot go on
        if isinstance(stop.code, str):
            return _failed(stop.code, status=1)
        raise
    except KeyboardInterrupt:  # outside of a training, which says where its checkpoint is
        return _failed("interrupted.", status=INTERRUPTED)


def _failed(sentence: str, status: int) -> int:
    lines = [printable(line, LONGEST_LINE) for line in sentence.split("\n")]  # it may quote a file
    print("manualgrad: error:", "\n".join(lines), file=sys.stderr)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: manualgrad <command> [options]\n\n"
        "Dense layers for PyTorch whose backpropagation is written by hand.\n\n"
        f"commands:\n{lines}\n\n"
        "`manualgrad <command> --help` lists the options of one; `manualgrad --version` prints the version."
    )
