"""Operating system, memory, disk, and what the environment says of the image."""

import platform
import shutil
from pathlib import Path

from trtforge.doctor.findings import Finding
from trtforge.engines.base import IMAGE_DIGEST_VARIABLE, ImageDigestError, image_digest
from trtforge.engines.host_memory import available_memory_bytes
from trtforge.engines.processor import describe_processor
from trtforge.settings import Settings

_AREA = "machine"
# Compiling and comparing a model of 1 B parameters takes about that much.
_LITTLE_MEMORY_BYTES = 8_000_000_000
_LITTLE_DISK_BYTES = 20_000_000_000


def check_machine(settings: Settings) -> list[Finding]:
    """What the machine has."""
    return [_system(), _memory(), _disk(settings.home), *_image()]


def _system() -> Finding:
    system, arch = platform.system(), platform.machine()
    detail = f"{system} {platform.release()}, {describe_processor()}"
    if (system, arch) == ("Linux", "x86_64"):
        return Finding(_AREA, "system", "ok", detail)
    return Finding(
        _AREA,
        "system",
        "warning",
        detail,
        "trtforge is tested on Linux on x86-64, and TensorRT-LLM's wheels are for that",
    )


def _memory() -> Finding:
    free = available_memory_bytes()
    detail = f"{free / 1e9:.1f} GB can be had"
    if free >= _LITTLE_MEMORY_BYTES:
        return Finding(_AREA, "memory", "ok", detail)
    return Finding(
        _AREA,
        "memory",
        "warning",
        detail,
        "A build holds the model about twice: close what is not needed, or take a larger machine",
    )


def _disk(home: Path) -> Finding:
    there = next(parent for parent in (home, *home.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    detail = f"{free / 1e9:.1f} GB are free at {home}"
    if free >= _LITTLE_DISK_BYTES:
        return Finding(_AREA, "disk", "ok", detail)
    return Finding(
        _AREA,
        "disk",
        "warning",
        detail,
        "A build takes about three times the model: free some, or set TRTFORGE_HOME to a larger "
        "disk",
    )


def _image() -> list[Finding]:
    try:
        digest = image_digest()
    except ImageDigestError as error:
        return [
            Finding(
                _AREA,
                "image digest",
                "missing",
                f"{IMAGE_DIGEST_VARIABLE}: {error.problem}",
                error.remedy,
            )
        ]
    if digest is not None:
        return [Finding(_AREA, "image digest", "ok", digest)]
    if not Path("/.dockerenv").exists() and not Path("/run/.containerenv").exists():
        return []
    return [
        Finding(
            _AREA,
            "image digest",
            "warning",
            f"this is a container, and {IMAGE_DIGEST_VARIABLE} is not set",
            "Set it to the image's digest when the container is started, so that engines of "
            "different images are told apart",
        )
    ]
