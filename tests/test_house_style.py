"""The house style over the whole package: docstrings, imports in chapter order, and nothing that
computes plots or prints.
"""

import ast
import inspect
import symtable
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


TEXTS = {dotted(p): p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name: ast.parse(text) for name, text in TEXTS.items()}
# Imports go one way: a module may import those of earlier rows.
CORE = (
    "expression newton_schulz",
    "execution text grammar network network.layers",
    "fitting examples network.spine",
    "pool model network.config network.moments",
    "network.encoder network.decoder",
    "network.refiner",
    "network.model",
    "loop",
)
SEARCH = (
    "proposers proposers.splice proposers.library proposers.monomials spectrum answer answer.codes",
    "proposers.network proposers.short proposers.missing_term proposers.pairs proposers.edits "
    "proposers.prior families",
    "proposers.quotients proposers.inverses answer.solution",
    "proposers.families",
    "proposers.registry compiled",
)
AROUND = (
    "weights corpus corpus.canonical corpus.signatures problem compilation pace",
    "answer.rounding answer.symbolic answer.uncertainty answer.units files",
    "answer.targets answer.regression answer.statement operators reading",
    "answer.choose corpus.exclusions control forms",
    "corpus.build schedule export",
    "front",
    "result",
    "finish plots",
    "engine training report",
    "solver",
    "estimator evaluation",
    "__init__",
    "__main__",
)
FLOORS = tuple(tuple(row.split()) for row in (*CORE, *SEARCH, *AROUND))
FLOOR = {name: i for i, row in enumerate(FLOORS) for name in row}
# what the book derives; it imports no other room
ROOM = {"training", *(name for row in CORE for name in row.split())}
# what a person starts and watches; the others neither print nor show a bar
ENTRANCES = {"__main__", "training", "evaluation"}
PICTURES = {"plots"}

MOST_LINES, MOST_FUNCTION_LINES, MOST_CAPTURED = 350, 60, 3
COMPREHENSIONS = {"genexpr", "listcomp", "setcomp", "dictcomp"}  # scopes of their own until 3.11
# What is not there yet.  These lists may only become shorter: a name that no longer needs to be
# here makes a test fail.
LONG_FILES = {"evaluation", "expression", "loop", "model", "training"}
LONG_FUNCTIONS = {
    "__main__._parser",
    "fitting.levenberg_marquardt",
    "training.loss_fn",
    "training.make_trainer",
    "training.train",
}
GREEDY = {
    "corpus.canonical.read_tree.step",
    "examples._defined_points.terms_at",
    "answer.solution.refine_constants.residual",
    "execution.additive_terms.step",
    "execution.evaluate_nodes.step",
    "fitting.levenberg_marquardt.run",
    "fitting.levenberg_marquardt.step",
    "fitting.orthonormal.next_term",
    "model.Refiner.sample.step",
    "network.decoder.Decoder.sample.step",
    "network.spine._exchange.step",
    "network.spine.states.step",
    "proposers.pairs.best_partners.block",
    "proposers.quotients.Quotients.best.best_of",
    "training.make_trainer.init",
    "training.make_trainer.step",
}
OTHER_ROOMS = {"training": "it builds its own table of skeletons and writes weights files itself"}
# what `answer/` shares with the others: formulas, text, families of curves, the user's points
SHARED = {"expression", "text", "families", "spectrum", "problem"}


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


@pytest.mark.parametrize("name", sorted(ROOM))
def test_the_core_imports_no_other_room(name: str, request: pytest.FixtureRequest) -> None:
    if name in OTHER_ROOMS:
        request.applymarker(pytest.mark.xfail(strict=True, reason=OTHER_ROOMS[name]))
    assert own_imports(name) <= ROOM


@pytest.mark.parametrize("name", sorted(n for n in SOURCES if n.startswith("answer")))
def test_the_answer_is_worked_out_without_jax(name: str) -> None:
    assert not {m for m in imported(SOURCES[name]) if m.split(".")[0] in ("jax", "flax", "optax")}
    room = {n for n in SOURCES if n.startswith("answer")}
    assert own_imports(name) <= room | SHARED


def test_a_file_has_at_most_350_lines() -> None:
    long = {n: len(text.splitlines()) for n, text in TEXTS.items()}
    assert {n for n, lines in long.items() if lines > MOST_LINES} == LONG_FILES


def test_a_function_has_at_most_60_lines() -> None:
    long = {
        f"{name}.{node.name}"
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MOST_FUNCTION_LINES
    }
    assert long == LONG_FUNCTIONS


def captures(source: str, name: str) -> dict[str, set[str]]:
    """The names of enclosing functions that each nested function uses, those of its own nested
    functions included.
    """
    found: dict[str, set[str]] = {}

    def visit(table: symtable.SymbolTable, path: str, *, inside: bool) -> None:
        for child in table.get_children():
            own, is_function = f"{path}.{child.get_name()}", child.get_type() == "function"
            if is_function and inside and child.get_name() not in COMPREHENSIONS:
                free = {s.get_name() for s in child.get_symbols() if s.is_free()} - {"__class__"}
                found[f"{own}:{child.get_lineno()}"] = free
            visit(child, own, inside=inside or is_function)

    visit(symtable.symtable(source, name, "exec"), name, inside=False)
    return found


def test_captures_are_counted() -> None:
    source = """
def outer(a, b):
    c = [x for x in (a, b)]
    def inner(d):
        return d + len(c) + (lambda e: e + b)(d)
    return inner, max
"""
    found = {k.split(":")[0]: v for k, v in captures(source, "m").items()}
    assert found == {"m.outer.inner": {"b", "c"}, "m.outer.inner.lambda": {"b"}}


def test_a_nested_function_captures_at_most_three_names() -> None:
    """What needs more is a function, or a method of a small object, of its own."""
    greedy = {
        place.split(":")[0]
        for name, text in TEXTS.items()
        for place, names in captures(text, name).items()
        if len(names) > MOST_CAPTURED
    }
    assert greedy == GREEDY


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
