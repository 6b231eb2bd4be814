"""Ranges of settings, as types: a field that is annotated with one is checked before any work.

`annotated_types` only carries the bounds; the pipelines read them when a configuration comes in.
Plain `int` and `float` mean any (finite) number.
"""

from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt, Interval, MinLen

PositiveInt = Annotated[int, Interval(ge=1, lt=2**31)]
NonNegativeInt = Annotated[int, Interval(ge=0, lt=2**31)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
"""A part of a whole, both ends included."""
Share = Annotated[float, Interval(gt=0, le=1)]
"""A part of a whole that is not nothing."""
Ratio = Annotated[float, Interval(ge=0, lt=1)]
"""What may be removed: not all of it."""
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
Word = Annotated[str, MinLen(1)]
"""A text that is not empty."""
Item = TypeVar("Item")
NonEmpty = Annotated[list[Item], MinLen(1)]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
