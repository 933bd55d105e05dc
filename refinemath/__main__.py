"""`python -m refinemath solve | train | evaluate`."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields
from pathlib import Path

from refinemath.checkpoint import CheckpointError
from refinemath.model import STABILISERS, Config
from refinemath.solve import DataError, RefineMath
from refinemath.train import Recipe


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refinemath", description="From points to a formula, by refining one latent thought.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    solve = commands.add_parser("solve", help="find a formula for the points of a file")
    solve.add_argument("file", type=Path, help=".npy, .csv, .tsv, .txt or .dat with columns x, y (or x1, x2, y)")
    solve.add_argument("--latent-dim", type=int, default=512, metavar="D", help="width of the latent (default 512)")
    solve.add_argument("--max-iters", type=int, default=32, metavar="T", help="most refiner steps of one search (default 32)")
    solve.add_argument("--threshold", type=float, default=1e-5, help="relative latent velocity that counts as settled (default 1e-5)")
    solve.add_argument("--time-budget", type=float, default=8.0, metavar="S", help="seconds after which no further search starts (default 8)")
    solve.add_argument("--seed", type=int, default=0, help="makes the answer repeatable (default 0)")
    solve.add_argument("--weights", type=Path, help="weights file, if not the shipped one")
    solve.add_argument("--plot", type=Path, metavar="PNG", help="where to save the plot (default: the file's name with .formula.png, in this folder)")

    train = commands.add_parser("train", help="train a model, or go on with a run that was interrupted")
    train.add_argument("--out", type=Path, required=True, help="folder of the run: log, checkpoint, weights")
    train.add_argument("--latent-dim", type=int, default=512)
    train.add_argument("--width", type=int, default=128)
    train.add_argument("--variables", type=int, default=1)
    train.add_argument("--stabiliser", choices=STABILISERS, default="polar")
    for f in fields(Recipe):
        train.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default, help=f"default {f.default}")
    train.add_argument("--distributed", action="store_true", help="call jax.distributed.initialize() first; one process a host")

    evaluate = commands.add_parser("evaluate", help="measure recovery on benchmarks, held-out formulas and real data")
    evaluate.add_argument("--data", type=Path, default=Path("data"), help="folder with suites.csv, heldout.csv and problems.csv")
    evaluate.add_argument("--parts", nargs="+", default=["suites", "heldout", "noise", "real"], choices=["suites", "heldout", "noise", "real"])
    evaluate.add_argument("--systems", nargs="+", default=["refinemath", "null"], choices=["refinemath", "no-sweep", "no-edits", "null", "null-edits"])
    evaluate.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th held-out formula")
    evaluate.add_argument("--time-budget", type=float, default=8.0, metavar="S")
    evaluate.add_argument("--weights", type=Path)
    evaluate.add_argument("--latent-dim", type=int, default=512)
    evaluate.add_argument("--out", type=Path, help="JSON file for the records")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status.  Bad input is one line on stderr and status 2."""
    options = _parser().parse_args(arguments)
    try:
        return {"solve": _solve, "train": _train, "evaluate": _evaluate}[options.command](options)
    except (DataError, CheckpointError, ValueError) as error:
        print(f"refinemath: {error}", file=sys.stderr)
        return 2


def _solve(options: argparse.Namespace) -> int:
    model = RefineMath(options.latent_dim, options.max_iters, weights=options.weights)
    result = model.solve(options.file, threshold=options.threshold, seed=options.seed, time_budget=options.time_budget)
    target = options.plot or Path(options.file.name).with_suffix(".formula.png")
    result.plot(target)
    print(f"formula     y = {result.sympy()}")
    print(f"LaTeX       {result.latex}")
    print(f"Python      {result.python()}")
    print(f"fit         unexplained variance {result.fvu:.3g}{' (exact to float64)' if result.exact else ''}")
    print(f"iterations  {result.iterations}, latent {'settled' if result.converged else 'not settled'} at threshold {options.threshold:g}")
    print(f"time        {result.seconds:.1f} s")
    print(f"plot        {target}")
    if not result.found:
        print("No formula explains 99 % of the variance; this is the best attempt.")
    return 0


def _train(options: argparse.Namespace) -> int:
    import jax

    from refinemath.train import train

    if options.distributed:
        jax.distributed.initialize()
    config = Config(latent_dim=options.latent_dim, width=options.width, variables=options.variables, stabiliser=options.stabiliser)
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in fields(Recipe)})
    train(config, recipe, options.out)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from refinemath.evaluate import evaluate

    model = RefineMath(options.latent_dim, weights=options.weights)
    evaluate(
        model, options.data, parts=options.parts, systems=options.systems, time_budget=options.time_budget, every=options.every, out=options.out,
        command="python -m refinemath " + shlex.join(sys.argv[1:]),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
