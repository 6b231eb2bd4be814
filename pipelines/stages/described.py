"""Built objects as plain data, for reports."""

import dataclasses
from typing import Any


def describe(part: Any) -> Any:
    """Class and settings of a dataclass, nested ones too; all else as it is."""
    if not dataclasses.is_dataclass(part):
        return part
    fields = {field.name: describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
    return {"class": type(part).__name__, **fields}
