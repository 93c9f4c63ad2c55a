"""Grids of a method's settings, and which of their points share a compiled program."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from deid_jax.attacks import METHODS
from deid_jax.errors import InputError
from deid_jax.types import Config

# A method's settings by name: numbers, names and booleans.
Settings: TypeAlias = Mapping[str, float | str]


def grid(
    method: str, sweeps: Mapping[str, Sequence[float | str]], fixed: Settings | None = None
) -> list[Settings]:
    """Every combination of the swept values; a point is a mapping with all settings.

    Args:
      method: a key of `METHODS`.
      sweeps: setting -> values; the last setting varies fastest.
      fixed: settings that all points share; all others have the method's defaults.

    Raises:
      InputError: a setting is unknown to the method or both swept and fixed, has no values or
        repeated ones, or has a value that the method refuses.
    """
    fixed = dict(fixed or {})
    known = METHODS[method].settings()
    for name, values in sweeps.items():
        if name not in known:
            raise InputError(
                f"{method} has no setting {name} to sweep: it takes {', '.join(known)}"
            )
        if name in fixed:
            raise InputError(f"{name} is swept and set to {fixed[name]}: one or the other")
        if not values or len(set(values)) < len(values):
            raise InputError(f"the values of {name} must be different ones, got {values}")
    points: list[Settings] = []
    for combination in itertools.product(*sweeps.values()):
        swept = dict(zip(sweeps, combination, strict=True))
        points.append(dataclasses.asdict(METHODS[method].config(**fixed, **swept)))
    return points


@dataclasses.dataclass(frozen=True)
class ProgramPoints:
    """Points of a grid that share one compiled program.

    `statics` are the settings that change the program, `num_steps` the increasing numbers of
    steps asked for (empty for methods without steps), and `leaves` the other settings, one
    entry per position of the stacked config.
    """

    method: str
    statics: Settings
    num_steps: tuple[int, ...]
    leaves: list[Settings]

    def config(self, chosen: Sequence[Settings]) -> Config:
        """The stacked config of C of the entries: its leaves are float32[C]."""
        stacked = {
            name: np.array([leaves[name] for leaves in chosen], np.float32)
            for name in self.leaves[0]
        }
        steps: dict[str, object] = {}
        if self.num_steps:
            alone = len(self.num_steps) == 1
            steps = {"num_steps": self.num_steps[0] if alone else self.num_steps}
        return METHODS[self.method].config(**self.statics, **stacked, **steps)

    def points(self, leaves: Settings) -> list[Settings]:
        """The points that one entry of the stack covers: one per number of steps."""
        shared = {**self.statics, **leaves}
        if not self.num_steps:
            return [shared]
        return [{**shared, "num_steps": number} for number in self.num_steps]


def by_program(method: str, points: Sequence[Settings]) -> list[ProgramPoints]:
    """Groups points by the settings that change the program.

    The number of steps does not: each group reads all of its numbers off one trajectory.
    """
    fields = dataclasses.fields(METHODS[method].config)
    static = {f.name for f in fields if f.metadata.get("static")} - {"num_steps"}
    steps = tuple(sorted({int(p["num_steps"]) for p in points if "num_steps" in p}))
    groups: dict[tuple[tuple[str, float | str], ...], list[Settings]] = {}
    for point in points:
        leaves = {n: v for n, v in point.items() if n not in static | {"num_steps"}}
        statics = tuple((n, v) for n, v in point.items() if n in static)
        stack = groups.setdefault(statics, [])
        if leaves not in stack:
            stack.append(leaves)
    return [ProgramPoints(method, dict(s), steps, stack) for s, stack in groups.items()]
