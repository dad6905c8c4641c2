"""The performance gate: a new engine beside the one that an alias points at.

Where the engine in use runs on this machine too, both run the benchmark's requests in turns: new,
old, old, new, … A machine that slows down meanwhile then slows both. Where it does not (another
release of the toolchain, say), what its own benchmark recorded is taken.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trtforge.benchmark.report import BOUNDARY
from trtforge.benchmark.sample import RAW_FILE, RawDataError
from trtforge.benchmark.workload import benchmark_jobs
from trtforge.engines.base import Toolchain
from trtforge.engines.machine import local_machine
from trtforge.engines.registry import open_backend
from trtforge.errors import BuildError
from trtforge.files import FileRef, describe_directory, files_digest
from trtforge.gates.performance import (
    PerformanceVerdict,
    Setting,
    compare_engines,
    conclude,
    setting_differences,
    shape_differences,
    told_verdict,
)
from trtforge.gates.timings import Repeats, recorded_timings, timings_of
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec, EngineSpec
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage
from trtforge.store import AliasName, Manifest, StageResult
from trtforge.store.compatibility import compatibility
from trtforge.store.manifests import EngineUnknownError, ManifestIdError
from trtforge.store.records import RecordInvalidError, UnknownFormatError
from trtforge.store.transfer import BlobCorruptError, BlobMissingError

_log = logging.getLogger("trtforge")
STAGE = "gate"
_UNREADABLE = (EngineUnknownError, ManifestIdError, RecordInvalidError, UnknownFormatError)


@dataclass(frozen=True)
class InUse:
    """The engine that an alias points at."""

    alias: str
    manifest: Manifest


@dataclass(frozen=True)
class Judged:
    """A verdict; where two engines were compared, how that stage ended."""

    verdict: PerformanceVerdict
    outcome: StageOutcome | None = None

    @property
    def evidence(self) -> tuple[FileRef, ...]:
        """The files that the verdict was made from."""
        return self.outcome.result.outputs if self.outcome else ()


def judge_performance(
    shop: Workshop,
    spec: BuildSpec,
    model: PulledModel,
    engine: Sequence[FileRef],
    bench: StageResult,
    toolchain: Toolchain,
) -> Judged:
    """Compare an engine with the one in use; where there is none, or it is this one, say so.

    The comparison is a stage of its own, `gate`: it is made once for two engines and a load.
    """
    gate = spec.gates.performance
    if gate.mode == "off":
        return Judged(PerformanceVerdict("off", gate.tolerance))
    old = in_use(shop, spec, model.name, toolchain)
    if old is None:
        return Judged(PerformanceVerdict("nothing to compare with", gate.tolerance))
    verdict = PerformanceVerdict(
        "the same engine", gate.tolerance, old.alias, old.manifest.engine_id
    )
    if set(engine) <= set(old.manifest.core.files):
        return Judged(verdict)
    differences = setting_differences(
        Setting(_device(toolchain, bench.facts), spec.ranks),
        _setting_of(old.manifest),
    )
    if differences:
        return Judged(replace(verdict, status="not comparable", differences=differences))

    def make(scratch: Path, on_progress: OnProgress) -> Made:
        return _compare(shop, spec, model, engine, bench, toolchain, old, scratch, on_progress)

    inputs = {
        "engine": files_digest(engine),
        "against": old.manifest.engine_id,
        "benchmark": spec.benchmark.model_dump(mode="json"),
        "concurrency": list(spec.concurrencies()),
        "performance": gate.model_dump(mode="json"),
        "toolchain": toolchain.to_json(),
    }
    outcome = run_stage(shop, STAGE, inputs, make, _describe)
    facts: dict[str, Any] = outcome.result.facts
    return Judged(told_verdict(facts["verdict"]), outcome)


def not_judged(spec: BuildSpec) -> Judged:
    """Of an engine whose answers are wrong: how quick it gives them does not matter."""
    tolerance = spec.gates.performance.tolerance
    return Judged(PerformanceVerdict("not judged: the answers are wrong", tolerance))


def in_use(shop: Workshop, spec: BuildSpec, model: str, toolchain: Toolchain) -> InUse | None:
    """The engine that the first alias of the spec that exists points at; None: there is none."""
    for alias in spec.publish.aliases:
        name = AliasName(model, toolchain.device_name, toolchain.backend, alias)
        record = shop.store.get_alias(name)
        if record:
            try:
                return InUse(alias, shop.store.get_manifest(record.engine_id))
            except _UNREADABLE as error:
                # Somebody deleted it by hand; the alias shall be able to move on.
                _log.warning("the engine that %s points at cannot be read: %s", alias, error)
    return None


def _compare(
    shop: Workshop,
    spec: BuildSpec,
    model: PulledModel,
    engine: Sequence[FileRef],
    bench: StageResult,
    toolchain: Toolchain,
    old: InUse,
    scratch: Path,
    on_progress: OnProgress,
) -> Made:
    gate = spec.gates.performance
    against = old.manifest.engine_id
    jobs = _jobs(shop, spec, model, scratch)
    try:
        turns = _in_turns(shop, spec, engine, old, jobs, toolchain, scratch, on_progress)
    except BuildError as error:
        _log.warning("the engine in use does not run here any more: %s", error)
        turns = None
    if turns:
        mine, theirs = turns
    else:
        mine = _recorded(shop, bench.outputs, bench.facts, scratch / "mine")
        evidence, summary = old.manifest.evidence, old.manifest.benchmark or {}
        theirs = _recorded(shop, evidence, summary, scratch / "theirs")
    differences = shape_differences(mine, theirs)
    if differences:
        verdict = PerformanceVerdict(
            "not comparable", gate.tolerance, old.alias, against, differences=differences
        )
    else:
        verdict = conclude(
            gate,
            compare_engines(mine, theirs, gate),
            alias=old.alias,
            against=against,
            method="in turns" if turns else "recorded",
        )
    out = scratch / "evidence"
    out.mkdir()
    kept = {"verdict": verdict.to_json(), "new": _told(mine), "old": _told(theirs)}
    (out / "performance.json").write_text(json.dumps(kept))
    return Made(out, describe_directory(out), {"verdict": verdict.to_json()})


def _jobs(
    shop: Workshop, spec: BuildSpec, model: PulledModel, scratch: Path
) -> list[dict[str, Any]]:
    config = [ref for ref in model.files if ref.path == "config.json"]
    shop.store.materialise(config, scratch / "model")
    vocab_size = json.loads((scratch / "model" / "config.json").read_text())["vocab_size"]
    return [{**job, "warmups": 1, "repeats": 1} for job in benchmark_jobs(spec, vocab_size)]


def _in_turns(
    shop: Workshop,
    spec: BuildSpec,
    engine: Sequence[FileRef],
    old: InUse,
    jobs: list[dict[str, Any]],
    toolchain: Toolchain,
    scratch: Path,
    on_progress: OnProgress,
) -> tuple[Repeats, Repeats] | None:
    """What both did, or None where the old one does not run here or does not take the load."""
    if compatibility(old.manifest, local_machine([toolchain])):
        return None
    before = EngineSpec.model_validate(old.manifest.core.spec["engine"])
    jobs = [job for job in jobs if _takes(before, job)]
    if not jobs:
        return None
    shop.store.materialise(engine, scratch / "new", on_progress=on_progress)
    shop.store.materialise(old.manifest.core.files, scratch / "old", on_progress=on_progress)
    done: dict[str, Repeats] = {"new": {}, "old": {}}
    asked = {"new": spec.engine, "old": before}
    for turn in range(spec.gates.performance.repeats):
        for which in ("new", "old") if turn % 2 == 0 else ("old", "new"):
            backend = open_backend(asked[which].backend, shop.interpreter(asked[which].backend))
            run = backend.run(
                asked[which],
                engine_dir=scratch / which,
                jobs=jobs,
                logits_dir=scratch,
                work_dir=scratch,
                on_progress=on_progress,
                on_log=lambda line: _log.debug("%s", line),
            )
            outputs = {output["id"]: output for output in run.outputs}
            for shape, repeats in timings_of(jobs, outputs).items():
                done[which].setdefault(shape, []).extend(repeats)
    return done["new"], done["old"]


def _takes(engine: EngineSpec, job: dict[str, Any]) -> bool:
    length = max(len(prompt) for prompt in job["prompts"])
    return (
        len(job["prompts"]) <= engine.max_batch_size
        and length <= engine.max_input_len
        and length + job["max_new_tokens"] <= engine.max_seq_len
    )


def _recorded(
    shop: Workshop, evidence: Sequence[FileRef], summary: dict[str, Any], directory: Path
) -> Repeats:
    """What a benchmark left; nothing where that is gone."""
    lines = [ref for ref in evidence if ref.path == RAW_FILE]
    if not lines or not summary.get("engine"):
        return {}
    try:
        shop.store.materialise(lines, directory)
        text = (directory / RAW_FILE).read_text(encoding="utf-8")
        return recorded_timings(text.splitlines(), summary["engine"])
    except (BlobMissingError, BlobCorruptError, RawDataError, UnicodeDecodeError) as error:
        _log.warning("what was measured of an engine cannot be read any more: %s", error)
        return {}


def _device(toolchain: Toolchain, facts: Any) -> str:
    return toolchain.gpu_name or str((facts.get("machine") or {}).get("cpu"))


def _setting_of(manifest: Manifest) -> Setting:
    told = manifest.benchmark or {}
    return Setting(
        _device(manifest.core.built_with, told),
        manifest.core.ranks,
        # Those of before it was kept were all measured like this.
        str(told.get("boundary", BOUNDARY)),
    )


def _told(repeats: Repeats) -> list[dict[str, Any]]:
    return [
        {**asdict(sample), "repeat": number}
        for runs in repeats.values()
        for number, requests in enumerate(runs)
        for sample in requests
    ]


def _describe(result: StageResult) -> str:
    facts: dict[str, Any] = result.facts
    verdict = told_verdict(facts["verdict"])
    return f"beside engine {(verdict.against or '')[:12]}: {verdict.describe()}"
