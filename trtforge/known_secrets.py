"""The values that this process was given as secrets, so that they can be hidden wherever they show.

They come from environment variables named like secrets, from URLs with a password in the
environment, from trtforge's settings (the embedded stack's credentials among them), and from
Prefect's settings where Prefect is loaded.
"""

import base64
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from pydantic import BaseModel, SecretStr

# Shorter ones (`admin`, `true`, `0`) are in half of all log lines by chance.
SHORTEST = 8

_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|SECRETS|PASSWORD|PASSWD|PASSPHRASE|PGPASSWORD|CREDENTIALS?|API_?KEY"
    r"|ACCESS_KEY|PRIVATE_KEY|ENCRYPTION_KEY|AUTH|AUTH_STRING|WEBHOOK_URL)(?:_|$)",
    re.IGNORECASE,
)
# They say where a secret is, or how it is used, and are none.
_ABOUT = re.compile(
    r"_(?:FILE|PATH|DIR|PROVIDER|EXPIRATION|ENABLED|TYPE|NAME|BLOCK|ENDPOINT|URI)$", re.IGNORECASE
)


class Known:
    """The secrets of this process, as one pattern; found when first asked for."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._added: set[str] = set()
        self._found: set[str] = set()
        self._looked = self._looking = False
        self._sources: _Sources | None = None
        self._pattern: re.Pattern[str] | None = None

    def add(self, secrets: Iterable[str]) -> None:
        """Know these as well."""
        with self._lock:
            self._added.update(secrets)
            self._pattern = _pattern(self._added | self._found)

    def refresh(self) -> None:
        """Look again, where the environment or the settings have changed since."""
        with self._lock:
            self._looked = False

    def pattern(self) -> re.Pattern[str] | None:
        """What matches any of them in any of their spellings; None when there are none."""
        if not self._looked:
            with self._lock:
                # Whatever logs while settings are read comes here again, in the same thread.
                if not self._looked and not self._looking:
                    self._looking = True
                    try:
                        # Finding them takes tens of milliseconds, at every start of a task.
                        sources = _Sources.now()
                        if not sources.same_as(self._sources):
                            self._found = set(find_secrets())
                            self._pattern = _pattern(self._added | self._found)
                            self._sources = sources
                        self._looked = True
                    finally:
                        self._looking = False
        return self._pattern


@dataclass(frozen=True, eq=False)
class _Sources:
    """What `find_secrets` reads."""

    environment: Mapping[str, str]
    credentials_changed_ns: int | None
    prefect_settings: object

    @classmethod
    def now(cls) -> "_Sources":
        environment = dict(os.environ)
        home = Path(environment.get("TRTFORGE_HOME") or ".trtforge").expanduser()
        try:
            changed_ns = (home / "credentials.json").stat().st_mtime_ns
        except OSError:
            changed_ns = None
        context = sys.modules.get("prefect.context")
        current = context.SettingsContext.get() if context is not None else None
        return cls(environment, changed_ns, getattr(current, "settings", None))

    def same_as(self, other: "_Sources | None") -> bool:
        """Whether the same would be found there as in `other`."""
        return (
            other is not None
            and self.environment == other.environment
            and self.credentials_changed_ns == other.credentials_changed_ns
            # They never change, and to compare them takes as long as to search them.
            and self.prefect_settings is other.prefect_settings
        )


def find_secrets() -> Iterator[str]:
    """Every secret that the environment and the settings of this process hold."""
    yield from _of_environment(os.environ)
    # Settings that cannot be read are reported by whoever needs them.
    with suppress(Exception):
        from trtforge.settings import load_settings
        from trtforge.stack import state

        settings = load_settings()
        yield from _of_model(settings)
        stack = state.read(settings.home)
        if stack is not None:
            yield from _of_model(stack)
    prefect_settings = sys.modules.get("prefect.settings")
    with suppress(Exception):
        if prefect_settings is not None:
            current = prefect_settings.get_current_settings()
            yield from _of_environment(current.to_environment_variables())


def _of_environment(variables: Mapping[str, str]) -> Iterator[str]:
    for name, value in variables.items():
        if _NAME.search(name) and not _ABOUT.search(name):
            yield from _with_parts(value)
        elif "://" in value:
            with suppress(ValueError):
                password = urlsplit(value).password
                if password:
                    yield password
                    yield unquote(password)
        elif name.startswith("OTEL_EXPORTER_OTLP") and name.endswith("HEADERS"):
            for header in value.split(","):
                yield header.partition("=")[2]
                yield unquote_plus(header.partition("=")[2])


def _of_model(model: BaseModel) -> Iterator[str]:
    for name in type(model).model_fields:
        value: Any = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _of_model(value)
        elif isinstance(value, SecretStr):
            yield from _with_parts(value.get_secret_value())
        elif isinstance(value, str) and (_NAME.search(name) or name == "prefect_auth"):
            yield from _with_parts(value)


def _with_parts(value: str) -> Iterator[str]:
    yield value
    user, colon, password = value.partition(":")
    # `user:password` of basic auth, and as its header has it.
    if colon and user.isidentifier():
        yield password
        yield base64.b64encode(value.encode()).decode()


def _pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    spelled = {
        spelling
        for secret in secrets
        if len(secret.strip()) >= SHORTEST
        for spelling in (
            secret.strip(),
            quote(secret.strip(), safe=""),
            json.dumps(secret.strip())[1:-1],
        )
    }
    if not spelled:
        return None
    # The longest first: one may begin with another.
    ordered = sorted(spelled, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered)))
