"""`python -m refinemath solve | train | evaluate`."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from refinemath.compilation import keep_compiled_programs
from refinemath.evaluation import PARTS, evaluate, systems
from refinemath.model import STABILISERS, ModelConfig
from refinemath.proposers.registry import REGISTRY
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


def _add_proposers(parser: argparse.ArgumentParser) -> Any:
    group, names = parser.add_mutually_exclusive_group(), list(REGISTRY)
    known = f" ({', '.join(names)})"
    for flag, text in (("--without", "proposers to leave out"), ("--only", "proposers to use")):
        group.add_argument(
            flag, nargs="+", default=[], choices=names, metavar="NAME", help=text + known
        )
    return group


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refinemath",
        description="From points to a formula, by refining one latent thought.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    solve = commands.add_parser("solve", help="find a formula for the points of a file")
    solve.add_argument(
        "file", type=Path, help=".npy, .csv, .tsv, .txt or .dat with columns x, y (or x1, x2, y)"
    )
    solve.add_argument(
        "--latent-dim", type=int, default=512, metavar="D", help="width of the latent (default 512)"
    )
    solve.add_argument(
        "--max-iters",
        type=int,
        default=32,
        metavar="T",
        help="most refiner steps of one search (default 32)",
    )
    solve.add_argument(
        "--threshold",
        type=float,
        default=1e-5,
        help="relative latent velocity that counts as settled (default 1e-5)",
    )
    solve.add_argument(
        "--time-budget",
        type=float,
        default=8.0,
        metavar="S",
        help="seconds within which the last search should end (default 8)",
    )
    solve.add_argument(
        "--seed", type=int, default=0, help="makes the answer repeatable (default 0)"
    )
    solve.add_argument("--weights", type=Path, help="weights file, if not the shipped one")
    solve.add_argument(
        "--plot",
        type=Path,
        metavar="PNG",
        help="where to save the plot (default: the file's name with .formula.png, in this folder)",
    )

    solve.add_argument("--target", metavar="NAME", help="column to explain (default the last)")
    solve.add_argument(
        "--features", metavar="A,B", help="columns to explain it by (default all others)"
    )
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
    train.add_argument(
        "--latent-dim", type=int, default=512, metavar="D", help="width of the latent (default 512)"
    )
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
    evaluate.add_argument(
        "--parts",
        nargs="+",
        default=list(PARTS),
        choices=PARTS,
        help="which problems (default all)",
    )
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
    evaluate.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights file, if not the shipped one"
    )
    evaluate.add_argument(
        "--latent-dim", type=int, default=512, metavar="D", help="width of the latent (default 512)"
    )
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


def _solve(options: argparse.Namespace) -> int:
    names = next(iter(systems(options.without, options.only).values()))
    model = RefineMath(
        options.latent_dim, options.max_iters, weights=options.weights, proposers=names
    )
    result = model.solve(
        options.file,
        target=options.target,
        features=options.features.split(",") if options.features else None,
        units=options.units,
        threshold=options.threshold,
        seed=options.seed,
        time_budget=options.time_budget,
    )
    target = options.plot or Path(options.file.name).with_suffix(".formula.png")
    print(f"formula     {result.target} = {result.sympy()}")
    print(f"LaTeX       {result.latex}")
    print(f"Python      {result.python()}")
    print(
        f"fit         unexplained variance "
        f"{result.fvu:.3g}{' (exact to float64)' if result.exact else ''}"
    )
    print(
        f"iterations  {result.iterations}, latent "
        f"{'settled' if result.converged else 'not settled'} at threshold {options.threshold:g}"
    )
    print(
        f"work        {result.steps} steps in {result.searches} "
        f"search{'es' if result.searches > 1 else ''}"
    )
    print(f"time        {result.seconds:.1f} s")
    if result.unused:
        print(f"unused      {', '.join(result.unused)}")
    if not result.found:
        print("No formula explains 99 % of the variance; this is the best attempt.")
    result.plot(target)
    print(f"plot        {target}")
    return 0


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
