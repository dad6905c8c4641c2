"""Secrets out of text, log records and exceptions, before anybody else sees them.

Two things are taken for a secret: what looks like one (tokens of the Hub, keys and signatures of
S3, `Authorization` headers, passwords in URLs), and the very values that this process was given as
secrets (`trtforge.known_secrets`). Too much is hidden rather than too little.

`RedactingFilter` is for logging handlers; `trtforge/logging.yml` puts it on all of Prefect's.
`redacted_errors` is for the body of a flow or a task: Prefect makes the message of a failed state
of the exception itself, and no logging filter sees that.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from trtforge.known_secrets import Known

MASK = "***"

_known = Known()
_formatter = logging.Formatter()
# What every record has; everything beside these came in as `extra`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

_NAMES = (
    r"(?:secret[_-]?(?:access[_-]?)?key|session[_-]?token|security[_-]?token|access[_-]?token"
    r"|refresh[_-]?token|hf[_-]?token|hub[_-]?token|api[_-]?key|auth[_-]?string|client[_-]?secret"
    r"|password|passwd|passphrase|pgpassword)"
)
# `=` and `:` with the quotes and escapes that JSON, repr() and YAML put around them.
_IS = r"""\\*["']?\s*(?:=|:|%3D)\s*\\*(?:b(?=['"]))?\\*["']?"""
_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MASK),
        # Headers, as text, repr() and as pairs. Up to the quote or the end of the line: their
        # values have blanks, commas and `=`.
        (
            r"((?:authorization|cookie|x-api-key|x-amz-security-token)"
            r"""(?:\\*["']\s*,|\\*["']?\s*[:=])\s*\\*(?:b(?=['"]))?\\*["']?)[^"'\\\r\n]+""",
            rf"\1{MASK}",
        ),
        (r"(\bbearer(?:\s|%20)+)(?=[^\s\"']*\d)[\w.~+/=-]{8,}", rf"\1{MASK}"),
        # Parameters of signed URLs, also of a URL within a URL.
        (
            r"((?:x-amz-|x-goog-)[a-z-]+(?:=|%3D))[^&\s\"'<>\\]+",
            rf"\1{MASK}",
        ),
        (
            r"((?:[?&;]|%3F|%26)(?:signature|policy|key-pair-id|awsaccesskeyid|sig|token|key)"
            r"(?:=|%3D))[^&\s\"'<>\\]+",
            rf"\1{MASK}",
        ),
        # user:password@host, and a token alone before the @.
        (r"([a-z][a-z0-9+.-]*://[^\s/?#@:\"'<>]*:)[^\s/\"'<>]*@", rf"\1{MASK}@"),
        (r"(https?://)[^\s/?#@:\"'<>]+@", rf"\1{MASK}@"),
        (rf"({_NAMES}{_IS})[^\s\"',;&)}}\]\\]+", rf"\1{MASK}"),
        (r"hf_(?:(?:jwt|oauth)_)?[a-z0-9]{16,}(?:[\w.-]*\w)?|api_org_[a-z0-9]{16,}", MASK),
        (r"(?-i:\b(?:AKIA|ASIA)[A-Z0-9]{16}\b)", MASK),
        (r"gh[pousr]_[a-z0-9]{20,}|nvapi-[\w-]{20,}", MASK),
        (r"(?-i:\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)", MASK),
        (r"(hooks\.slack\.com/(?:services|workflows|triggers)/)[^\s\"'<>]+", rf"\1{MASK}"),
    )
)


class RedactedError(RuntimeError):
    """Stands for an exception whose own text holds a secret and cannot be changed."""


def remember(*secrets: str) -> None:
    """Hide these from now on: secrets that come from neither the environment nor the settings.

    Values of less than eight characters are not hidden: ordinary text is full of them.
    """
    _known.add(secrets)


def redact(text: str) -> str:
    """`text` with `***` for every secret in it; twice is the same as once."""
    known = _known.pattern()
    return _redact_again(text, known) if len(text) <= _SHORT else _redact(text, known)


def redact_value(value: Any) -> Any:
    """As `redact`, for the text in lists, tuples, sets and mappings too; others are left alone."""
    match value:
        case str():
            return redact(value)
        case bytes():
            return redact(value.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        case Mapping():
            # A value may look like nothing, and its name tell what it is.
            return {key: _named(key, redact_value(item)) for key, item in value.items()}
        case list() | set() | frozenset():
            return type(value)(redact_value(item) for item in value)
        case tuple():
            items = [redact_value(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def redact_error(error: BaseException) -> BaseException:
    """The same exception without secrets, or a `RedactedError` where it cannot be changed.

    Its causes, its context, its notes and the exceptions of a group are treated likewise.
    """
    return _clean(error, set())


@contextmanager
def redacted_errors() -> Iterator[None]:
    """Let no exception leave the block with a secret in it; its class stays where possible."""
    try:
        yield
    except Exception as error:
        clean = redact_error(error)
        if clean is error:
            raise
        raise clean.with_traceback(error.__traceback__) from None


class RedactingFilter(logging.Filter):
    """Takes secrets out of a record: message, arguments, traceback, stack and extra fields.

    The record itself is changed, for all handlers; none needs its parts once it is rendered.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except Exception:
            # logging would print message and arguments as they are when it finds out.
            text = f"{record.msg!r} % {record.args!r}"
        record.msg, record.args = redact(text), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = _formatter.formatException(record.exc_info)
        # With the exception at hand a formatter would write the traceback itself.
        record.exc_info = None
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        for name in record.__dict__.keys() - _STANDARD:
            record.__dict__[name] = _named(name, redact_value(record.__dict__[name]))
        return True


def install() -> None:
    """Put the filter on every handler of this process, and look for its secrets again.

    For processes that did not read `trtforge/logging.yml`: a container that was given the path of
    another machine's, or a script. Cheap enough for the start of every task.
    """
    _known.refresh()
    for handler in logging_handlers():
        if not any(isinstance(known, RedactingFilter) for known in handler.filters):
            handler.addFilter(RedactingFilter())


def logging_handlers() -> list[logging.Handler]:
    """Every handler that a logger of this process has."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    found = {
        id(handler): handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
    }
    return list(found.values())


def _redact(text: str, known: re.Pattern[str] | None) -> str:
    if known is not None:
        text = known.sub(MASK, text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


# The fields of a record are the same for all records of a run, and every handler looks at them.
_SHORT = 200
_redact_again = lru_cache(maxsize=512)(_redact)


_NAMED = re.compile(rf"(?:.*[_-])?{_NAMES}|authorization|cookie", re.IGNORECASE)


def _named(name: object, value: Any) -> Any:
    secret = isinstance(name, str) and isinstance(value, str | bytes) and _NAMED.fullmatch(name)
    if not secret or not value:
        return value
    return MASK if isinstance(value, str) else MASK.encode()


def _clean(error: BaseException, seen: set[int]) -> BaseException:
    if id(error) in seen:
        return error
    seen.add(id(error))
    _change(error)
    if isinstance(error, BaseExceptionGroup):
        parts = [_clean(part, seen) for part in error.exceptions]
        if any(a is not b for a, b in zip(parts, error.exceptions, strict=True)):
            error = error.derive(parts).with_traceback(error.__traceback__)
    for name in ("__cause__", "__context__"):
        inner = getattr(error, name)
        if inner is not None:
            suppressed = error.__suppress_context__
            setattr(error, name, _clean(inner, seen))
            error.__suppress_context__ = suppressed
    return error if _is_clean(error) else _stand_in(error)


def _change(error: BaseException) -> None:
    """Take the secrets out of what an exception's text is made of."""
    args = redact_value(error.args)
    if args != error.args:
        with suppress(Exception):
            error.args = args
    fields: dict[str, Any] = dict(vars(error))
    if isinstance(error, OSError):
        # These are not in the instance's dictionary.
        fields |= {n: getattr(error, n) for n in ("strerror", "filename", "filename2")}
    for name, value in fields.items():
        with suppress(Exception):
            clean = redact_value(value)
            if clean != value:
                setattr(error, name, clean)


def _is_clean(error: BaseException) -> bool:
    try:
        return all(redact(text) == text for text in (str(error), repr(error)))
    except Exception:  # no text, no secret in it
        return True


def _stand_in(error: BaseException) -> RedactedError:
    stand_in = RedactedError(redact(f"{type(error).__name__}: {error}"))
    stand_in.__cause__, stand_in.__context__ = error.__cause__, error.__context__
    stand_in.__suppress_context__ = error.__suppress_context__
    return stand_in
