"""Regenerate the simulated data sets of this folder (numpy only, seeded).

Run `python data/make_simulated.py`; it writes pendulum.csv, lens.csv, pendulum_amplitude.csv and
gas.csv next to itself.  Only these are simulated; every other table holds published numbers.
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


def lens(seed=1611):
    """Distances (cm) of object, and of image behind thin lenses of some focal lengths (cm)."""
    rng = np.random.default_rng(seed)
    focal, ratio = np.meshgrid([5.0, 10.0, 15.0, 20.0, 30.0], [1.3, 1.5, 1.8, 2.2, 3.0, 4.0])
    focal, distance = focal.ravel(), np.round((focal * ratio).ravel(), 1)
    image = 1 / (1 / focal - 1 / distance)
    return np.column_stack([distance, focal, image + rng.normal(0.0, 0.1, image.size)])


def pendulum_amplitude(seed=1673):
    """Length (m), amplitude (rad) and period (s) of a pendulum timed by a light gate."""
    rng = np.random.default_rng(seed)
    length, degrees = np.meshgrid([0.25, 0.5, 0.75, 1.0, 1.5, 2.0], [5.0, 15.0, 25.0, 35.0, 45.0])
    length, angle = length.ravel(), np.round(np.deg2rad(degrees.ravel()), 4)
    a, b = np.ones_like(angle), np.cos(angle / 2)
    for _ in range(6):  # the arithmetic-geometric mean gives the exact period
        a, b = (a + b) / 2, np.sqrt(a * b)
    period = 2 * np.pi * np.sqrt(length / 9.81) / a
    return np.column_stack([length, angle, period + rng.normal(0.0, 0.001, period.size)])


def gas(seed=1834):
    """Amount (mol), temperature (K), volume (L) and pressure (kPa) of an ideal gas."""
    rng = np.random.default_rng(seed)
    amount, volume = np.round(rng.uniform(0.2, 2.0, 60), 2), np.round(rng.uniform(5.0, 50.0, 60), 1)
    temperature = np.round(rng.uniform(260.0, 420.0, 60), 1)
    pressure = 8.314 * amount * temperature / volume * (1 + rng.normal(0.0, 0.005, 60))
    return np.column_stack([amount, temperature, volume, pressure])


def write(name, header, rows, digits):
    """One CSV file with so many digits after the point in each column."""
    lines = [",".join(f"{v:.{d}f}" for v, d in zip(row, digits, strict=True)) for row in rows]
    (HERE / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def main():
    write("pendulum.csv", "x,y", pendulum(), (1, 3))
    write("lens.csv", "object_distance,focal_length,image_distance", lens(), (1, 1, 1))
    write("pendulum_amplitude.csv", "length,amplitude,period", pendulum_amplitude(), (2, 4, 4))
    write("gas.csv", "amount,temperature,volume,pressure", gas(), (2, 1, 1, 1))


if __name__ == "__main__":
    main()
