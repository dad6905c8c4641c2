"""A spec from a file or from plain data, or the one line that says what is wrong with it."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from trtforge.errors import InputError
from trtforge.spec.build import BuildSpec
from trtforge.spec.part import FoundError


class SpecError(InputError):
    """The spec is wrong; the message names the field, the value and what to type instead."""


class SpecFileError(InputError):
    """The spec file cannot be read, or is not YAML with a mapping at the top."""


def parse_spec(data: object) -> BuildSpec:
    """Validate plain data (from YAML or JSON).

    Raises:
        SpecError: for the first problem found.
    """
    try:
        return BuildSpec.model_validate(data)
    except ValidationError as error:
        raise _first_problem(error) from error


def load_spec(path: Path) -> BuildSpec:
    """Read a spec from a YAML (or JSON) file.

    Raises:
        SpecFileError: the file cannot be read or is not a YAML mapping.
        SpecError: the spec in it is wrong.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise SpecFileError(
            f"the spec cannot be read ({problem})",
            field="SPEC",
            value=str(path),
            remedy="Give a readable YAML file",
        ) from error
    if not isinstance(data, dict):
        raise SpecFileError(
            "the spec must be a YAML mapping",
            field="SPEC",
            value=str(path),
            remedy="Begin with 'model:' and its 'source:'",
        )
    return parse_spec(data)


def _first_problem(error: ValidationError) -> SpecError:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    found = first.get("ctx", {}).get("error")
    if isinstance(found, FoundError):
        return SpecError(
            found.problem,
            field=".".join([*where, found.field]),
            value=found.value,
            remedy=found.remedy,
        )
    problem = first["msg"][0].lower() + first["msg"][1:]
    if where[:2] == ["engine", "options"] and len(where) > 3:
        # One error for each type a value may have, with the type's name as a fourth part.
        where, problem = where[:3], "an option is true or false, a number or a text"
    field = ".".join(where)
    description = _describe(BuildSpec, where)
    if first["type"] == "missing":
        return SpecError(
            "this field is required", field=field, value=None, remedy=f"Give it: {description}"
        )
    return SpecError(problem, field=field, value=first["input"], remedy=f"Expected: {description}")


def _describe(model: type[BaseModel], where: list[str]) -> str:
    """What belongs at the path `where`: a mapping's keys, or the innermost field's description."""
    description = "a mapping with " + ", ".join(model.model_fields)
    current: Any = model
    for part in where:
        info = getattr(current, "model_fields", {}).get(part)
        if info is None:
            break
        current = info.annotation
        keys = getattr(current, "model_fields", None)
        description = "a mapping with " + ", ".join(keys) if keys else info.description
    return description
