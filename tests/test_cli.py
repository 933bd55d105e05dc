"""`python -m refinemath`: readable help, one line and status 2 on bad input, and the commands do
what they say.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONFIG, QUICK, SMALL_ONES
from run_training import RECIPE

import refinemath.__main__ as cli
from refinemath import RefineMath, training
from refinemath.evaluation import systems
from refinemath.proposers.registry import DEFAULT
from refinemath.training import TrainConfig

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, solver: RefineMath) -> Path:
    """The command line with a small search, in a folder of its own."""

    def small(
        latent_dim: int = 512, max_iters: int = 4, proposers: Iterable[str] = (), **options: Any
    ) -> RefineMath:
        chosen = tuple(p for name, p in SMALL_ONES.items() if name in set(proposers))
        return RefineMath(latent_dim, max_iters, **{**QUICK, **options, "proposers": chosen})

    monkeypatch.setattr(cli, "RefineMath", small)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def points(tmp_path: Path) -> Path:
    x = np.linspace(0.5, 4, 24)
    np.save(tmp_path / "points.npy", np.stack([x, x**2 - 3], axis=1))
    return tmp_path / "points.npy"


@pytest.mark.parametrize("command", [[], ["solve"], ["train"], ["evaluate"]])
def test_help_is_readable(command: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert (
        text.startswith("usage: python -m refinemath") and max(map(len, text.splitlines())) <= 160
    )
    assert not command or "default" in text
    if not command:
        assert all(name in text for name in ("solve", "train", "evaluate"))


def test_every_dial_of_the_recipe_is_an_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert (
        all(f"--{name.replace('_', '-')}" in text for name in vars(TrainConfig()))
        and "see TrainConfig" not in text
    )


def test_solve_prints_the_formula_the_fit_and_the_iterations_and_saves_the_plot(
    quick: Path, points: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        cli.main(["solve", str(points), "--max-iters", "4", "--time-budget", "0.1", "--seed", "1"])
        == 0
    )
    lines = {line.split(maxsplit=1)[0]: line for line in capsys.readouterr().out.splitlines()}
    assert (
        "x**2 - 3" in lines["formula"]
        and "x^{2} - 3" in lines["LaTeX"]
        and "x**2 - 3" in lines["Python"]
    )
    assert "exact" in lines["fit"] and any(c.isdigit() for c in lines["iterations"])
    assert (quick / "points.formula.png").read_bytes()[
        :4
    ] == b"\x89PNG" and "points.formula.png" in lines["plot"]


def test_solve_says_where_no_formula_was_found(quick: Path, capsys: pytest.CaptureFixture) -> None:
    np.save(quick / "noise.npy", np.random.default_rng(0).normal(size=(24, 2)))
    assert (
        cli.main(
            ["solve", "noise.npy", "--max-iters", "4", "--time-budget", "0.1", "--plot", "here.png"]
        )
        == 0
    )
    assert "no formula" in capsys.readouterr().out and (quick / "here.png").exists()


BAD = [
    (["solve", "none.npy"], "no file"),
    (["solve", "points.npy", "--latent-dim", "48"], "no weights of latent_dim 48"),
    (["solve", "points.npy", "--latent-dim", "0"], "latent_dim is 0"),
    (["solve", "points.npy", "--max-iters", "0"], "max_iters is 0"),
    (["solve", "points.npy", "--threshold", "2"], "threshold is 2"),
    (["solve", "points.npy", "--time-budget", "-1"], "time_budget is -1"),
    (["solve", "points.npy", "--weights", "none.npz"], "no weights file"),
    (["solve", "points.npy", "--weights", "points.npy"], "not a RefineMath file"),
    (
        [
            "solve",
            "points.npy",
            "--max-iters",
            "4",
            "--time-budget",
            "0.1",
            "--plot",
            "no/such/folder/x.png",
        ],
        "no/such/folder",
    ),
    (["solve", "words.csv"], "words.csv"),
    (["train", "--out", "points.npy"], "points.npy"),
    (["train", "--out", "run", "--latent-dim", "8"], "latent_dim is 8"),
    (["train", "--out", "run", "--variables", "7"], "variables is 7"),
    (["train", "--out", "run", "--optimizer", "sgd"], "sgd"),
    (["train", "--out", "run", "--steps", "0"], "steps"),
    (["train", "--out", "run", "--batch", "-1"], "batch"),
    (["train", "--out", "run", "--start-from", "none.npz"], "no weights file none.npz"),
    (["evaluate", "--out", "no/such/folder/scores.json"], "no folder no/such/folder"),
    (["evaluate", "--out", "other.json"], "other.json is not a record of evaluate"),
    (["evaluate", "--data", "nowhere"], "nowhere"),
    (["evaluate", "--every", "0"], "every"),
    (["solve", "points.npy", "--without", *sorted(DEFAULT)], "no proposer is left"),
    (["solve", "points.npy", "--only", "networks"], "invalid choice: 'networks'"),
    (["solve", "points.npy", "--only", "pairs", "--without", "short"], "not allowed with"),
    (["evaluate", "--ablation", "--without", "short"], "not allowed with"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[" ".join(a)[:60] for a, _ in BAD])
def test_bad_input_is_one_line_and_status_two(
    arguments: list[str], says: str, quick: Path, points: Path, capsys: pytest.CaptureFixture
) -> None:
    (quick / "words.csv").write_text("x,y\na,b\n", encoding="utf-8")
    (quick / "other.json").write_text("[1, 2]", encoding="utf-8")
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    assert status == 2
    last = out.err.strip().splitlines()
    assert says in last[-1] and "Traceback" not in out.err
    assert len(last) == 1 or last[0].startswith("usage:")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["solve"],
        ["train"],
        ["solve", "a.npy", "--speed", "9"],
        ["solve", "a.npy", "--seed", "x"],
        ["evaluate", "--parts", "all"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def test_the_formula_is_printed_before_the_plot_fails(
    quick: Path, points: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        cli.main(
            [
                "solve",
                str(points),
                "--max-iters",
                "4",
                "--time-budget",
                "0.1",
                "--plot",
                "no/such/folder/x.png",
            ]
        )
        == 2
    )
    assert "formula     y = x**2 - 3\n" in capsys.readouterr().out


def test_a_training_that_diverged_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def diverge(*_: object) -> None:
        raise FloatingPointError("the loss is nan at step 50")

    monkeypatch.setattr(training, "train", diverge)
    assert cli.main(["train", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == "refinemath: the loss is nan at step 50"


def test_train_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(training, "train", lambda *arguments: seen.append(arguments))
    options = [
        "--latent-dim",
        "64",
        "--width",
        "16",
        "--stabiliser",
        "rms",
        "--steps",
        "7",
        "--batch",
        "16",
        "--learning-rate",
        "0.01",
        "--optimizer",
        "adamw",
    ]
    assert cli.main(["train", "--out", str(tmp_path / "run"), *options]) == 0
    ((config, recipe, folder),) = seen
    assert (config.latent_dim, config.width, config.stabiliser, folder) == (
        64,
        16,
        "rms",
        tmp_path / "run",
    )
    assert recipe == TrainConfig(steps=7, batch=16, learning_rate=0.01, optimizer="adamw")
    assert RECIPE.batch == 16 and CONFIG.latent_dim == 64


def test_evaluate_writes_the_records(quick: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [
        "--data",
        str(DATA),
        "--parts",
        "heldout",
        "--without",
        "pairs",
        "quotients",
        "--every",
        "100",
        "--time-budget",
        "0.1",
        "--out",
        "scores.json",
    ]
    assert cli.main(["evaluate", *arguments]) == 0
    report = json.loads((quick / "scores.json").read_text(encoding="utf-8"))
    assert {
        "command",
        "commit",
        "date",
        "python",
        "jax",
        "hardware",
        "time_budget",
    } <= report.keys()
    part = report["results"]["without pairs quotients/heldout"]
    assert part["summary"]["problems"] == len(part["records"]) == 3
    assert all(r["converged"] in (True, False) for r in part["records"])
    assert {"name", "recovered", "fvu", "seconds", "iterations", "converged", "formula"} <= part[
        "records"
    ][0].keys()
    assert "without pairs quotients/heldout" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], DEFAULT),
        (["--without", "pairs", "edits"], DEFAULT - {"pairs", "edits"}),
        (["--only", "short"], {"short"}),
        (["--only", "prior", "network"], {"prior", "network"}),
    ],
    ids=["all", "without", "only", "null alone"],
)
def test_proposers_are_switched_by_name(
    options: list[str], names: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `solve` and `evaluate` pass on."""
    seen: list[set[str]] = []

    class Stop(ValueError):
        pass

    def asked(*_: Any, proposers: Iterable[str], **__: Any) -> None:
        seen.append(set(proposers))
        raise Stop

    monkeypatch.setattr(cli, "RefineMath", asked)
    assert cli.main(["solve", "points.npy", *options]) == 2
    assert cli.main(["evaluate", *options]) == 2
    assert seen == [names, names]


def test_solve_without_the_network_needs_no_latents(
    quick: Path, points: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--max-iters", "4", "--time-budget", "0.1", "--only", "short", "missing_term"]
    assert cli.main(["solve", str(points), *options]) == 0
    assert "formula     y = x**2 - 3\n" in capsys.readouterr().out


def test_the_systems_that_are_compared() -> None:
    null = DEFAULT - {"network"} | {"prior"}
    assert systems() == {"all": DEFAULT, "null": null}
    assert systems(without=["pairs", "edits"]) == {
        "without pairs edits": DEFAULT - {"pairs", "edits"}
    }
    assert systems(only=["network"]) == {"only network": {"network"}}
    table = systems(ablation=True)
    assert len(table) == 3 + 2 * len(DEFAULT)
    for name in DEFAULT | {"prior"}:
        assert table[f"only {name}"] == {name}
        assert table.get(f"without {name}", DEFAULT - {name}) == DEFAULT - {name}
    assert table["all"] == DEFAULT and table["null"] == null


def test_the_first_command_of_the_readme(tmp_path: Path, compiled_once: Path) -> None:
    """A fresh process, the shipped weights, the shipped data."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled_once),
    }
    command = [sys.executable, "-m", "refinemath", "solve", str(DATA / "physics_data.npy")]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert (
        "formula     y = x**1.5\n" in run.stdout
        and "iterations" in run.stdout
        and (tmp_path / "physics_data.formula.png").exists()
    )


def test_a_bad_file_in_a_fresh_process(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "refinemath", "solve", "none.csv"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert (
        run.returncode == 2
        and run.stdout == ""
        and run.stderr.strip() == "refinemath: there is no file none.csv"
    )


# ---------------------------------------------------------------- what a user asks

SHORT = ["--max-iters", "4", "--time-budget", "0.1"]


def test_columns_are_named_and_a_report_is_written(
    quick: Path, capsys: pytest.CaptureFixture
) -> None:
    """`--y`, `--x` and `--sigma`; `--target` and `--features` are the same options."""
    x = np.linspace(0.5, 4, 24)
    rows = "".join(f"{comma(b)};1;{comma(b**2 - 3)};{a % 7}\n" for a, b in enumerate(x))
    (quick / "t.csv").write_text("Lab 3\n\nt;s;U;k\n" + rows, encoding="latin-1")
    options = ["--x", "t", "--y", "U", "--sigma", "s", "--report", "r.html", *SHORT]
    assert cli.main(["solve", "t.csv", *options]) == 0
    out = capsys.readouterr().out
    assert "formula     U = t**2 - 3\n" in out and "note        commas were read" in out
    assert "t**2 - 3" in (quick / "r.html").read_text(encoding="utf-8")
    assert cli.main(["solve", "t.csv", "--features", "t", "--target", "U", *SHORT]) == 0
    assert "formula     U = t**2 - 3\n" in capsys.readouterr().out


def comma(v: float) -> str:
    return str(float(v)).replace(".", ",")


def test_a_pasted_table_and_json(
    quick: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "t\tU\n" + "".join(f"{a}\t{a**2 - 3}\n" for a in range(1, 12))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert cli.main(["solve", "-", "--json", *SHORT]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["formula"] == "U = t**2 - 3" and record["names"] == ["t"] and record["exact"]
    assert not list(quick.glob("*.png"))


def test_operators_are_allowed_and_forbidden_by_name(
    quick: Path, points: Path, capsys: pytest.CaptureFixture
) -> None:
    for options in (["--forbid", "**", "sin"], ["--operators", "exp", "log", "/"]):
        assert cli.main(["solve", str(points), *options, *SHORT]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert "**" not in first and "sin" not in first
    assert cli.main(["solve", str(points), "--forbid", "sine"]) == 2
    assert "unknown operator 'sine'" in capsys.readouterr().err


def test_what_is_asked_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Asked:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def solve(self, *_: Any, **options: Any) -> None:
            seen.append(options)
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "RefineMath", Asked)
    options = ["--error", "relative", "--loss", "soft_l1", "--max-length", "9", "--through-origin"]
    assert cli.main(["solve", "t.csv", *options, "--missing", "drop"]) == 130
    asked = {"error": "relative", "loss": "soft_l1", "max_length": 9, "through_origin": True}
    assert asked.items() <= seen[0].items() and seen[0]["missing"] == "drop"
