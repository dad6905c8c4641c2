"""Run the gates on an engine that is published, on this machine; nothing is made but a verdict."""

import json
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtforge.engines.base import Toolchain
from trtforge.engines.reference.runner import run_reference
from trtforge.engines.registry import open_backend
from trtforge.errors import InputError
from trtforge.gates.correctness import Verdict
from trtforge.gates.enforce import Decision
from trtforge.gates.performance import PerformanceVerdict
from trtforge.progress import Announced, OnProgress
from trtforge.spec import BuildSpec, parse_spec
from trtforge.stages.ask import require_valid_here
from trtforge.stages.gate import record_decision
from trtforge.stages.performance import Judged, judge_performance, not_judged
from trtforge.stages.prompts import gate_checks
from trtforge.stages.pull import PulledModel, pull
from trtforge.stages.stage import Workshop
from trtforge.store import Manifest, StageResult
from trtforge.tokenizer import open_tokenizer

_log = logging.getLogger("trtforge")


class ModelChangedError(InputError):
    """What the engine was built from is no longer what lies at its source."""


@dataclass(frozen=True)
class Regated:
    """An engine, and what its gates say of it now."""

    manifest: Manifest
    decision: Decision


def regate(shop: Workshop, engine_id: str) -> Regated:
    """Judge a published engine (its id, or the first digits) as a build of today would.

    The verdict is kept, and counts from now on. Speed is compared with the engine that the alias
    of its spec points at by now.

    Raises:
        EngineUnknownError: There is no such engine.
        WrongMachineError: It does not run here.
        ModelChangedError: There is nothing to compare with any more.
        InputError, ServiceError: Of the source of its model.
    """
    manifest = shop.store.get_manifest(engine_id)
    spec = _spec_of(manifest)
    toolchain = require_valid_here(shop, spec.engine, manifest)
    model, _ = pull(replace(shop, force=False), spec)
    if model.content_digest != manifest.core.model.content_digest:
        raise ModelChangedError(
            "its files are not those that the engine was built from",
            field="model.source",
            value=model.source,
            remedy="Build an engine of them as they are now",
        )
    shop.work_root.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="gate-", dir=shop.work_root) as name,
        Announced("answers") as step,
    ):
        scratch, told = Path(name), step.on_progress
        verdicts = _correctness(shop, spec, model, manifest, toolchain, scratch, told)
        right = sum(verdict.passed for verdict in verdicts)
        step.message = f"{right} of {len(verdicts)} correct"
    if all(verdict.passed for verdict in verdicts):
        judged = _performance(shop, spec, model, manifest, toolchain)
    else:
        judged = not_judged(spec)
    decision = Decision(tuple(verdicts), judged.verdict)
    record_decision(shop, manifest, decision, judged)
    return Regated(manifest, decision)


def _spec_of(manifest: Manifest) -> BuildSpec:
    """What was asked for, of the very commit that was built."""
    asked: dict[str, Any] = dict(manifest.core.spec)
    model = manifest.core.model
    return parse_spec({**asked, "model": {"source": model.source, "name": model.name}})


def _correctness(
    shop: Workshop,
    spec: BuildSpec,
    model: PulledModel,
    manifest: Manifest,
    toolchain: Toolchain,
    scratch: Path,
    on_progress: OnProgress,
) -> list[Verdict]:
    model_dir, engine_dir = scratch / "model", scratch / "engine"
    shop.store.materialise(model.files, model_dir, on_progress=on_progress)
    shop.store.materialise(manifest.core.files, engine_dir, on_progress=on_progress)
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    checks = gate_checks(spec, open_tokenizer(model_dir), vocab_size)
    logits = {name: scratch / f"{name}-logits" for name in ("engine", "eager")}
    for directory in logits.values():
        directory.mkdir()
    common: dict[str, Any] = {
        "work_dir": scratch,
        "on_progress": on_progress,
        "on_log": lambda line: _log.debug("%s", line),
    }
    mine = open_backend(spec.engine.backend, shop.interpreter(spec.engine.backend)).run(
        spec.engine,
        engine_dir=engine_dir,
        jobs=checks.engine_jobs,
        logits_dir=logits["engine"],
        **common,
    )
    theirs = run_reference(
        model_dir,
        dtype=spec.checkpoint.dtype,
        device=toolchain.device,
        threads=int(spec.engine.options.get("threads", 0)),
        jobs=checks.reference_jobs,
        logits_dir=logits["eager"],
        python=shop.python,
        **common,
    )
    return checks.judge(
        {output["id"]: output for output in mine.outputs},
        {output["id"]: output for output in theirs.outputs},
        engine_logits_dir=logits["engine"],
        reference_logits_dir=logits["eager"],
    )


def _performance(
    shop: Workshop,
    spec: BuildSpec,
    model: PulledModel,
    manifest: Manifest,
    toolchain: Toolchain,
) -> Judged:
    """As in a build; what the engine's own benchmark left stands for that of a build."""
    if manifest.benchmark is None:
        return Judged(PerformanceVerdict("off", spec.gates.performance.tolerance))
    measured = StageResult(
        stage="benchmark",
        key=manifest.engine_id,
        inputs={},
        outputs=manifest.evidence,
        facts=manifest.benchmark,
        seconds=0.0,
    )
    companions = {ref.sha256 for ref in model.companions}
    engine = [ref for ref in manifest.core.files if ref.sha256 not in companions]
    return judge_performance(shop, spec, model, engine, measured, toolchain)
