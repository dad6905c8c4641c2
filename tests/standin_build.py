"""Building with the stand-in toolchain: one place to build in, and who is left of it."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standin.environment import STANDIN_PYTHON

from trtforge.checkpoint import Target, convert
from trtforge.engines.base import BuildOutcome, Toolchain
from trtforge.engines.trtllm.backend import TrtllmBackend
from trtforge.progress import Progress
from trtforge.spec import EngineSpec

FIXTURES = Path(__file__).parent / "fixtures" / "hf-models"
SPEC = EngineSpec(backend="trtllm", max_batch_size=4, max_num_tokens=1024)
TOOLCHAIN = Toolchain(
    backend="trtllm",
    backend_version="1.2.1+standin",
    tensorrt_version="10.14.1.48",
    cuda_version="13.1",
    driver_version="590.0",
    gpu_name="Stand-in GPU",
    compute_capability="9.0",
    cpu="x86_64",
    compiler="",
    os="linux",
    arch="x86_64",
    image_digest=None,
)
_made: dict[Path, Path] = {}


def with_options(**options: Any) -> EngineSpec:
    return SPEC.model_copy(update={"options": options})


def checkpoint(directory: Path, *, tp: int = 1, pp: int = 1, version: str = "1.2") -> Path:
    """A tiny Llama's checkpoint below `directory`, converted once for each way to split it."""
    path = directory / f"checkpoint-{version}-tp{tp}-pp{pp}"
    if path not in _made:
        target = Target(version=version, dtype="bfloat16", tp=tp, pp=pp)
        convert(FIXTURES / "llama31", path, target)
        _made[path] = path
    return path


@dataclass
class Place:
    """Where one build works, and what is heard of it."""

    work_dir: Path
    engine_dir: Path
    cache: Path
    checkpoint: Path
    log: list[str] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)

    @property
    def log_file(self) -> Path:
        return self.work_dir / "build_driver.log"

    def build(
        self,
        spec: EngineSpec = SPEC,
        *,
        python: Path | None = STANDIN_PYTHON,
        timeout_s: float = 60.0,
        **how: Any,
    ) -> BuildOutcome:
        """Build here; `how` replaces arguments of `TrtllmBackend.build`."""
        usual: dict[str, Any] = {
            "toolchain": TOOLCHAIN,
            "checkpoint_dir": self.checkpoint,
            "engine_dir": self.engine_dir,
            "cache_in": None,
            "cache_out": self.cache,
            "work_dir": self.work_dir,
            "on_progress": self.progress.append,
            "on_log": self.log.append,
        }
        return TrtllmBackend(python, build_timeout_s=timeout_s).build(spec, **(usual | how))

    def engine_config(self) -> Any:
        return json.loads((self.engine_dir / "config.json").read_text())


def processes_of(mark: Path) -> list[int]:
    """The processes, except this one, that have `TRTFORGE_STANDIN_MARK=<mark>`."""
    entry = f"TRTFORGE_STANDIN_MARK={mark}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if entry in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]
