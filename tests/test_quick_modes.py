"""The quick mode of every experiment that no other test goes through: the whole program, tiny."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

# what each report must hold, beside what every record does
QUICK = {
    "flops": {"flops_per_example", "projection", "parts"},
    "halting": {"recovered", "replay", "settled"},
    "profile": {"solve"},
    "sizes": {"tables", "again against columns", "bytes against rows"},
    "systems": {"table", "parameters", "records"},
    "variants": {"table", "runs"},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")
@pytest.mark.parametrize("name", QUICK)
def test_quick_mode_writes_a_record(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    importlib.import_module(f"experiments.{name}").EXPERIMENT.main(["--quick", "--out", str(path)])

    def never(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    record = json.loads(path.read_text(encoding="utf-8"), parse_constant=never)
    assert {
        "command",
        "commit",
        "date",
        "python",
        "jax",
        "hardware",
        "cores",
        "options",
        "seconds",
        *QUICK[name],
    } <= record.keys()
    assert record["options"]["quick"] and record["seconds"] > 0
