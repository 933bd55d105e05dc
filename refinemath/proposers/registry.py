"""The proposers by name.  To add one, write a file in this folder and a row here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from refinemath.loop import HostProposer, Proposer
from refinemath.proposers.edits import Edits
from refinemath.proposers.families import Families
from refinemath.proposers.inverses import Inverses
from refinemath.proposers.missing_term import MissingTerm
from refinemath.proposers.network import Network
from refinemath.proposers.pairs import Pairs
from refinemath.proposers.prior import Prior
from refinemath.proposers.quotients import Quotients
from refinemath.proposers.short import Short

REGISTRY: dict[str, Proposer | HostProposer] = {
    "network": Network(),
    "prior": Prior(),
    "short": Short(),
    "missing_term": MissingTerm(),
    "pairs": Pairs(),
    "quotients": Quotients(),
    "inverses": Inverses(),
    "edits": Edits(),
    "families": Families(),
}
DEFAULT = frozenset(REGISTRY) - {"prior", "families"}


def resolve(
    proposers: Iterable[str | Proposer | HostProposer],
) -> tuple[Proposer | HostProposer, ...]:
    """Proposers by name or as objects, names in the order of the registry.  Raises `ValueError`."""
    given = [proposers] if isinstance(proposers, str) else list(proposers)
    names = [p for p in given if isinstance(p, str)]
    unknown = [n for n in names if n not in REGISTRY]
    if unknown:
        raise ValueError(f"unknown proposer {unknown[0]!r}; known are {', '.join(REGISTRY)}")
    if not given:
        raise ValueError(f"no proposer is left; choose some of {', '.join(REGISTRY)}")
    others = tuple(p for p in given if not isinstance(p, str))
    for proposer in others:
        check_sizes(proposer)
    return tuple(p for n, p in REGISTRY.items() if n in names) + others


def check_sizes(proposer: Any) -> None:
    """All sizes of the proposers of this package are positive.  Raises `ValueError`."""
    if type(proposer) in map(type, REGISTRY.values()):
        for name, value in vars(proposer).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a positive whole number")
