"""What all sections of a recipe have in common: frozen, no unknown keys, numbers as people write them."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of a recipe; the docstring under each field is its description."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_true_or_false(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take ``1``, ``"yes"`` and ``"off"`` too; a switch that is given a number is a mistake."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        kinds = get_args(annotation) or (annotation,)
        if bool in kinds and not isinstance(value, bool) and not (value is None and type(None) in kinds):
            raise ValueError("true or false")
        return value


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


Number = Annotated[float, BeforeValidator(_not_boolean)]
"""A finite number; ``1e-3`` is one, ``true`` is not."""

PositiveNumber = Annotated[Number, Field(gt=0)]
NonNegativeNumber = Annotated[Number, Field(ge=0)]


def whole(value: Any) -> Any:
    """Lets ``1e5`` and ``"100_000"`` be whole numbers, as people write large ones."""
    _not_boolean(value)
    if isinstance(value, str):
        for convert in (int, float):  # int first: a float rounds whole numbers beyond 2^53
            try:
                value = convert(value)
                break
            except ValueError:
                continue
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(whole)]
Count = Annotated[Whole, Field(ge=1)]
"""A whole number of at least 1."""

Index = Annotated[Whole, Field(ge=0)]
"""A whole number of at least 0."""
