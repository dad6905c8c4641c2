"""The job template of a pool: the one in its file, with what the pool changes in it."""

import copy
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from prefect.utilities.schema_tools.validation import validate

from deployments.errors import FileInvalidError, JobVariableError, SecretInFileError
from deployments.files import Pool
from trtforge.redaction import redact
from trtforge.settings import load_settings
from trtforge.spec import did_you_mean

_CHANGEABLE = ("default", "pattern", "enum", "minimum", "maximum", "title", "description")
_PLACEHOLDER = re.compile(r"{{\s*([\w-]+)\s*}}")
_SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)|ACCESS_KEY|API_KEY|AUTH_STRING",
    re.IGNORECASE,
)
_ONLY_NAMED = ("_ID", "_FILE", "_PATH", "_URL")
_ACCESS_KEY_ID = re.compile(r"(?:^|_)ACCESS_KEY_ID$")
_AWS_KEY_ID = re.compile(r"A[KS]IA[A-Z0-9]{16}")


def job_template(pool: Pool, template: Mapping[str, Any]) -> dict[str, Any]:
    """The base job template of `pool`.

    Raises:
        JobVariableError: The pool changes what the template does not have, or to what cannot be.
        SecretInFileError: A default of the environment looks like a secret.
        FileInvalidError: The template asks for a variable that it does not declare.
    """
    made = copy.deepcopy(dict(template))
    try:
        configuration, properties = made["job_configuration"], made["variables"]["properties"]
    except (KeyError, TypeError) as error:
        raise FileInvalidError(
            "this is no job template",
            field=f"pools.yaml: {pool.name}.template",
            value=pool.template,
            remedy="Begin from one of trtforge's own in deployments/pools",
        ) from error
    for name, change in pool.variables.items():
        where = f"pools.yaml: {pool.name}.variables.{name}"
        if name not in properties:
            raise _unknown(where, name, "variable", properties)
        for key in change:
            if key not in _CHANGEABLE:
                raise _unknown(where, key, "property", dict.fromkeys(_CHANGEABLE))
        properties[name].update(change)
        if "default" in change:
            values = {name: change["default"]}
            if name == "env":
                refuse_secrets(f"{where}.default", change["default"])
            _check(f"pools.yaml: {pool.name}.variables", values, made["variables"])
    for name, value in pool.fixed.items():
        if name not in configuration:
            raise _unknown(f"pools.yaml: {pool.name}.fixed", name, "entry", configuration)
        configuration[name] = value
    for name in _PLACEHOLDER.findall(json.dumps(configuration)):
        if name not in properties:
            raise FileInvalidError(
                "the job template asks for a variable that it does not declare",
                field=f"pools/{pool.template}: job_configuration",
                value=name,
                remedy=did_you_mean(name, sorted(properties)),
            )
    if "env" in pool.fixed:
        refuse_secrets(f"pools.yaml: {pool.name}.fixed.env", pool.fixed["env"])
    return made


def check_job_variables(
    where: str, variables: Mapping[str, Any], template: Mapping[str, Any]
) -> None:
    """Refuse what the server would pass over (unknown names) or refuse (wrong values).

    Raises:
        JobVariableError: With `where` and the name.
        SecretInFileError: An environment variable looks like a secret.
    """
    schema = template["variables"]
    for name in variables:
        if name not in schema["properties"]:
            raise _unknown(where, name, "job variable", schema["properties"])
    # First, as what follows quotes values.
    refuse_secrets(f"{where}.env", variables.get("env"))
    _check(where, variables, schema)


def refuse_secrets(where: str, environment: object) -> None:
    """Refuse what looks like a secret, by its name or itself; names of files and blocks are fine.

    So is the id of an access key: it opens nothing without the secret key, and a pool that has its
    own storage has to name it.

    Args:
        where: File and field.
        environment: Values by name; anything else is not looked at.

    Raises:
        SecretInFileError: With the name, and never the value.
    """
    if not isinstance(environment, Mapping):
        return
    for name, value in environment.items():
        text = "" if value is None else str(value)
        named = _SECRET.search(str(name)) and not str(name).upper().endswith(_ONLY_NAMED)
        if not text or "{{ prefect.blocks." in text or not (named or redact(text) != text):
            continue
        if _is_key_id(str(name), text):
            continue
        raise SecretInFileError(
            "this looks like a secret, and everybody who may read the server could read it",
            field=where,
            value=name,
            remedy="Set it in the worker's own environment, or give a file: a variable that ends "
            "in _FILE (docs/gpu-pools.md)",
        )


def _is_key_id(name: str, value: str) -> bool:
    """Whether that is the id of an access key, and not a secret put in its place."""
    if not _ACCESS_KEY_ID.search(name):
        return False
    own = load_settings().s3_access_key_id
    known = {os.environ.get(name), own.get_secret_value() if own else None}
    # Ids are masked in logs, so that `redact` cannot tell them from secrets.
    return value in known or _AWS_KEY_ID.fullmatch(value) is not None


def _check(where: str, values: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    errors = validate(dict(values), dict(schema), raise_on_error=False, ignore_required=True)
    if errors:
        first = errors[0]
        raise JobVariableError(
            first.message,
            field=".".join([where, *(str(part) for part in first.absolute_path)]),
            value=first.instance,
            remedy="Correct it; the job template of the pool says what it takes",
        )


def _unknown(where: str, name: str, what: str, known: Mapping[str, Any]) -> JobVariableError:
    return JobVariableError(
        f"the job template has no such {what}",
        field=where,
        value=name,
        remedy=did_you_mean(name, sorted(known)),
    )
