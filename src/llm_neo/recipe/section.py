"""What every section of the recipe is made of: its number types and the rules that span several keys.

A key's own limits stand in its type. Rules that span several keys are yielded by `Section.broken_rules` as
"key: what is wrong and what to do", all of them at once; `recipe.problems` turns both into sentences.
"""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
PartBelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the recipe: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def broken_rules(self) -> Iterator[str]:
        """One "key: sentence" for each broken rule that spans several keys; the key is relative to self."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_broken_rules(self) -> Self:
        if broken := list(self.broken_rules()):
            raise ValueError("\n".join(broken))
        return self
