"""The contract of a backend: what it is given, what it hands back, what decides validity."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from trtforge.canonical import digest
from trtforge.errors import InputError
from trtforge.files import FileRef
from trtforge.progress import OnProgress
from trtforge.spec import EngineSpec

OnLog = Callable[[str], None]

IMAGE_DIGEST_VARIABLE = "TRTFORGE_IMAGE_DIGEST"
_IMAGE_DIGEST = re.compile(r"(?:.*@)?(sha256:[0-9a-f]{64})")


class ImageDigestError(InputError):
    """TRTFORGE_IMAGE_DIGEST is set to something else than a digest."""


@dataclass(frozen=True)
class Toolchain:
    """Everything that decides what a build gives, and where it is valid.

    Three questions are asked of it, and each looks at other fields:

    * Would this build give that engine? The keys of stages contain all fields (`to_json`).
    * Can that timing cache be used? `key` contains all fields but the image digest.
    * Does that engine run here? `trtforge.store.resolve` compares field by field; a driver, for
      one, may be newer there.

    Attributes:
        backend_version: Of TensorRT-LLM, or of PyTorch with its local part (`2.13.0+cu130`).
        cuda_version: What the backend was built with; None when it compiles for the CPU.
        cpu: Architecture and vector units, as `trtforge.engines.processor` writes them.
        compiler: Of host code.
        image_digest: `sha256:…` of the container image, see `image_digest`.
    """

    backend: str
    backend_version: str
    tensorrt_version: str | None
    cuda_version: str | None
    driver_version: str | None
    gpu_name: str | None
    compute_capability: str | None
    cpu: str
    compiler: str
    os: str
    arch: str
    image_digest: str | None

    def key(self) -> str:
        """Digest of what decides whether a timing cache can be used: the key of timing caches.

        That is all fields but the image digest. Measured tactics belong to a GPU (name and compute
        capability), TensorRT, CUDA and driver version; compiled graphs also to a compiler and the
        CPU. An image that was built again, with the same versions in it, changes none of these.
        """
        return digest({k: v for k, v in asdict(self).items() if k != "image_digest"})

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.gpu_name else "cpu"

    @property
    def device_name(self) -> str:
        """What an alias is filed under: the GPU's name, or `cpu` and its vector units."""
        return self.gpu_name or f"cpu-{self.cpu.replace(' ', '-').replace('_', '-')}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Toolchain":
        """Read what `to_json` gave, or another version's: unknown fields are passed over, absent
        ones are empty (the text that is always there) or None."""
        required = {f.name: "" for f in fields(cls) if f.type is str}
        return cls(**{f.name: data.get(f.name, required.get(f.name)) for f in fields(cls)})


def image_digest() -> str | None:
    """The digest of the container image that this process runs in, where the environment says it.

    An image cannot know its own digest: whoever starts the container sets TRTFORGE_IMAGE_DIGEST, to
    `sha256:…` or to the reference it started (`registry/name@sha256:…`).

    Raises:
        ImageDigestError: The variable holds something else, such as a tag.
    """
    value = os.environ.get(IMAGE_DIGEST_VARIABLE, "").strip()
    if not value:
        return None
    match = _IMAGE_DIGEST.fullmatch(value)
    if match is None:
        raise ImageDigestError(
            "this is not the digest of an image",
            field=IMAGE_DIGEST_VARIABLE,
            value=value,
            remedy="Set it to sha256: and 64 hex digits, or to name@sha256:…; a tag may mean "
            "another image tomorrow",
        )
    return match[1]


@dataclass(frozen=True)
class BuildOutcome:
    """What a build gave.

    Attributes:
        files: The engine directory's files.
        effective: The configuration in effect, read from the engine, not from the request.
        cache: `cold` (nothing reused), `partly`, or `warm` (everything reused).
        steps: What was compiled: name, whether it came from the cache, seconds.
        seconds: Wall time of the build driver.
        peak_rss_bytes: Largest resident set of the driver or of one of its children.
        warnings: What a person should know, e.g. that the cache was unreadable.
        peak_gpu_bytes: Most memory in use on one GPU meanwhile, by everybody; None: not known.
        command: What was run, where that is one command, with paths relative to its directory.
    """

    files: tuple[FileRef, ...]
    effective: dict[str, Any]
    cache: Literal["cold", "partly", "warm"]
    steps: tuple[dict[str, Any], ...]
    seconds: float
    peak_rss_bytes: int
    warnings: tuple[str, ...]
    peak_gpu_bytes: int | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunOutcome:
    """What a run driver gave: `outputs` are described in `trtforge.engines.jobs`."""

    load_s: float
    outputs: tuple[dict[str, Any], ...]
    peak_rss_bytes: int
    versions: dict[str, str]


class CacheFormat(Protocol):
    """What a backend knows of the format of its `model.cache`."""

    def count(self, path: Path) -> int | None:
        """How many entries (graphs, tactics) are in a file; None when it cannot be read."""
        ...

    def merge(self, mine: Path, theirs: Path, merged: Path) -> str:
        """Write `merged` with the entries of both; what is unreadable counts as empty.

        Returns:
            What was wrong with one of them, for people; empty when nothing was.
        """
        ...


class Backend(Protocol):
    """One way to compile and run engines; its work is done by drivers in its own toolchain."""

    name: str
    cache_format: CacheFormat | None
    """How to count and merge its `model.cache` files; None where only the toolchain can."""

    def check(self, engine: EngineSpec) -> None:
        """Refuse backend options that do not exist or have a wrong type or value.

        Raises:
            EngineOptionError: naming the option.
        """
        ...

    def probe(self, engine: EngineSpec, work_dir: Path) -> Toolchain:
        """What would compile, and where it would be valid. Takes well under a second."""
        ...

    def build(
        self,
        engine: EngineSpec,
        *,
        toolchain: Toolchain,
        checkpoint_dir: Path,
        engine_dir: Path,
        cache_in: Path | None,
        cache_out: Path,
        work_dir: Path,
        on_progress: OnProgress,
        on_log: OnLog,
    ) -> BuildOutcome:
        """Compile. `engine_dir` must not exist; it is complete when this returns.

        Raises:
            BuildError: one of the driver errors of `trtforge.engines.driver_process`, or
                EngineIncompleteError.
        """
        ...

    def run(
        self,
        engine: EngineSpec,
        *,
        engine_dir: Path,
        jobs: Sequence[dict[str, Any]],
        logits_dir: Path,
        work_dir: Path,
        on_progress: OnProgress,
        on_log: OnLog,
    ) -> RunOutcome:
        """Perform jobs (`trtforge.engines.jobs`) on an engine."""
        ...

    def bench(
        self,
        engine: EngineSpec,
        *,
        engine_dir: Path,
        model_dir: Path,
        model_name: str,
        jobs: Sequence[dict[str, Any]],
        out_dir: Path,
        work_dir: Path,
        on_progress: OnProgress,
        on_log: OnLog,
    ) -> dict[str, Any] | None:
        """Measure the requests of `jobs` with the toolchain's own benchmark; None if it has none.

        Its report stays in `out_dir`, beside ours; returned is what to keep as facts.

        Raises:
            BuildError: It could not measure.
        """
        ...
