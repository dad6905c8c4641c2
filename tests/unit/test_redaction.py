"""No secret of this process in what it logs or raises: patterns, known values, exceptions."""

import base64
import json
import logging
import os
import string
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import trtforge
from trtforge import redaction
from trtforge.errors import InputError, ServiceError
from trtforge.known_secrets import Known
from trtforge.redaction import (
    MASK,
    RedactedError,
    RedactingFilter,
    redact,
    redact_error,
    redact_value,
    redacted_errors,
    remember,
)

HF_TOKEN = "hf_" + "QrStUvWxYzAbCdEfGhIjKlMnOpQrStUvWx"
ALPHABET = string.ascii_letters + string.digits
tokens = st.text(ALPHABET, min_size=30, max_size=40).map(lambda text: f"hf_{text}")
secrets = st.text(ALPHABET + "+/=%._~-", min_size=12, max_size=60).filter(
    lambda text: text.strip(string.punctuation) == text
)
# What surrounds a secret in a log: anything, as long as it does not go on with it.
edges = st.text(st.characters(codec="utf-8"), max_size=30).map(lambda text: f" {text} ")


@pytest.fixture(autouse=True, scope="module")
def _forgotten() -> Iterator[None]:
    """What these tests remember is not hidden in the output of others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_known", Known())
        yield


class NeedsKeysError(ServiceError):
    """One with the project's own constructor."""


@settings(deadline=None)
@given(before=edges, token=tokens, after=edges)
def test_a_hub_token_is_found_in_any_text(before: str, token: str, after: str) -> None:
    assert token not in redact(before + token + after)


@settings(deadline=None)
@given(before=edges, secret=secrets, after=edges)
def test_a_remembered_value_is_found_in_any_text_and_spelling(
    before: str, secret: str, after: str
) -> None:
    remember(secret)
    for spelled in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1]):
        assert spelled not in redact(before + spelled + after)


@pytest.mark.parametrize(
    "line",
    [
        "https://s3.example/b/k?X-Amz-Credential={}&X-Amz-Date=20260101T000000Z",
        "https://s3.example/b/k?partNumber=1&X-Amz-Signature={}",
        "https://s3.example/b/k?x-amz-security-token={}&n=1",
        "https://cdn.example/x?Policy=e&Signature={}&Key-Pair-Id=K",
        "to https%3A%2F%2Fs3.example%2Fk%3FX-Amz-Signature%3D{}%26n%3D1",
        "Authorization: Bearer {}",
        "authorization: AWS4-HMAC-SHA256 Credential=A/2026, SignedHeaders=host, Signature={}",
        "curl -H 'Authorization: Basic {}' https://x/y",
        "headers: {{'Authorization': 'Basic {}', 'Accept': '*/*'}}",
        "[(b'Host', b'x'), (b'Authorization', b'Basic {}')]",
        '{{\\"Authorization\\": \\"Basic {}\\"}}',
        "sent Bearer {} to the Hub",
        "Cookie: session={}",
        "postgresql+asyncpg://trtforge:{}@127.0.0.1:5432/postgres",
        "http://{}@proxy.example:3128",
        "AWS_SECRET_ACCESS_KEY={}",
        "aws_session_token = {}",
        '{{"secret_access_key": "{}"}}',
        "PREFECT_API_AUTH_STRING='{}'",
        "password: {}",
        "https://hooks.slack.com/services/T0/B0/{}",
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
    ],
)
@settings(deadline=None)
@given(secret=st.text(ALPHABET, min_size=12, max_size=64).map(lambda text: f"{text}7"))
def test_a_secret_in_its_usual_place_is_hidden(line: str, secret: str) -> None:
    hidden = redact(line.format(secret))
    assert secret not in hidden
    assert MASK in hidden


@settings(deadline=None)
@given(st.text(), st.sampled_from(["", "Authorization: ", "password=", "https://a:", HF_TOKEN]))
def test_twice_is_the_same_as_once(text: str, start: str) -> None:
    once = redact(start + text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "line",
    [
        "max_num_tokens=1024, 80.2 output tokens/s, eos_token: '</s>', token 17 is 4 instead of 5",
        "http://127.0.0.1:8333/bucket/model@main",
        "hf://org/name@0123456789abcdef0123456789abcdef01234567",
        "hf://gpt2@main s3://bucket/prefix",
        "stages/compile/5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8.json",
        "hf_hub_download: retrying; password authentication failed for user trtforge",
        "compile: done in 12.3 s (compiled cold in 11.9 s)",
        "Secret block hf-token is not there",
    ],
)
def test_ordinary_lines_stay_as_they_are(line: str) -> None:
    assert redact(line) == line


def test_the_environment_and_the_stack_tell_what_is_secret(tmp_path: Path) -> None:
    """Variables named like secrets, passwords in URLs, and the embedded stack's credentials."""
    (tmp_path / "credentials.json").write_text(
        json.dumps(
            {
                "ports": {},
                "s3": {
                    "endpoint_url": "http://127.0.0.1:1",
                    "bucket": "b",
                    "region": "us-east-1",
                    "access_key_id": "ordinary-looking-id",
                    "secret_access_key": "ordinary looking key",
                },
                "postgres": {"user": "u", "database": "d", "password": "ordinary-postgres"},
                "prefect_api_url": "http://127.0.0.1:1/api",
            }
        )
    )
    environment = {
        "PATH": "/usr/bin",
        "TRTFORGE_HOME": str(tmp_path),
        "MY_TOKEN": "something-of-mine",
        "TOKENIZERS_PARALLELISM": "not-a-secret-at-all",
        "MY_TOKEN_FILE": "/run/secrets/my-token",
        "PREFECT_API_AUTH_STRING": "trtforge:basic-auth-word",
        "DATABASE": "postgresql://me:pass%2Fword%21@db/x",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=abc-of-the-collector",
    }
    basic = base64.b64encode(b"trtforge:basic-auth-word").decode()
    hidden = [
        "ordinary looking key",
        "ordinary-postgres",
        "something-of-mine",
        "basic-auth-word",
        basic,
        "pass/word!",
        "abc-of-the-collector",
    ]
    shown = ["not-a-secret-at-all", "/run/secrets/my-token"]
    script = (
        "import json, sys; from trtforge.redaction import redact\n"
        "print(json.dumps([redact(text) for text in json.loads(sys.argv[1])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps([*hidden, *shown])],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [*[MASK] * len(hidden), *shown]


def test_structures_are_searched_and_keep_their_shape() -> None:
    value = {
        "a": [HF_TOKEN, 1, None],
        "b": (f"x {HF_TOKEN}",),
        "api_key": "short",
        "n": {"k": b"x"},
    }
    assert redact_value(value) == {
        "a": [MASK, 1, None],
        "b": (f"x {MASK}",),
        "api_key": MASK,
        "n": {"k": b"x"},
    }


@pytest.fixture
def logged() -> Iterator[Callable[..., str]]:
    """What a handler with the filter writes of one record."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactingFilter())
    logger = logging.getLogger("test_redaction")
    logger.propagate = False
    logger.addHandler(handler)

    def log(*args: object, **keywords: object) -> str:
        logger.error(*args, **keywords)  # type: ignore[arg-type]
        return stream.getvalue()

    yield log
    logger.removeHandler(handler)


def test_message_and_arguments_of_a_record_are_cleaned(logged: Callable[..., str]) -> None:
    text = logged("got %s from %r", HF_TOKEN, {"url": f"https://x:{HF_TOKEN}@y"})
    assert HF_TOKEN not in text
    assert "got *** from" in text


def test_a_record_that_cannot_be_formatted_leaks_nothing(
    logged: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert HF_TOKEN not in logged("%d and %s", HF_TOKEN)
    assert HF_TOKEN not in capsys.readouterr().err


def test_a_traceback_with_causes_and_groups_is_cleaned(logged: Callable[..., str]) -> None:
    try:
        try:
            try:
                raise ValueError(f"https://b.s3.example/k?X-Amz-Signature={'ab' * 32}")
            except ValueError as inner:
                raise KeyError(HF_TOKEN) from inner
        except KeyError as outer:
            raise ExceptionGroup(f"all of {HF_TOKEN}", [outer, OSError(2, "no", HF_TOKEN)])  # noqa: B904
    except ExceptionGroup:
        text = logged("failed", exc_info=True, stack_info=True, extra={"about": HF_TOKEN})
    assert "Traceback" in text
    assert "ExceptionGroup" in text
    assert HF_TOKEN not in text
    assert "ab" * 32 not in text


def _chain() -> BaseException:
    error = RuntimeError("outer")
    error.__cause__ = ValueError(HF_TOKEN)
    error.__context__ = KeyError(HF_TOKEN)
    return error


def _noted() -> BaseException:
    error = RuntimeError("x")
    error.add_note(f"with {HF_TOKEN}")
    return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"bad {HF_TOKEN}"),
        KeyError(HF_TOKEN),
        OSError(2, "No such file", f"/x/{HF_TOKEN}"),
        subprocess.CalledProcessError(1, ["curl", "-H", f"Authorization: {HF_TOKEN}"], HF_TOKEN),
        NeedsKeysError(
            f"no {HF_TOKEN}", remedy=f"Use {HF_TOKEN}", field="a", value={"b": HF_TOKEN}
        ),
        _chain(),
        _noted(),
        ExceptionGroup("several", [ValueError(HF_TOKEN)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_leaves_with_its_class_and_without_its_secrets(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, redacted_errors():
        raise error
    assert raised.value is error
    told = "".join(traceback.format_exception(type(error), error, None))
    assert HF_TOKEN not in told + repr(error) + repr(vars(error))


def test_the_projects_own_errors_keep_their_parts() -> None:
    with pytest.raises(InputError) as raised, redacted_errors():
        raise InputError(
            "wrong", remedy="Try", field="model.source", value=f"hf://x?token={HF_TOKEN}"
        )
    assert str(raised.value) == "model.source = 'hf://x?token=***': wrong. Try"


def test_an_exception_that_cannot_be_changed_is_replaced() -> None:
    class StubbornError(Exception):
        def __str__(self) -> str:
            return f"always {HF_TOKEN}"

    with (
        pytest.raises(RedactedError, match=r"StubbornError: always \*\*\*") as raised,
        redacted_errors(),
    ):
        raise StubbornError
    assert traceback.extract_tb(raised.value.__traceback__)[-1].line == "raise StubbornError"
    # As the cause of another, too.
    outer = ValueError("x")
    outer.__cause__ = StubbornError()
    assert redact_error(outer) is outer
    assert isinstance(outer.__cause__, RedactedError)
    grouped = redact_error(ExceptionGroup("several", [StubbornError(), ValueError("fine")]))
    assert isinstance(grouped, ExceptionGroup)
    assert [type(e).__name__ for e in grouped.exceptions] == ["RedactedError", "ValueError"]


def test_cancellation_passes_untouched() -> None:
    with pytest.raises(KeyboardInterrupt), redacted_errors():
        raise KeyboardInterrupt


def test_the_logging_configuration_is_prefects_with_two_filters() -> None:
    from prefect.logging.configuration import DEFAULT_LOGGING_SETTINGS_PATH

    stock = yaml.safe_load(DEFAULT_LOGGING_SETTINGS_PATH.read_text())
    ours = yaml.safe_load((Path(trtforge.__file__).parent / "logging.yml").read_text())
    assert set(ours.pop("filters")) == {"redact", "run"}
    for handler in ours["handlers"].values():
        assert handler.pop("filters") == ["redact", "run"]
    ours["formatters"]["standard"]["()"] = stock["formatters"]["standard"]["()"]
    assert ours == stock


BARE = """
from prefect import flow  # which sets logging up
from trtforge import run_log
from trtforge.redaction import RedactingFilter, logging_handlers

before = [h for h in logging_handlers() if any(isinstance(f, RedactingFilter) for f in h.filters)]
run_log.install()
run_log.install()
counts = {sum(isinstance(f, RedactingFilter) for f in h.filters) for h in logging_handlers()}
print(len(before), counts, len(logging_handlers()) > 2)
"""


@pytest.mark.parametrize("path", ["/nowhere/logging.yml", ""], ids=["missing file", "our file"])
def test_a_process_without_the_configuration_gets_the_filter_on_every_handler(path: str) -> None:
    """As in a container that was given the path of the machine its worker runs on."""
    ours = Path(trtforge.__file__).parent / "logging.yml"
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        env={**os.environ, "PREFECT_LOGGING_SETTINGS_PATH": path or str(ours)},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = done.stdout.split(maxsplit=1)
    assert (int(before) > 2) is not bool(path)
    assert after == "{1} True\n"
