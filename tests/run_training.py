"""A small training run in a process of its own: to be killed, or split over devices.

python run_training.py FOLDER STEPS SAVE_SECONDS
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from conftest import CONFIG

from refinemath import training
from refinemath.training import TrainConfig, Trainer, TrainState

RECIPE = TrainConfig(
    batch=16, warmup=5, learning_rate=4e-3, own_samples=2, ema=0.9, bank_per_length=8
)


def main(folder: Path, steps: int, save_seconds: float) -> None:
    # reading the list of excluded formulas takes seconds and has its own tests
    training.training_exclusions = lambda _: (None, jnp.zeros((1, 24), jnp.float32))
    losses = []
    make_trainer = training.make_trainer

    def recording(*arguments: object) -> Trainer:
        trainer = make_trainer(*arguments)  # type: ignore[arg-type]

        def step(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = trainer.step(state)
            losses.append(float(metrics["loss"]))
            return state, metrics

        return replace(trainer, step=step)

    training.make_trainer = recording
    training.train(
        CONFIG, replace(RECIPE, steps=steps), folder, save_seconds=save_seconds, show=False
    )
    (folder / f"losses-{jax.process_index()}.json").write_text(
        json.dumps({"devices": jax.device_count(), "losses": losses}), encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
