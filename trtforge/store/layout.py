"""Where things lie in the bucket: every key of store layout version 1 is built here.

Names that people choose (models, GPUs, aliases) become one path component each, in a way that can
be undone, so that no two names share a key and a listing gives the names back.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from trtforge.errors import InputError

MANIFESTS = "manifests/"
ALIASES = "aliases/"
PINS = "pins/"
GATES = "gates/"
BENCHMARKS = "benchmarks/"
STAGES = "stages/"
LEASES = "leases/"
TIMING = "timing/"
SIGHTINGS = "toolchains/"
BLOBS = "blobs/"
PROBES = "probes/"
ANNOUNCEMENTS = "gc/announced/"
SWEEP = "gc/sweep.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_STAGE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_PLAIN = re.compile(r"[A-Za-z0-9.-]")
_COMPONENT_BYTES = 240
_KEY_BYTES = 1024


class InvalidNameError(InputError):
    """A name, digest or path that cannot become a key in the bucket."""


@dataclass(frozen=True, order=True)
class AliasName:
    """What an alias is for: one per model, GPU and backend, such as `latest` or `prod`."""

    model: str
    gpu: str
    backend: str
    alias: str


def blob_key(sha256: str) -> str:
    return f"blobs/sha256/{sha256[:2]}/{_hex('sha256', sha256)}"


def stage_key(stage: str, key: str) -> str:
    return f"stages/{_stage(stage)}/{_hex('key', key)}.json"


def lease_key(stage: str, key: str) -> str:
    return f"{LEASES}{_stage(stage)}/{_hex('key', key)}.json"


def manifest_key(engine_id: str) -> str:
    return f"{MANIFESTS}{_hex('engine_id', engine_id)}.json"


def engine_id_of(key: str) -> str:
    """The engine id in a key made by `manifest_key`."""
    return _hex("key", key.removeprefix(MANIFESTS).removesuffix(".json"))


def alias_key(name: AliasName) -> str:
    parts = (name.model, name.gpu, name.backend, name.alias)
    return _checked_length(f"{ALIASES}{'/'.join(slug(part) for part in parts)}.json")


def alias_name_of(key: str) -> AliasName:
    """The name in a key made by `alias_key`."""
    parts = key.removeprefix(ALIASES).removesuffix(".json").split("/")
    if len(parts) != 4 or not key.startswith(ALIASES) or not key.endswith(".json"):
        raise _invalid("key", key, "use aliases/<model>/<gpu>/<backend>/<alias>.json")
    return AliasName(*(unslug(part) for part in parts))


def pin_key(engine_id: str) -> str:
    return f"{PINS}{_hex('engine_id', engine_id)}.json"


def gate_key(engine_id: str, name: str) -> str:
    return f"{GATES}{_hex('engine_id', engine_id)}/{slug(name)}.json"


def benchmark_key(engine_id: str, name: str) -> str:
    return f"{BENCHMARKS}{_hex('engine_id', engine_id)}/{slug(name)}.json"


def announcement_key(token: str) -> str:
    return f"{ANNOUNCEMENTS}{slug(token)}.json"


def timing_key(toolchain_key: str) -> str:
    return f"timing/{slug(toolchain_key)}/head.json"


def sighting_key(pool: str, backend: str, variant: str) -> str:
    return _checked_length(f"{SIGHTINGS}{slug(pool)}/{slug(backend)}-{slug(variant)}.json")


def run_key(run_id: str, name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or "\0" in name:
        raise _invalid("name", name, "use a relative path without '..'")
    return _checked_length(f"runs/{slug(run_id)}/{'/'.join(parts)}")


def probe_key(token: str) -> str:
    return f"probes/{slug(token)}.json"


def slug(name: str) -> str:
    """Write any name as one path component; `unslug` reads it back.

    `/` becomes `--`, a space `_`, and what is left that a URL or a shell would trip over `~` with
    two hex digits per UTF-8 byte: `meta-llama/Llama-3.1-8B` is `meta-llama--Llama-3.1-8B`,
    `NVIDIA H200` is `NVIDIA_H200`.

    Raises:
        InvalidNameError: The name is empty, too long, or not valid Unicode.
    """
    try:
        pieces = [_piece(name, i) for i in range(len(name))]
    except UnicodeEncodeError as error:
        raise _invalid("name", name, "use valid Unicode text") from error
    text = "".join(pieces)
    if not text.strip("."):
        text = text.replace(".", "~2E")
    if not text or len(text) > _COMPONENT_BYTES:
        raise _invalid("name", name, f"use 1 to {_COMPONENT_BYTES} letters or digits")
    return text


def unslug(text: str) -> str:
    """The name that `slug` wrote as `text`."""
    plain = text.replace("--", "/").replace("_", " ")
    try:
        raw = re.sub(rb"~([0-9A-F]{2})", lambda m: bytes.fromhex(m[1].decode()), plain.encode())
        return raw.decode()
    except UnicodeError as error:
        raise _invalid("name", text, "it was not written by trtforge") from error


def _piece(name: str, index: int) -> str:
    char = name[index]
    if char == "/":
        return "--"
    if char == " ":
        return "_"
    # A hyphen beside a hyphen or a slash would run together with the `--` of the slash.
    neighbours = name[max(index - 1, 0) : index] + name[index + 1 : index + 2]
    if _PLAIN.fullmatch(char) and not (char == "-" and set(neighbours) & {"-", "/"}):
        return char
    return "".join(f"~{byte:02X}" for byte in char.encode())


def _stage(name: str) -> str:
    if not _STAGE.fullmatch(name):
        raise _invalid("stage", name, "use lower-case letters, digits, '-' and '_'")
    return name


def _hex(field: str, value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise _invalid(field, value, "use the 64 hex digits of a SHA-256 in lower case")
    return value


def _checked_length(key: str) -> str:
    if len(key.encode()) > _KEY_BYTES:
        raise _invalid("key", key, f"use names that give at most {_KEY_BYTES} bytes in all")
    return key


def _invalid(field: str, value: str, advice: str) -> InvalidNameError:
    return InvalidNameError(
        "this cannot be a name in the store",
        field=field,
        value=value,
        remedy=advice[0].upper() + advice[1:],
    )
