"""The house style over the whole package: docstrings, imports in chapter order, and nothing that
computes plots or prints.
"""

import ast
import inspect
import pkgutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import refinemath

PACKAGE = Path(refinemath.__file__).parent
SOURCES = {
    path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.glob("*.py"))
}
# A module may import those before it and none after it: the order in which the chapters derive
# them.
ORDER = (
    "language",
    "newton_schulz",
    "data",
    "heldout",
    "grammar",
    "fit",
    "model",
    "search",
    "checkpoint",
    "solve",
    "estimator",
    "vis",
    "train",
    "evaluate",
    "__init__",
    "__main__",
)
ENTRANCES = {
    "__main__",
    "train",
    "evaluate",
}  # what a person starts and watches; the others neither print nor show a bar
PICTURES = {"vis"}


def modules() -> list[ModuleType]:
    absent = {"__main__"} if find_spec("sklearn") else {"__main__", "estimator"}
    names = [m.name for m in pkgutil.iter_modules([str(PACKAGE)]) if m.name not in absent]
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
        m.removeprefix("refinemath.").split(".")[0]
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


def test_every_module_stands_in_the_order() -> None:
    assert set(ORDER) == SOURCES.keys()


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_comes_before_it(name: str) -> None:
    before = set(ORDER[: ORDER.index(name)])
    late = own_imports(name) - own_imports(
        name, at_load=True
    )  # inside a function: Result.plot draws, the command line trains
    assert own_imports(name, at_load=True) <= before
    assert late <= before | PICTURES


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
    for path in PACKAGE.glob("*.py"):
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
