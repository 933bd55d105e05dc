"""Waits for the distributed fix of train.py; then it goes to the end of the runs in test_train.py (with `import socket`)."""

import json
import socket
from pathlib import Path

import numpy as np
from test_train import child, finish, folder_with_bank, losses, same_curve


def test_two_processes_give_the_loss_curve_of_one(whole_run: Path, small_bank: Path, compiled_once: Path, tmp_path: Path) -> None:
    folder = folder_with_bank(tmp_path, "two-processes", small_bank)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    pair = [child(folder, 8, 1e9, address, "2", str(i), compiled=compiled_once) for i in range(2)]
    try:
        for process in pair:
            finish(process)
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    assert json.loads((folder / "losses-0.json").read_text(encoding="utf-8"))["devices"] == 2
    np.testing.assert_array_equal(losses(folder, 0), losses(folder, 1))
    same_curve(losses(folder), losses(whole_run)[:8])
