"""One benchmark run: the sweep on both sides, the hardware limit, and the files that tell of it."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtforge.benchmark.collect import collect
from trtforge.benchmark.gpu_watch import GpuUse, GpuWatch
from trtforge.benchmark.limits import DeviceRates, ModelShape, measure_rates
from trtforge.benchmark.metrics import measure
from trtforge.benchmark.report import (
    BOUNDARY,
    all_formulas,
    limit_facts,
    order_of,
    terms_of,
    workload_facts,
)
from trtforge.benchmark.sample import Sample, of_cell
from trtforge.benchmark.summary import Summary, summarise
from trtforge.benchmark.workload import Wave
from trtforge.canonical import sha256_file
from trtforge.engines.base import RunOutcome, Toolchain
from trtforge.engines.reference.runner import run_reference
from trtforge.engines.registry import open_backend
from trtforge.errors import BuildError
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec
from trtforge.stages.stage import Workshop

_log = logging.getLogger("trtforge")

Run = Callable[[list[dict[str, Any]]], RunOutcome]
"""Performs jobs (`trtforge.engines.jobs`) in a process of its own."""


@dataclass
class _Side:
    """What the processes of one side told, over all turns."""

    samples: list[Sample] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    load_s: list[float] = field(default_factory=list)
    peak_rss_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A benchmark run.

    Attributes:
        samples: The raw data, the engine's first.
        outputs: Of the jobs that were to be done besides, by side and id.
    """

    samples: list[Sample]
    outputs: dict[str, dict[str, dict[str, Any]]]
    load_s: dict[str, list[float]]
    peak_rss_bytes: dict[str, int]
    versions: dict[str, dict[str, str]]
    gpus: tuple[GpuUse, ...]


def run_sweep(
    spec: BuildSpec,
    waves: Sequence[Wave],
    sides: Mapping[str, Run],
    besides: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    *,
    watch_gpus: bool,
) -> Measured:
    """Send all requests to every side, as `spec.benchmark` says.

    Args:
        sides: `engine`, and `eager` where the original model is at hand.
        besides: Jobs of each side to do first: what the correctness gate asks.

    Raises:
        BuildError: A side could not run.
    """
    load = spec.benchmark
    turns = range(load.repeats) if load.in_turns else [None]
    told = {who: _Side() for who in sides}
    with GpuWatch() if watch_gpus else _Unwatched() as watch:
        for turn in turns:
            mine = [wave for wave in waves if turn is None or wave.repeat == turn]
            for who, run in sides.items():
                first = list((besides or {}).get(who, ())) if turn in (None, 0) else []
                _add(told[who], who, spec, first, mine, run)
    return Measured(
        samples=[sample for side in told.values() for sample in side.samples],
        outputs={who: side.outputs for who, side in told.items()},
        load_s={who: side.load_s for who, side in told.items()},
        peak_rss_bytes={who: side.peak_rss_bytes for who, side in told.items()},
        versions={who: side.versions for who, side in told.items()},
        gpus=watch.use(),
    )


def speed_facts(
    spec: BuildSpec,
    measured: Measured,
    *,
    shape: ModelShape | None,
    rates: DeviceRates | None,
    device: str,
) -> dict[str, Any]:
    """What a report says of the speed (`trtforge.benchmark.report`).

    Args:
        rates: Of one device of the kind `device`, `cpu` or `cuda`.

    Raises:
        ShortOutputError: A request did not give every token.
    """
    summary = summarise(measured.samples, terms_of(spec.benchmark))
    eager = "eager" in measured.load_s
    return {
        "formulas": all_formulas(),
        "engine": _short(summary, measured.samples, "engine"),
        "eager": _short(summary, measured.samples, "eager"),
        "engine_load_s": measured.load_s["engine"][0],
        "eager_load_s": measured.load_s["eager"][0] if eager else 0.0,
        "engine_peak_rss_bytes": measured.peak_rss_bytes["engine"],
        "eager_peak_rss_bytes": measured.peak_rss_bytes.get("eager", 0),
        "eager_versions": measured.versions.get("eager", {}),
        "workload": workload_facts(spec.benchmark),
        "boundary": BOUNDARY,
        "order": order_of(spec.benchmark, eager=eager),
        "summary": summary.to_json(),
        # The ranks have a GPU each, but one CPU together.
        "limits": limit_facts(shape, rates, summary, spec.ranks if device == "cuda" else 1),
        "gpus": [gpu.to_json() for gpu in measured.gpus],
        "load_s": measured.load_s["engine"],
    }


class Bench:
    """How both sides are run here, for `run_sweep`.

    Args:
        scratch: An existing directory; logs and logits lie there.
    """

    def __init__(
        self,
        shop: Workshop,
        spec: BuildSpec,
        toolchain: Toolchain,
        scratch: Path,
        on_progress: OnProgress,
    ) -> None:
        self._shop = shop
        self._spec = spec
        self._toolchain = toolchain
        self._scratch = scratch
        self._on_progress = on_progress
        self.backend = open_backend(spec.engine.backend, shop.interpreter(spec.engine.backend))

    @property
    def _threads(self) -> int:
        return int(self._spec.engine.options.get("threads", 0))

    def logits_dir(self, who: str) -> Path:
        """Where a side's logits are written."""
        directory = self._scratch / f"{who}-logits"
        directory.mkdir(exist_ok=True)
        return directory

    def engine(self, engine_dir: Path) -> Run:
        """The engine."""
        return lambda jobs: self.backend.run(
            self._spec.engine,
            engine_dir=engine_dir,
            jobs=jobs,
            logits_dir=self.logits_dir("engine"),
            work_dir=self._scratch,
            on_progress=self._on_progress,
            on_log=log_line,
        )

    def eager(self, model_dir: Path) -> Run:
        """The original model in PyTorch."""
        return lambda jobs: run_reference(
            model_dir,
            dtype=self._spec.checkpoint.dtype,
            device=self._toolchain.device,
            threads=self._threads,
            jobs=jobs,
            logits_dir=self.logits_dir("eager"),
            work_dir=self._scratch,
            on_progress=self._on_progress,
            on_log=log_line,
            python=self._shop.python,
        )

    def rates(self) -> DeviceRates | None:
        """What this device can do at most; None where that cannot be measured, with a warning."""
        try:
            return measure_rates(
                self._shop.python,
                device=self._toolchain.device,
                threads=self._threads,
                work_dir=self._scratch,
                on_progress=self._on_progress,
                on_log=log_line,
            )
        except BuildError as error:
            # The engine's numbers are there, and stand without it.
            _log.warning("the hardware limit was not measured: %s", error)
            return None


def log_line(line: str) -> None:
    """Where the lines of a driver's log go."""
    _log.debug("%s", line)


def own_prompts(spec: BuildSpec) -> dict[str, str]:
    """The content of the user's prompts, for keys: another content is another workload.

    Empty without, and where the file lies on another machine, which will look itself.
    """
    path = Path(spec.benchmark.workload.prompts_file)
    if not spec.benchmark.workload.prompts_file or not path.is_file():
        return {}
    return {"prompts": sha256_file(path)}


class _Unwatched:
    """No GPU, nothing to watch."""

    def __enter__(self) -> "_Unwatched":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def use(self) -> tuple[GpuUse, ...]:
        return ()


def _add(
    side: _Side,
    who: str,
    spec: BuildSpec,
    first: list[dict[str, Any]],
    waves: Sequence[Wave],
    run: Run,
) -> None:
    outcome = run([*first, *(wave.job for wave in waves)])
    load = spec.benchmark
    side.samples += collect(
        waves,
        outcome.outputs,
        who=who,
        workload=load.workload.label,
        timeout_s=load.timeout_s,
    )
    wanted = {job["id"] for job in first}
    side.outputs.update({o["id"]: o for o in outcome.outputs if o["id"] in wanted})
    side.load_s.append(outcome.load_s)
    side.peak_rss_bytes = max(side.peak_rss_bytes, outcome.peak_rss_bytes)
    side.versions = outcome.versions


def _short(summary: Summary, samples: Sequence[Sample], who: str) -> list[dict[str, Any]]:
    return [
        measure(of_cell(samples, who, point.concurrency)).to_json() for point in summary.of(who)
    ]


def model_shape(engine_dir: Path) -> ModelShape | None:
    """What the engine's config says of its model; None where it does not tell."""
    try:
        config = json.loads((engine_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    told = config.get("pretrained_config") if isinstance(config, dict) else None
    return ModelShape.from_config(told) if isinstance(told, dict) else None
