"""Regenerate the simulated data sets of this folder (numpy only, seeded).

Run `python data/make_simulated.py`; it writes pendulum.csv next to itself.
Only pendulum.csv is simulated; every other CSV holds published numbers.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def pendulum(seed=1602):
    """Length (m) and period (s) of a pendulum timed by hand with a stopwatch."""
    rng = np.random.default_rng(seed)
    g = 9.81  # m/s^2
    theta0 = np.deg2rad(10.0)  # release angle, the same for all lengths
    swings = 20  # swings timed in one go
    length = np.arange(1, 21) / 10.0  # 0.1 to 2.0 m, as read on the ruler
    true_length = length + rng.normal(0.0, 0.002, length.size)
    period = 2 * np.pi * np.sqrt(true_length / g) * (1 + theta0**2 / 16)
    total = swings * period + rng.normal(0.0, 0.15, length.size)
    return np.column_stack([length, np.round(total / swings, 3)])


def main():
    rows = pendulum()
    lines = ["x,y"] + [f"{x:.1f},{y:.3f}" for x, y in rows]
    (HERE / "pendulum.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
