"""The house style over the whole package: docstrings, imports in chapter order, and nothing that
computes plots or prints.
"""

import ast
import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import refinemath

PACKAGE = Path(refinemath.__file__).parent


def dotted(path: Path) -> str:
    """`answer.choose` for refinemath/answer/choose.py, `answer` for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


SOURCES = {
    dotted(p): ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))
}
# Imports go one way: a module may import those of earlier rows.
CORE = ("expression newton_schulz", "execution text grammar", "fitting examples", "pool model")
SEARCH = (
    "proposers proposers.splice proposers.library",
    "proposers.short proposers.missing_term proposers.pairs proposers.quotients "
    "proposers.edits proposers.prior",
    "loop",
)
AROUND = (
    "compilation weights corpus corpus.canonical corpus.signatures problem",
    "answer answer.solution",
    "answer.rounding answer.symbolic",
    "answer.targets",
    "answer.choose corpus.build corpus.exclusions",
    "result schedule training",
    "solver plots",
    "estimator evaluation",
    "__init__",
    "__main__",
)
FLOORS = tuple(tuple(row.split()) for row in (*CORE, *SEARCH, *AROUND))
FLOOR = {name: i for i, row in enumerate(FLOORS) for name in row}
# what a person starts and watches; the others neither print nor show a bar
ENTRANCES = {"__main__", "training", "evaluation"}
PICTURES = {"plots"}


def modules() -> list[ModuleType]:
    absent = {"__main__"} if find_spec("sklearn") else {"__main__", "estimator"}
    names = [n for n in SOURCES if n not in absent | {"__init__"}]
    return [refinemath, *(import_module(f"refinemath.{n}") for n in names)]


def imported(tree: ast.AST, *, at_load: bool = False) -> set[str]:
    """Names of the modules that a source imports; with `at_load`, only those outside functions."""
    nodes = ast.iter_child_nodes(tree) if at_load else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif at_load and isinstance(node, ast.Try):
            found |= imported(node, at_load=True)
    return found


def own_imports(name: str, *, at_load: bool = False) -> set[str]:
    inside = {
        m.removeprefix("refinemath.")
        for m in imported(SOURCES[name], at_load=at_load)
        if m.startswith("refinemath.")
    }
    return inside & SOURCES.keys()


def public(module: ModuleType) -> list[tuple[str, object]]:
    """Public functions, classes and their methods that the module itself defines."""
    found: list[tuple[str, object]] = []
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            found.append((f"{module.__name__}.{name}", thing))
            for method, f in vars(thing).items():
                f = f.fget if isinstance(f, property) else f
                if (
                    inspect.isfunction(f)
                    and f.__module__ == module.__name__
                    and (not method.startswith("_") or method == "__call__")
                ):
                    found.append((f"{module.__name__}.{name}.{method}", f))
        elif callable(thing):
            found.append((f"{module.__name__}.{name}", thing))
    return found


PUBLIC = [pair for module in modules() for pair in public(module)]


def test_every_public_thing_has_a_docstring_with_a_sentence() -> None:
    assert len(PUBLIC) > 100
    for name, thing in PUBLIC:
        text = (getattr(thing, "__doc__", None) or "").strip()
        assert text and not text.startswith(f"{name.rsplit('.', 1)[-1]}("), (
            f"{name}: no docstring, or the generated one of a record"
        )
        assert any(mark in text.split("\n\n")[0] for mark in ".:;"), name


def test_every_argument_and_result_has_a_type() -> None:
    for name, thing in PUBLIC:
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, name
            untyped = [
                n
                for n, p in signature.parameters.items()
                if n not in ("self", "cls") and p.annotation is inspect.Parameter.empty
            ]
            assert not untyped, f"{name}: {untyped}"


def test_every_module_says_what_it_is_for() -> None:
    for name, tree in SOURCES.items():
        assert name == "__main__" or len(ast.get_docstring(tree) or "") > 40, name


def test_every_module_stands_on_a_floor() -> None:
    assert FLOOR.keys() == SOURCES.keys()


@pytest.mark.parametrize("name", FLOOR)
def test_a_module_imports_only_from_floors_below(name: str) -> None:
    below = {other for other, floor in FLOOR.items() if floor < FLOOR[name]}
    at_load = own_imports(name, at_load=True)
    assert at_load - {name.split(".")[0]} <= below
    # inside a function: Result.plot draws, the command line trains
    assert own_imports(name) - at_load <= below | PICTURES


def test_the_answer_is_worked_out_without_jax() -> None:
    core = {f"refinemath.{n}" for row in (*FLOORS[1:4], *FLOORS[4:7]) for n in row} - {
        "refinemath.text"
    }
    for name in ("problem", "schedule", *(n for n in SOURCES if n.startswith("answer"))):
        used = imported(SOURCES[name])
        assert not {m for m in used if m.split(".")[0] in ("jax", "flax")} | (used & core), name


def test_lines_fit_into_100_columns() -> None:
    for path in PACKAGE.rglob("*.py"):
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 100, f"{path.name}:{i}"


def test_what_computes_does_not_plot() -> None:
    for name, tree in SOURCES.items():
        if name not in PICTURES:
            assert not [
                m
                for m in imported(tree)
                if m.split(".")[0] in ("matplotlib", "plotly", "PIL", "IPython")
            ], name


def test_what_computes_does_not_print() -> None:
    for name, tree in SOURCES.items():
        calls = [
            n.func.id
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert not {"eval", "exec", "compile", "breakpoint"} & set(calls), name
        if name not in ENTRANCES:
            assert "print" not in calls and "tqdm.auto" not in imported(tree), name


def test_no_pickle_and_no_star_import() -> None:
    for name, tree in SOURCES.items():
        assert not [
            m
            for m in imported(tree)
            if m.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
        ], name
        assert not any(m.endswith(".*") for m in imported(tree)), name


def test_numpy_never_reads_objects() -> None:
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                allowed = [
                    k
                    for k in node.keywords
                    if k.arg == "allow_pickle" and ast.literal_eval(k.value)
                ]
                assert not allowed, name


def test_lines_have_no_banner_and_no_emoji() -> None:
    for path in PACKAGE.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not [c for c in line if ord(c) > 0x2FFF], f"{path.name}: {line}"
            assert not line.startswith(("####", "# ====")), f"{path.name}: {line}"


def test_the_package_names_what_a_user_needs() -> None:
    assert set(refinemath.__all__) <= set(dir(refinemath))
    assert {"RefineMath", "Result", "DataError", "CheckpointError", "FormulaError"} <= set(
        refinemath.__all__
    )
    for error in (refinemath.DataError, refinemath.CheckpointError, refinemath.FormulaError):
        assert issubclass(error, ValueError)
