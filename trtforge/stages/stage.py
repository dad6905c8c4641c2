"""How every stage runs: look the key up, make on a miss, upload, record.

Of several builders that want the same stage at once, one makes it and the others wait: on one
machine for a file lock beside the scratch directory, between machines for a lease in the bucket
(`trtforge.store.leases`).
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import SecretStr

from trtforge.canonical import digest
from trtforge.errors import BuildError, InputError
from trtforge.files import FileRef
from trtforge.progress import OnProgress, Progress, StageEvent, announce, announcing
from trtforge.stages.kept_logs import keep_logs
from trtforge.stages.run_logs import share_logs
from trtforge.store import StageResult, Store

# Raise a stage's number when the same inputs would give other outputs.
CODE_VERSIONS = {"pull": 1, "convert": 1, "compile": 3, "benchmark": 2, "publish": 1, "gate": 1}

_STALE_S = 24 * 3600.0
_log = logging.getLogger("trtforge")


@dataclass(frozen=True)
class Workshop:
    """Where stages work, and on what terms.

    Attributes:
        store: Where results go.
        work_root: Local directory for scratch space; on the same file system as the store's cache
            files are linked instead of copied.
        python: Interpreter of the toolchain of aoti and of the reference.
        trtllm_python: Interpreter that has TensorRT-LLM, if there is one.
        hub_token: For gated models.
        force: Make everything again, and replace what the store has.
        run_id: Of the flow run, for the people who wait for what it works on.
    """

    store: Store
    work_root: Path
    python: Path
    hub_token: SecretStr | None = None
    force: bool = False
    run_id: str | None = None
    trtllm_python: Path | None = None

    def interpreter(self, backend: str) -> Path | None:
        """The interpreter that drives a backend (a value of `engine.backend`)."""
        return self.trtllm_python if backend == "trtllm" else self.python


@dataclass(frozen=True)
class Made:
    """What a stage produced: `files` below `directory`, and facts (JSON) about them."""

    directory: Path
    files: Sequence[FileRef]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageOutcome:
    """How a stage ended.

    Attributes:
        result: Its record.
        hit: Whether it was found rather than made.
        seconds: How long finding or making it took now.
        detail: One line about the result, for a person.
    """

    result: StageResult
    hit: bool
    seconds: float
    detail: str


Make = Callable[[Path, OnProgress], Made]


def stage_key(stage: str, inputs: Mapping[str, Any]) -> str:
    """Digest of all that decides the outputs of a stage."""
    return digest({"stage": stage, "code": CODE_VERSIONS[stage], **inputs})


def run_stage(
    shop: Workshop,
    stage: str,
    inputs: Mapping[str, Any],
    make: Make,
    describe: Callable[[StageResult], str],
    *,
    resumable: bool = False,
) -> StageOutcome:
    """Find or make the result of one stage, or wait for the builder that is making it.

    Args:
        inputs: JSON; everything that decides the outputs.
        make: Called on a miss with an empty scratch directory, and a callback for progress.
        describe: One line about the result, for a person.
        resumable: `make` can go on from what an earlier call left: after a failed service, a
            cancellation or a kill the scratch directory stays, and the next call gets it as it is.

    Raises:
        Whatever `make` and the store raise; then nothing is recorded.
    """
    key = stage_key(stage, inputs)
    started = time.monotonic()
    announce(StageEvent(stage, "started"))
    try:
        found = _find(shop, stage, key)
        result, hit = (found, True) if found else _make(shop, stage, key, inputs, make, resumable)
        detail = describe(result)
    except BaseException as error:
        announce(StageEvent(stage, "failed", str(error), seconds=time.monotonic() - started))
        raise
    outcome = StageOutcome(result, hit, time.monotonic() - started, detail)
    kind: Literal["hit", "done"] = "hit" if outcome.hit else "done"
    announce(StageEvent(stage, kind, detail, seconds=outcome.seconds))
    return outcome


def _find(shop: Workshop, stage: str, key: str) -> StageResult | None:
    return None if shop.force else shop.store.get_stage(stage, key)


def _make(
    shop: Workshop,
    stage: str,
    key: str,
    inputs: Mapping[str, Any],
    make: Make,
    resumable: bool,
) -> tuple[StageResult, bool]:
    """The result, and whether another run had made it when this one's turn came."""
    shop.work_root.mkdir(parents=True, exist_ok=True)
    _sweep(shop.work_root)
    scratch = shop.work_root / f"{stage}-{key[:16]}"
    on_progress = announcing(stage)

    def on_wait(line: str) -> None:
        on_progress(Progress(line, 0, None, "steps"))

    def find() -> StageResult | None:
        return _find(shop, stage, key)

    with (
        _locked(scratch, lambda: on_wait(f"waiting for a build of this home to finish {stage}")),
        shop.store.leases.claimed(stage, key, find, on_wait=on_wait, run_id=shop.run_id) as found,
    ):
        if found:
            return found, True
        started = time.monotonic()
        if not resumable:
            shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(exist_ok=True)
        keep = False
        try:
            made = make(scratch, on_progress)
            for ref in made.files:
                shop.store.add_to_cache(made.directory / ref.path, ref)
            sent = shop.store.put_files(made.directory, made.files, on_progress)
            logs = share_logs(
                shop.store, shop.run_id, stage, sorted(scratch.glob("*.log")), failed=False
            )
            result = StageResult(
                stage=stage,
                key=key,
                inputs=dict(inputs),
                outputs=tuple(made.files),
                facts={**made.facts, "uploaded_bytes": sent.uploaded_bytes, "logs": list(logs)},
                seconds=time.monotonic() - started,
            )
            return shop.store.put_stage(result, replace=shop.force), False
        except (InputError, BuildError) as error:
            kept = keep_logs(scratch, error)
            share_logs(shop.store, shop.run_id, stage, kept, failed=True)
            raise
        except BaseException:
            keep = resumable
            raise
        finally:
            if not keep:
                shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(scratch: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the scratch directory against the other builds of this machine."""
    lock = FileLock(f"{scratch}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sweep(work_root: Path) -> None:
    """Remove what killed runs left: scratch directories a day old that nobody holds the lock of."""
    for scratch in work_root.iterdir():
        # Other runs remove theirs meanwhile, and come to this with the same intent.
        with suppress(FileNotFoundError, Timeout):
            if not scratch.is_dir() or time.time() - scratch.stat().st_mtime < _STALE_S:
                continue
            with FileLock(f"{scratch}.lock", timeout=0):
                shutil.rmtree(scratch, ignore_errors=True)
                _log.info("removed the leftovers of an earlier run: %s", scratch.name)
