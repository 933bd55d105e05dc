"""`python -m refinemath solve | train | evaluate`."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from refinemath.answer.regression import LOSSES
from refinemath.compilation import keep_compiled_programs
from refinemath.control import ERRORS, Progress
from refinemath.evaluation import PARTS, evaluate, systems
from refinemath.model import STABILISERS, ModelConfig
from refinemath.operators import ALWAYS, OPERATOR_NAMES, allowed_operators
from refinemath.proposers.registry import REGISTRY
from refinemath.reading import MISSING
from refinemath.report import text_report, write_report
from refinemath.solver import RefineMath
from refinemath.training import COUNTS, OPTIMIZERS, TrainConfig

_CHOICES = {"optimizer": OPTIMIZERS}
_METAVAR = {int: "N", float: "X", str: "NAME"}
_DIALS = {
    "steps": "training steps",
    "batch": "problems in a step",
    "learning_rate": "highest learning rate",
    "optimizer": "muon for the hidden matrices and AdamW for the rest, or AdamW alone",
    "decay": "share of the steps over which the learning rate falls to zero",
    "warmup": "steps over which the learning rate rises",
    "unroll": "refiner steps in a training step",
    "own_samples": "formulas drawn from a thought, of which the best comes next",
    "noise": "size of the noise in the seed thought",
    "go_on": "share of the batch that goes on from the step before",
    "blank": "share of new thoughts that start without a candidate",
    "slots_alone": "weight of the cross-entropy of slots on their own, for a model with a reader",
    "stillness": "weight of the velocity of thoughts that have nothing left to change",
    "ema": "how slowly the averaged weights follow",
    "seed": "makes the run repeatable",
    "bank_per_length": "most formulas of each length",
    "start_from": "weights file to start from",
}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return int(text)


def _units(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text} is not of the form v=m/s,t=s")
    return {name: unit for name, _, unit in pairs}


def _add_latent_dim(parser: argparse.ArgumentParser) -> None:
    text = "width of the latent (default 512)"
    parser.add_argument("--latent-dim", type=int, default=512, metavar="D", help=text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_latent_dim(parser)
    text = "weights file, if not the shipped one"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=text)


def _add_proposers(parser: argparse.ArgumentParser) -> Any:
    group, names = parser.add_mutually_exclusive_group(), list(REGISTRY)
    known = f" ({', '.join(names)})"
    for flag, text in (("--without", "proposers to leave out"), ("--only", "proposers to use")):
        group.add_argument(
            flag, nargs="+", default=[], choices=names, metavar="NAME", help=text + known
        )
    return group


def _add_columns(solve: argparse.ArgumentParser) -> None:
    for names, text in (
        (("--y", "--target"), "column to explain (default the last)"),
        (("--x", "--features"), "columns to explain it by, with commas (default all others)"),
        (("--sigma",), "column with the sizes of the errors of y (default equal errors)"),
    ):
        solve.add_argument(*names, dest=names[-1][2:], metavar="NAME", help=text)
    text = "what to do with rows that have gaps (default error)"
    solve.add_argument("--missing", choices=MISSING, default="error", help=text)


def _add_control(solve: argparse.ArgumentParser) -> None:
    for name, known, text in (
        ("error", ERRORS, "whether the errors of y grow with y (default absolute)"),
        ("loss", LOSSES, "soft_l1 lets single points be far off (default linear)"),
    ):
        solve.add_argument(f"--{name}", choices=known, default=known[0], help=text)
    which = solve.add_mutually_exclusive_group()
    signs = " ".join(sorted(OPERATOR_NAMES - ALWAYS))
    text = f"operators to use beside + - *; known are {signs} (default all)"
    which.add_argument("--operators", nargs="+", metavar="NAME", help=text)
    which.add_argument(
        "--forbid", nargs="+", default=[], metavar="NAME", help="operators not to use"
    )
    solve.add_argument(
        "--max-length", type=_count, metavar="N", help="most tokens of a formula (default no limit)"
    )
    solve.add_argument("--through-origin", action="store_true", help="y is 0 where x is")
    solve.add_argument("--json", action="store_true", help="print the result as JSON, no plot")
    solve.add_argument(
        "--report", type=Path, metavar="HTML", help="write a report: formula, tables, pictures"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refinemath",
        description="From points to a formula, by refining one latent thought.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    solve = commands.add_parser("solve", help="find a formula for the points of a file")
    solve.add_argument(
        "file",
        type=Path,
        help="columns x, y (or x1, x2, y) in a file of numpy, text, Excel, parquet or JSON, "
        "also with .gz; - reads a table that is pasted in",
    )
    _add_model(solve)
    text = "most refiner steps of one search (default 32)"
    solve.add_argument("--max-iters", type=int, default=32, metavar="T", help=text)
    text = "relative latent velocity that counts as settled (default 1e-5)"
    solve.add_argument("--threshold", type=float, default=1e-5, help=text)
    solve.add_argument(
        "--time-budget",
        type=float,
        default=8.0,
        metavar="S",
        help="seconds within which the answer should be there, compiling apart (default 8)",
    )
    solve.add_argument(
        "--searches",
        type=int,
        metavar="N",
        help="run N searches and look at no clock: the same seed gives the same answer",
    )
    solve.add_argument("--seed", type=int, default=0, help="of random draws (default 0)")
    solve.add_argument(
        "--plot",
        type=Path,
        metavar="PNG",
        help="where to save the plot (default: the file's name with .formula.png, in this folder)",
    )

    _add_columns(solve)
    _add_control(solve)
    solve.add_argument(
        "--units",
        type=_units,
        metavar="A=UNIT,...",
        help="units of columns, such as v=m/s,t=s: the formula is dimensionally consistent",
    )
    _add_proposers(solve)

    train = commands.add_parser(
        "train", help="train a model, or go on with a run that was interrupted"
    )
    train.add_argument(
        "--out", type=Path, required=True, help="folder of the run: log, checkpoint, weights"
    )
    _add_latent_dim(train)
    train.add_argument(
        "--width",
        type=int,
        default=128,
        metavar="W",
        help="width at which the blocks work (default 128)",
    )
    train.add_argument(
        "--reader",
        type=int,
        default=0,
        metavar="W",
        help="width of a reader that goes from slot to slot; 0: none (default 0)",
    )
    train.add_argument(
        "--reader-heads",
        type=int,
        default=0,
        metavar="N",
        help="heads with which it looks back at the thought; 0: it does not (default 0)",
    )
    train.add_argument(
        "--variables",
        type=int,
        default=1,
        metavar="V",
        help="most variables of a formula, 1 to 3 (default 1)",
    )
    train.add_argument(
        "--stabiliser",
        choices=STABILISERS,
        default="polar",
        help="what keeps the slots of a thought apart (default polar)",
    )
    for f in fields(TrainConfig):
        kind, choices, metavar = (
            _count if f.name in COUNTS else type(f.default),
            _CHOICES.get(f.name),
            _METAVAR[type(f.default)],
        )
        default = f.default if f.default != "" else "none"
        text = f"{_DIALS.get(f.name, 'see TrainConfig')} (default {default})"
        train.add_argument(
            f"--{f.name.replace('_', '-')}",
            type=kind,
            default=f.default,
            choices=choices,
            help=text,
            metavar=None if choices else metavar,
        )

    evaluate = commands.add_parser(
        "evaluate", help="measure recovery on benchmarks, held-out formulas and real data"
    )
    evaluate.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        help="folder with suites.csv, heldout.csv and problems.csv",
    )
    text = "which problems (default all)"
    evaluate.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help=text)
    _add_proposers(evaluate).add_argument(
        "--ablation", action="store_true", help="leave every proposer out once, and run each alone"
    )
    evaluate.add_argument(
        "--every",
        type=_count,
        default=1,
        metavar="N",
        help="take each N-th held-out formula (default 1, all)",
    )
    evaluate.add_argument(
        "--time-budget", type=float, default=8.0, metavar="S", help="seconds a problem (default 8)"
    )
    _add_model(evaluate)
    evaluate.add_argument("--out", type=Path, help="JSON file for the records")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status.  Bad input is one line on stderr and status 2."""
    options = _parser().parse_args(arguments)
    keep_compiled_programs()
    try:
        return {"solve": _solve, "train": _train, "evaluate": _evaluate}[options.command](options)
    except (
        ValueError,
        OSError,
        FloatingPointError,
    ) as error:  # ours; a file that cannot be read or written; a training that diverged
        print(f"refinemath: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("refinemath: stopped before there was a formula", file=sys.stderr)
        return 130


def _solve(options: argparse.Namespace) -> int:
    names = next(iter(systems(options.without, options.only).values()))
    model = RefineMath(
        options.latent_dim, options.max_iters, weights=options.weights, proposers=names
    )
    operators = options.operators
    if options.forbid:
        operators = OPERATOR_NAMES - (allowed_operators(options.forbid) - ALWAYS)
    pasted = str(options.file) == "-"
    result = model.solve(
        sys.stdin.buffer if pasted else options.file,
        target=options.target,
        features=options.features.split(",") if options.features else None,
        sigma=options.sigma,
        missing=options.missing,
        error=options.error,
        loss=options.loss,
        operators=operators,
        max_length=options.max_length,
        through_origin=options.through_origin,
        units=options.units,
        threshold=options.threshold,
        seed=options.seed,
        time_budget=options.time_budget,
        callback=_show_progress if sys.stderr.isatty() else None,
        searches=options.searches,
    )
    if options.json:
        print(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    else:
        print(text_report(result, options.threshold))
        name = "pasted" if pasted else options.file.name
        target = options.plot or Path(name).with_suffix(".formula.png")
        result.plot(target)
        print(f"plot        {target}")
    if options.report:
        command = "python -m refinemath " + shlex.join(sys.argv[1:])
        write_report(result, options.report, source=str(options.file), command=command)
    return 0


def _show_progress(progress: Progress) -> None:
    """One line on the terminal, written over by the next."""
    width = shutil.get_terminal_size().columns - 1
    print(f"\r{str(progress)[:width]:<{width}}", end="\r", file=sys.stderr, flush=True)


def _train(options: argparse.Namespace) -> int:
    from refinemath.training import train

    names = ("latent_dim", "width", "variables", "stabiliser", "reader", "reader_heads")
    config = ModelConfig(**{name: getattr(options, name) for name in names})
    recipe = TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)})
    train(config, recipe, options.out)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    chosen = systems(options.without, options.only, ablation=options.ablation)
    models = {
        label: RefineMath(options.latent_dim, weights=options.weights, proposers=names)
        for label, names in chosen.items()
    }
    evaluate(
        models,
        options.data,
        parts=options.parts,
        time_budget=options.time_budget,
        every=options.every,
        out=options.out,
        command="python -m refinemath " + shlex.join(sys.argv[1:]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
