"""gate: is the engine right, is it quick enough, and what of it when not.

Gates block the aliases, not the evidence. An engine that fails is published all the same, so that
it can be looked at: its manifest says that the correctness gate failed, and a record beside it
(`trtforge.store.gates`) what each gate found. No alias moves, unless somebody lets it pass.
"""

from dataclasses import dataclass

from trtforge.engines.base import Toolchain
from trtforge.engines.standin import refuse_standin
from trtforge.gates.enforce import Decision
from trtforge.spec import BuildSpec
from trtforge.stages.benchmark import verdicts
from trtforge.stages.compile import engine_files
from trtforge.stages.performance import Judged, judge_performance, not_judged
from trtforge.stages.publish import make_manifest
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import StageOutcome, Workshop
from trtforge.store import Manifest, StageResult
from trtforge.store.aliases import who
from trtforge.store.gates import GateRecord, GateRecords, require_reason


@dataclass(frozen=True)
class Override:
    """Who lets an engine pass, whatever its gates say, and why."""

    by: str
    reason: str


@dataclass(frozen=True)
class Gated:
    """An engine's manifest, and what the gates said of it.

    Attributes:
        outcome: How the comparison with the engine in use ended; None where there was none.
    """

    manifest: Manifest
    decision: Decision
    outcome: StageOutcome | None = None


def judge(
    shop: Workshop,
    spec: BuildSpec,
    model: PulledModel,
    checkpoint: StageResult,
    engine: StageResult,
    bench: StageResult,
    toolchain: Toolchain,
) -> Gated:
    """Describe the engine, and judge it; an engine that fails is published, marked.

    Raises:
        StandinError: A stand-in for the toolchain made the engine.
    """
    manifest = make_manifest(spec, model, checkpoint, engine, bench, toolchain)
    answers = tuple(verdicts(bench.facts))
    if all(verdict.passed for verdict in answers):
        files = engine_files(engine.outputs)
        performance = judge_performance(shop, spec, model, files, bench, toolchain)
    else:
        performance = not_judged(spec)
    decision = Decision(answers, performance.verdict)
    if not decision.passed:
        refuse_standin(manifest.core.built_with)
    # The verdict first: at no moment is the engine there without it.
    record_decision(shop, manifest, decision, performance)
    if not decision.passed:
        manifest = shop.store.publish_manifest(manifest)
    return Gated(manifest, decision, performance.outcome)


def admit(shop: Workshop, gated: Gated, override: Override | None) -> None:
    """Let an engine on that passed, or that somebody lets pass.

    Raises:
        CorrectnessGateError, PerformanceGateError: It did not pass, and there is no override.
    """
    if gated.decision.passed:
        return
    if override is None:
        records = GateRecords(shop.store.bucket)
        if records.state(gated.manifest).blocks:
            gated.decision.require(gated.manifest.engine_id)
        return
    overrule(shop, gated.manifest, override)


def overrule(shop: Workshop, manifest: Manifest, override: Override) -> GateRecord:
    """Let a published engine pass that did not; recorded once for one person and one reason.

    Raises:
        NoReasonError, NothingToOverrideError
    """
    records = GateRecords(shop.store.bucket)
    there = records.state(manifest).override
    asked = (override.by, require_reason(override.reason))
    if there and (there.by, there.reason) == asked:
        return there
    return records.override(manifest, override.reason, by=override.by)


def record_decision(
    shop: Workshop, manifest: Manifest, decision: Decision, performance: Judged
) -> None:
    """Keep what the gates said, where that is more than the manifest and the records tell."""
    records = GateRecords(shop.store.bucket)
    told = decision.to_json()
    before = [r for r in records.of(manifest.engine_id) if r.kind == "verdict"]
    if before and before[-1].gates == told:
        return
    if not before and decision.passed and not performance.verdict.comparisons:
        return
    records.put(
        GateRecord(
            kind="verdict",
            engine_id=manifest.engine_id,
            gates=told,
            evidence=performance.evidence,
            by=who(),
        )
    )
