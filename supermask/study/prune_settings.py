"""The pruning schedule of a study file: keys of `prune`."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from supermask.core.types import TensorKind
from supermask.study.fields import (
    Level,
    NamedRate,
    Patterns,
    Rate,
    Schedule,
    Scope,
    StrictModel,
    ZeroRate,
    check_pattern,
)


class Rates(StrictModel):
    """Share of the surviving weights removed per level, by kind of tensor. Source: Zhou et al. 2019, Table S1.

    Further keys are names of tensors or layers, or patterns of these with `*` and `?`; the longest that matches a
    tensor replaces the rate of its kind. A rate of 0 spares the tensor, under `scope: global` too.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    __pydantic_extra__: dict[str, NamedRate] = Field(init=False)

    conv: ZeroRate = 0.1
    hidden: ZeroRate = 0.2
    output: ZeroRate = 0.1
    global_: Rate = Field(default=0.2, alias="global")
    """The only rate used under `scope: global`; not used otherwise."""

    @model_validator(mode="after")
    def _check_patterns(self) -> Rates:
        for key in self.by_name:
            check_pattern(key)
        return self

    def for_kind(self, kind: TensorKind) -> float:
        """Return the rate of a kind of tensor under `scope: layer`."""
        return {"conv": self.conv, "hidden": self.hidden, "output": self.output}[kind]

    @property
    def by_name(self) -> dict[str, float]:
        """Rates of names and patterns."""
        return dict(self.__pydantic_extra__)


class Prune(StrictModel):
    """The pruning schedule. Source: Zhou et al. 2019, Table S1."""

    schedule: Schedule = "iterative"
    scope: Scope = "layer"
    levels: Level = 24
    rates: Rates = Rates()
    only: Patterns = ()
    """Names or patterns of the only tensors or layers that are pruned; empty: all."""
    exclude: Patterns = ()
    """Names or patterns of tensors or layers that are never pruned."""
