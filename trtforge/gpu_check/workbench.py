"""What the checks share: the environment, what earlier checks made, and the report they fill."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trtforge.checkpoint.target import Target
from trtforge.engines.base import BuildOutcome
from trtforge.engines.trtllm.probe import Probe
from trtforge.engines.trtllm.versions import Release
from trtforge.gpu_check.report import Check, Report, Status
from trtforge.spec import EngineSpec

LIMITS = {"max_batch_size": 4, "max_input_len": 384, "max_seq_len": 512, "max_num_tokens": 1024}
_SHOWN = 60
_Thing = TypeVar("_Thing")

OnCheck = Callable[[Check], None]


class NotRunError(Exception):
    """What a check needs is not there; the text says what."""


class BeliefError(Exception):
    """What trtforge believes is not so; the text says what is."""


def require(true: object, otherwise: str) -> None:
    """Raises:
    BeliefError: It is not true.
    """
    if not true:
        raise BeliefError(otherwise)


@dataclass
class Workbench:
    """See `trtforge.gpu_check.examination.examine` for the first five; the rest is filled in."""

    python: Path | None
    release: Release
    model_dir: Path
    reference_python: Path
    work_dir: Path
    report: Report
    evidence: list[str] = field(default_factory=list)
    probe: Probe | None = None
    api: dict[str, Any] | None = None
    checkpoint: Path | None = None
    engine: Path | None = None
    first: BuildOutcome | None = None
    log: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    reference_jobs: list[dict[str, Any]] = field(default_factory=list)
    load: dict[str, Any] | None = None
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def spec(self) -> EngineSpec:
        return EngineSpec.model_validate(
            {"backend": "trtllm", "version": self.release.version, **LIMITS}
        )

    @property
    def target(self) -> Target:
        return Target(version=self.release.checkpoint_target)

    def found(self) -> Probe:
        return self.need(self.probe, "the toolchain was not found")

    def interpreter(self) -> Path:
        self.found()
        return self.need(self.python, "no interpreter is set")

    def need(self, value: _Thing | None, otherwise: str) -> _Thing:
        """Raises:
        NotRunError: It is not there.
        """
        if value is None:
            raise NotRunError(otherwise)
        return value

    def measured(self, name: str, value: str) -> None:
        self.report.numbers[name] = value

    def scratch(self, name: str) -> Path:
        directory = self.work_dir / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    @contextmanager
    def recorded(self, name: str, on_check: OnCheck) -> Iterator[Callable[[str], None]]:
        """Whatever happens in the block becomes a check of the report."""
        started = time.monotonic()
        status: Status = "PASS"
        details: list[str] = []
        self.evidence = []
        try:
            yield details.append
        except NotRunError as reason:
            status, details = "NOT RUN", [str(reason)]
        except BeliefError as found:
            status, details = "FAIL", [str(found)]
        except Exception as error:
            # A belief that is wrong in a way nobody thought of is what this is for.
            status, details = "FAIL", [f"{type(error).__name__}: {error}"]
        seconds = time.monotonic() - started
        check = Check(name, status, " ".join(details), seconds, tuple(self.evidence[:_SHOWN]))
        self.report.checks.append(check)
        on_check(check)
