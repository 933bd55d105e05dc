"""Draw book/_static/quickstart.png, the picture of README.md: Kepler's planets, the formula found,
and the thoughts coming to rest.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from refinemath import RefineMath

ROOT = Path(__file__).resolve().parents[1]
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#777777"


def main() -> None:
    threshold = 1e-5
    points = np.load(ROOT / "data" / "physics_data.npy")
    result = RefineMath(latent_dim=512, max_iters=32).solve(points, threshold=threshold)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    x = np.geomspace(points[:, 0].min(), points[:, 0].max(), 200)
    left.loglog(x, result.predict(x), color=ORANGE, lw=2, zorder=1)
    left.scatter(*points.T, color=BLUE, s=22, zorder=2)
    left.set(
        xlabel="distance from the Sun (AU)", ylabel="period (years)", title=f"$y = {result.latex}$"
    )
    right.semilogy(
        np.arange(1, len(result.velocity) + 1),
        np.where(result.velocity > 0, result.velocity, np.nan),
        color=BLUE,
        alpha=0.3,
        lw=0.8,
    )
    right.axhline(threshold, color=GREY, ls="--")
    right.text(1, threshold * 1.3, "threshold", color=GREY)
    right.set(
        xlabel="step",
        ylabel="relative velocity of each thought",
        title=f"{result.iterations} steps, {result.velocity.shape[1]} thoughts",
    )
    figure.savefig(ROOT / "book" / "_static" / "quickstart.png", dpi=110)


if __name__ == "__main__":
    main()
