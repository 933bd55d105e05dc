"""The set-up cell in every state of a session, and the address of the repository in every place."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))
import frame  # noqa: E402

NEEDED = {"jax", "flax", "scipy", "sympy", "matplotlib"}


class Session:
    """A machine with the packages `installed`; it records clones and installations."""

    def __init__(self, installed: set[str]) -> None:
        self.installed = installed
        self.clones: list[str] = []
        self.pip: list[list[str]] = []

    def find_spec(self, name: str) -> ModuleSpec | None:
        return ModuleSpec(name, None) if name in self.installed else None

    def run(self, command: list[str], check: bool) -> None:
        assert check
        if command[0] == "git":
            self.clones.append(command[-2])
            Path(command[-1], "notebooks").mkdir(parents=True)
            Path(command[-1], "_toc.yml").touch()
        else:
            assert command[:4] == [sys.executable, "-m", "pip", "install"]
            assert "--no-deps" in command  # Colab's JAX is not touched
            assert Path("../_toc.yml").is_file()
            self.pip.append(command[command.index("--no-deps") + 1 :])
            self.installed.add("refinemath")

    def set_up(self) -> None:
        exec(frame.setup_cell(), {})  # what a reader presses


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Session]:
    session = Session(set(NEEDED))
    fake = SimpleNamespace(
        version=None
    )  # the cell says on what it runs; which JAX is not the point
    fake.__version__, fake.devices = "0", lambda: [SimpleNamespace(device_kind="cpu")]
    monkeypatch.setitem(sys.modules, "jax", fake)
    monkeypatch.setattr(importlib.util, "find_spec", session.find_spec)
    monkeypatch.setattr(subprocess, "run", session.run)
    monkeypatch.chdir(tmp_path)
    return session


def test_colab_first_run_second_run_and_restart(session: Session, tmp_path: Path) -> None:
    for place in (tmp_path, None, tmp_path):  # None: where the run before has left the session
        if place is not None:
            os.chdir(place)
        session.set_up()
        assert Path.cwd() == tmp_path / "book" / "notebooks"
    assert session.clones == [frame.repository()]
    assert session.pip == [["..", "jaxtyping", "wadler-lindig"]]  # from its notebooks


def test_a_run_that_was_stopped_before_the_installation(session: Session, tmp_path: Path) -> None:
    session.set_up()
    session.installed.remove("refinemath")
    os.chdir(tmp_path)
    session.set_up()
    assert len(session.clones) == 1 and len(session.pip) == 2


@pytest.mark.parametrize("start", [".", "notebooks", "book/chapters"])
def test_in_a_clone_nothing_is_fetched(session: Session, tmp_path: Path, start: str) -> None:
    for folder in ("notebooks", "book/chapters"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "_toc.yml").touch()
    session.installed.add("refinemath")
    os.chdir(tmp_path / start)
    session.set_up()
    assert Path.cwd() == tmp_path / "notebooks"
    assert not session.clones and not session.pip


def test_a_laptop_without_jax_is_told_what_to_do(session: Session, tmp_path: Path) -> None:
    session.installed.remove("jax")
    with pytest.raises(AssertionError, match=r"no \['jax'\]; .*pip install -r requirements"):
        session.set_up()
    assert not session.clones and not session.pip and not any(tmp_path.iterdir())


@pytest.mark.parametrize("file", frame.places())
def test_every_place_has_todays_address(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert frame.framed_place(text, file) == text, "run: python book/frame.py"


@pytest.mark.parametrize("file", frame.places())
def test_a_fork_is_written_everywhere(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    text, old = (ROOT / file).read_text(encoding="utf-8"), (frame.repository(), frame.site())
    fork = {"repository": "https://github.com/me/my-fork", "site": "https://me.example/book/"}
    monkeypatch.setattr(frame, "_addresses", lambda: fork)
    new = frame.framed_place(text, file)
    assert not any(address in new for address in old)
    assert len(new.splitlines()) == len(text.splitlines())
