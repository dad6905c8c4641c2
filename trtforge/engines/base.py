"""The contract of a backend: what it is given, what it hands back, what decides validity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from trtforge.canonical import digest
from trtforge.files import FileRef
from trtforge.progress import OnProgress
from trtforge.spec import EngineSpec

OnLog = Callable[[str], None]


@dataclass(frozen=True)
class Toolchain:
    """Everything that decides whether an engine is valid on a machine."""

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
        """Digest of all fields: the key of timing caches."""
        return digest(asdict(self))

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
        return cls(**{f.name: data[f.name] for f in fields(cls)})


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
    """

    files: tuple[FileRef, ...]
    effective: dict[str, Any]
    cache: Literal["cold", "partly", "warm"]
    steps: tuple[dict[str, Any], ...]
    seconds: float
    peak_rss_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class RunOutcome:
    """What a run driver gave: `outputs` are described in `trtforge.engines.jobs`."""

    load_s: float
    outputs: tuple[dict[str, Any], ...]
    peak_rss_bytes: int
    versions: dict[str, str]


class Backend(Protocol):
    """One way to compile and run engines; its work is done by drivers in its own toolchain."""

    name: str

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
