"""What all JSON objects of the store have in common: `format: 1`, and one way to read them.

How a format grows: a field that older readers may ignore is added with a default, and `format`
stays. So readers keep fields they do not know, and write them back with the rest; machines with
different versions of trtforge share a bucket. `format` goes up when an older reader would
misunderstand; then older readers refuse (`UnknownFormatError`).

`trtforge.store.schemas` writes the JSON Schemas of all records, in docs/schemas.
"""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtforge.canonical import canonical_json
from trtforge.errors import ServiceError
from trtforge.files import UnsafePathError

FORMAT = 1
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class UnknownFormatError(ServiceError):
    """An object was written by a version of trtforge that this one does not know."""


class RecordInvalidError(ServiceError):
    """An object of the store is not what its place in the bucket says."""


class Part(BaseModel):
    """Base of what records are made of: immutable; fields of newer writers are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Record(Part):
    """Base of the JSON objects of the store."""

    format: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """The bytes that are stored; equal records give equal bytes."""
        return canonical_json(self.model_dump(mode="json"))


RecordT = TypeVar("RecordT", bound=Record)


def parse_record(kind: type[RecordT], data: bytes, where: str) -> RecordT:
    """Read a record.

    Args:
        where: The address of the object, for messages.

    Raises:
        UnknownFormatError: Its `format` is not 1.
        RecordInvalidError: It is not JSON, or lacks a field, or has a wrong one.
    """
    try:
        value: Any = json.loads(data)
    except ValueError as error:
        raise _invalid(where, "is not JSON") from error
    if not isinstance(value, dict):
        raise _invalid(where, "is not a JSON object")
    if value.get("format") != FORMAT:
        raise UnknownFormatError(
            f"{where} was written in a format that this version of trtforge does not know",
            field="format",
            value=value.get("format"),
            remedy=f"Install the version of trtforge that wrote it; this one reads format {FORMAT}",
        )
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or kind.__name__
        raise _invalid(where, f"is damaged at {field}: {first['msg']}") from error
    except UnsafePathError as error:
        raise _invalid(where, f"names a file outside its directory: {error.value!r}") from error


def now() -> datetime:
    """The time records carry: UTC."""
    return datetime.now(UTC)


def _invalid(where: str, problem: str) -> RecordInvalidError:
    return RecordInvalidError(
        f"{where} {problem}",
        remedy="Something other than trtforge wrote it: restore it, or delete it and run again",
    )
