"""`credentials.json`: what a home's services were given, and how clients reach them.

Written by `up` with mode 0600 before any service starts, read by `trtforge.settings`. Imports no
service, so that reading it is cheap.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtforge.errors import InputError

FILE_NAME = "credentials.json"


class StateUnreadableError(InputError):
    """`credentials.json` exists but is not what `up` writes."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class S3State(_Model):
    """The embedded S3 server and its one identity."""

    endpoint_url: str
    bucket: str
    region: str
    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        return f"S3State({self.endpoint_url!r}, {self.bucket!r}, ***)"


class PostgresState(_Model):
    """The embedded PostgreSQL's only role and its database."""

    user: str
    database: str
    password: str

    def __repr__(self) -> str:
        return f"PostgresState({self.user!r}, {self.database!r}, ***)"


class StackState(_Model):
    """Everything `credentials.json` holds.

    Attributes:
        ports: The fields of `StackPorts`.
        prefect_auth: `user:password` of the Prefect server, as its UI asks for it. None in a file
            from before servers had one: such a server asks nobody.
    """

    format: Literal[1] = 1
    ports: dict[str, int]
    s3: S3State
    postgres: PostgresState
    prefect_api_url: str
    prefect_auth: str | None = Field(default=None, repr=False, pattern=r"^[^:]+:.+$")


def read(home: Path) -> StackState | None:
    """The state of this home, or None if `up` never ran there.

    Raises:
        StateUnreadableError: The file cannot be read or is damaged.
    """
    path = home / FILE_NAME
    try:
        return StackState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise StateUnreadableError(
            "it belongs to another user",
            field="home",
            value=str(path),
            remedy="Run as that user, or set TRTFORGE_HOME to a directory of your own",
        ) from error
    except ValidationError as error:
        raise StateUnreadableError(
            f"it is damaged or of a newer format ({error.error_count()} errors)",
            field="home",
            value=str(path),
            remedy="Restore it from a backup: the data under this home needs its passwords",
        ) from error


def write(home: Path, state: StackState) -> None:
    """Replace the state of this home; mode 0600."""
    write_private_json(home / FILE_NAME, state.model_dump())


def write_private_json(path: Path, document: dict[str, Any]) -> None:
    """Replace `path` by `document`, readable by its owner only, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
