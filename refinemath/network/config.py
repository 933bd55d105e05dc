"""The sizes of the network for tables, which are stored with its weights."""

from __future__ import annotations

from dataclasses import dataclass

from refinemath.network.spine import COLUMNS, SLOTS

STABILISERS = ("polar", "rms")


@dataclass(frozen=True)
class Config:
    """What defines a model; stored with its weights."""

    width: int = 128
    hidden: int = 256  # width of a column's code
    heads: int = 4
    latents: int = 16  # slots
    latent_dim: int = 512
    decoder_blocks: int = 2
    column_items: int = 4  # items that the slots can read of each column
    stabiliser: str = "polar"
    feedback: bool = True  # False: candidates are not looked at
    blind: bool = False  # True: the points are not looked at, the null model

    @property
    def variables(self) -> int:
        """The most columns."""
        return COLUMNS

    @property
    def slots(self) -> int:
        """The longest formula, in tokens."""
        return SLOTS

    def __post_init__(self) -> None:
        if self.stabiliser not in STABILISERS:
            raise ValueError(f"stabiliser is {self.stabiliser!r}; it must be one of {STABILISERS}")
        if self.latent_dim < 4 * self.latents:
            raise ValueError(
                f"{self.latents} orthogonal slots need a latent_dim of {4 * self.latents}"
            )
