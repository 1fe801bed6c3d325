"""What all sections of a recipe have in common: frozen, no unknown keys, numbers as people write them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of a recipe; the docstring under each field is its description."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


Number = Annotated[float, BeforeValidator(_not_boolean)]
"""A finite number; ``1e-3`` is one, ``true`` is not."""

PositiveNumber = Annotated[Number, Field(gt=0)]
NonNegativeNumber = Annotated[Number, Field(ge=0)]


def _whole(value: Any) -> Any:
    """Lets ``1e5`` and ``"100_000"`` be whole numbers, as people write large ones."""
    _not_boolean(value)
    if isinstance(value, str):
        try:
            value = float(value.replace("_", ""))
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1)]
"""A whole number of at least 1."""

Index = Annotated[Whole, Field(ge=0)]
"""A whole number of at least 0."""
