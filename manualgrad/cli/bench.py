"""`manualgrad bench`: what a training step costs, by hand and in plain PyTorch, for a model of your own or for nets."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from manualgrad.bench import CaseError, Row, Rows, measure
from manualgrad.bench.children import JEMALLOC, SYSTEM, jemalloc
from manualgrad.bench.layers import Layer
from manualgrad.bench.optimizers import FORMS, OPTIMIZERS
from manualgrad.bench.plot import plot
from manualgrad.bench.ways import WAYS
from manualgrad.cli import bench_processes


WIDE, MIDDLE, SMALL = "1024-4096-4096-4096-1024 relu", "512-1024-1024-512 relu", "784-30-10 sigmoid sigmoid"
DEEP, BOOK = "64-64-64-64-64-64-64-64-64 relu relu", "784-200-10 sigmoid sigmoid"
RIVALS = f"--no-memory --ways {shlex.join(FORMS)} TrainStep torch.compile JAX"
CELLS = f"--threads 2 --no-memory --ways {shlex.join(FORMS)} converted factored"
ALL = "--optimizer gradient_descent momentum adamw"
PRESETS = {  # what is measured where no model is named: nets, and a command line to which one's own options are added
    "": [
        ([WIDE, MIDDLE], "--batch 1 8 32 128 512 2048"),
        ([WIDE, MIDDLE], "--batch 8 --clip --no-memory"),
        ([SMALL], "--batch 10 --no-memory"),
    ],
    "quick": [(["900-900-10 relu"], "--seconds 0 --allocators 'glibc malloc' --ways plain factored")],
    "train-step": [
        ([SMALL], f"--batch 1 10 128 {RIVALS} scikit-learn 'NumPy float32'"),
        ([BOOK], f"--batch 1 {RIVALS} scikit-learn 'NumPy float32' 'NumPy float64'"),
        ([DEEP], f"--batch 32 {RIVALS} scikit-learn"),
        ([MIDDLE], f"--batch 1 8 32 128 {RIVALS}"),
        ([WIDE], f"--batch 1 8 64 {RIVALS}"),
    ],
    "never-slower": [
        (models, f"--batch {batches} {ALL} {CELLS} {clip}")
        for models, batches in (
            ([WIDE, MIDDLE], "1 8 32 128 256 512 1024 2048"),
            (["manualgrad.bench.language_model:make"], "16 64 256 1024"),
        )
        for clip in ("", "--clip")
    ],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write bench.json and bench.png. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--processes" in argv:  # options of its own
        return bench_processes.main(argv)
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.model and arguments.preset:
        parser.error(f"expected --model or --{arguments.preset}, which says what is measured, got both.")
    rows = Rows()
    try:
        if arguments.draw:
            rows = _joined(arguments.draw)
            print(rows)
        else:
            for models, line in [(arguments.model, "")] if arguments.model else PRESETS[arguments.preset]:
                rows = _run(parser.parse_args([*shlex.split(line), *argv]), models, rows)
    except CaseError as error:
        print(f"manualgrad bench: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot(rows, arguments.out / "bench.png")
    print(f"Written: {arguments.out / 'bench.json'} and {arguments.out / 'bench.png'}")
    return 0


def _run(arguments: argparse.Namespace, models: Sequence[str], rows: Rows) -> Rows:
    """The rows with those that the arguments ask for; printed, table by table, and written as they come."""
    for model, name, allocator in product(models, arguments.optimizer, arguments.allocators):
        of_table = Rows()
        for batch in arguments.batch:
            measured = measure(
                model,
                batch,
                optimizer=name,
                loss=arguments.loss,
                clip=arguments.clip,
                ways=arguments.ways,
                memory=arguments.memory and allocator == arguments.allocators[0],
                device=arguments.device,
                allocator=allocator,
                threads=arguments.threads,
                seconds=arguments.seconds,
            )
            of_table = Rows([*of_table, *measured])
            arguments.out.mkdir(parents=True, exist_ok=True)
            written = json.dumps([row._asdict() for row in (*rows, *of_table)], indent=2)
            (arguments.out / "bench.json").write_text(written)
        rows = Rows([*rows, *of_table])
        print(of_table, end="\n\n", flush=True)
    return rows


def _joined(files: Sequence[Path]) -> Rows:
    """The rows of several bench.json; of what was measured twice the later counts."""
    rows: dict[tuple, Row] = {}
    for file in files:
        for fields in json.loads(file.read_text()):
            fields["layers"] = tuple(Layer(*layer) for layer in fields["layers"])
            row = Row(**fields)
            rows[row[:6]] = row
    ways = {way: i for i, way in enumerate(WAYS)}
    return Rows(sorted(rows.values(), key=lambda row: (*row[:5], ways.get(row.way, len(ways)))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="manualgrad bench",
        description=f"{__doc__} Options are explained in Python: help(manualgrad.bench.measure).",
    )
    allocators = [SYSTEM, JEMALLOC] if jemalloc() else [SYSTEM]
    add = parser.add_argument
    add("--model", nargs="+", help="package.module:make, where make(batch) returns (model, inputs, targets); or a net such "
        "as '784-30-10 sigmoid', or '784-30-10 sigmoid sigmoid' with sigma on the outputs too; default: three nets")  # fmt: skip
    add("--batch", type=_positive, nargs="+", default=[8], help="rows; default: 8")
    add("--optimizer", nargs="+", choices=OPTIMIZERS, metavar="NAME", default=[None],
        help=f"{', '.join(OPTIMIZERS)}; default: adamw for a model of your own, gradient_descent for a net")  # fmt: skip
    add("--loss", help="mse, cross_entropy, binary_cross_entropy or package.module:name; default: by the targets")
    add("--clip", action="store_true", help="with clip_grad_norm_")
    add("--ways", nargs="+", choices=WAYS, metavar="WAY", help=f"of {', '.join(WAYS)}")
    add("--no-memory", dest="memory", action="store_false", help="measure times alone")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where available")
    add("--allocators", nargs="+", choices=(SYSTEM, JEMALLOC), default=allocators, help="on the CPU; default: both")
    add("--threads", type=_positive, help="on the CPU; default: PyTorch's choice")
    add("--seconds", type=float, default=5.0, help="to spend on each batch at least")
    add("--out", type=Path, default=Path("manualgrad_bench"), help="folder for bench.json and bench.png")
    add("--processes", nargs="+", help="measure exchange_factors in so many processes; takes options of its own")
    add("--draw", type=Path, nargs="+", help="measure nothing: tables and plot of these bench.json files together")
    for preset, summary in (
        ("quick", "a small net and a moment: does it run?"),
        ("train-step", "TrainStep on several nets, and rivals from other libraries"),
        ("never-slower", "the cells in which manualgrad must not be slower; takes an hour"),
    ):
        add(f"--{preset}", dest="preset", action="store_const", const=preset, default="", help=summary)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}.")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
