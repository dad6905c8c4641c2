"""What becomes of an engine that fails a gate, with a real store and engines that nobody compiled.

The engines are for a GPU that is not here, so the performance gate goes by what was recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from prebuilt import H100, toolchain_of

from trtforge.benchmark.sample import Sample
from trtforge.canonical import digest
from trtforge.engines.base import Toolchain
from trtforge.errors import GateError
from trtforge.gates.enforce import CorrectnessGateError, PerformanceGateError
from trtforge.spec import BuildSpec, parse_spec
from trtforge.stages.gate import Gated, Override, admit, judge, overrule
from trtforge.stages.publish import point_aliases
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import Workshop
from trtforge.store import Manifest, StageResult
from trtforge.store.gates import GateNotPassedError, GateRecords

GPU = toolchain_of(H100)
LOAD = {"workload": {"input_tokens": 16, "output_tokens": 8}, "concurrency": [1]}
NOISE = (0.0, 0.01, -0.01, 0.004, -0.004)


def spec_of(**gates: Any) -> BuildSpec:
    return parse_spec({"model": {"source": "/tiny"}, "benchmark": LOAD, "gates": gates})


@dataclass(frozen=True)
class Made:
    """What a build has made when it comes to its gates."""

    shop: Workshop
    spec: BuildSpec
    model: PulledModel
    checkpoint: StageResult
    engine: StageResult
    bench: StageResult
    toolchain: Toolchain

    def judged(self) -> Gated:
        return judge(
            self.shop,
            self.spec,
            self.model,
            self.checkpoint,
            self.engine,
            self.bench,
            self.toolchain,
        )

    def in_use(self) -> Manifest:
        """Let it pass all the way to the alias."""
        gated = self.judged()
        admit(self.shop, gated, None)
        manifest = self.shop.store.publish_manifest(gated.manifest)
        point_aliases(self.shop, self.spec, manifest)
        return manifest


@pytest.fixture
def make(shop: Workshop) -> Callable[..., Made]:
    def one(
        name: str,
        *,
        tokens_per_s: float = 100.0,
        wrong: str = "",
        toolchain: Toolchain = GPU,
        input_tokens: int = 16,
        **gates: Any,
    ) -> Made:
        def result(stage: str, facts: dict[str, Any], **files: bytes) -> StageResult:
            refs = [shop.store.put_bytes(data, path) for path, data in files.items()]
            key = digest([name, stage])
            told = {"inputs": {}, "facts": facts, "seconds": 1.0}
            return StageResult(stage=stage, key=key, outputs=tuple(refs), **told)

        config = shop.store.put_bytes(b'{"vocab_size": 512}', "config.json")
        lines = "".join(line.to_line() for line in samples(tokens_per_s, input_tokens))
        return Made(
            shop,
            spec_of(**gates),
            PulledModel("tiny", "/tiny", None, None, (config,)),
            result("convert", {}, **{"rank0.safetensors": name.encode()}),
            result(
                "compile",
                {"effective": {}, "cache": "cold"},
                **{"rank0.engine": name.encode(), "model.cache": b"c"},
            ),
            result(
                "benchmark",
                facts_of(wrong, input_tokens),
                **{"report.json": b"{}", "requests.jsonl": lines.encode()},
            ),
            toolchain,
        )

    return one


def samples(tokens_per_s: float, input_tokens: int) -> list[Sample]:
    return [
        Sample(
            who="engine",
            workload="",
            concurrency=1,
            repeat=repeat,
            request=0,
            start_s=0.0,
            token_s=tuple((n + 1) / tokens_per_s * (1 + noise) for n in range(8)),
            input_tokens=input_tokens,
            output_tokens=8,
        )
        for repeat, noise in enumerate(NOISE)
    ]


def facts_of(wrong: str, input_tokens: int) -> dict[str, Any]:
    numbers = {
        "concurrency": 1,
        "input_tokens": input_tokens,
        "output_tokens": 8,
        "repeats": 5,
        "ttft_s": 0.1,
        "itl_s": 0.01,
        "output_tokens_per_s": 100.0,
        "output_tokens_per_s_min": 99.0,
        "output_tokens_per_s_max": 101.0,
    }
    verdict = {
        "job": "prompt-0",
        "prompt": 0,
        "agreed_tokens": 24,
        "compared_tokens": 24,
        "near_tie": False,
        "rounding_ratio": 1.0,
        "worst_step_ratio": 1.1,
        "reason": wrong,
        "source": "general.0",
        "passed": not wrong,
    }
    machine = {"cpu": "test", "cores": 1, "gpu": H100, "backend": "aoti"}
    return {
        "machine": machine,
        "engine": [numbers],
        "eager": [numbers],
        "correctness": [verdict],
    }


def aliased(made: Made) -> str:
    ((_, record),) = list(made.shop.store.list_aliases())
    return record.engine_id


class TestCorrectness:
    def test_an_engine_that_is_wrong_is_published_marked_and_goes_no_further(
        self, make: Callable[..., Made]
    ) -> None:
        good = make("good").in_use()
        bad = make("bad", wrong="it speaks Dutch")
        gated = bad.judged()
        with pytest.raises(CorrectnessGateError) as refused:
            admit(bad.shop, gated, None)
        line = str(refused.value)
        assert "gates = 'general.0': 1 of 1 answers are wrong; the first: it speaks Dutch" in line
        assert f"trtforge gate {gated.manifest.engine_id[:12]} --override" in line
        stored = bad.shop.store.get_manifest(gated.manifest.engine_id)
        assert stored.core.gates == {"correctness": {"passed": False, "answers": 1}}
        assert stored.evidence == bad.bench.outputs
        with pytest.raises(GateNotPassedError):
            point_aliases(bad.shop, bad.spec, stored)
        assert aliased(bad) == good.engine_id

    def test_how_quick_it_is_is_not_asked_then(self, make: Callable[..., Made]) -> None:
        make("good").in_use()
        verdict = make("bad", wrong="no", tokens_per_s=1).judged().decision.performance
        assert verdict.status == "not judged: the answers are wrong"

    def test_judging_it_again_records_nothing_new(self, make: Callable[..., Made]) -> None:
        bad = make("bad", wrong="no")
        first = bad.judged()
        again = bad.judged()
        assert first.manifest.engine_id == again.manifest.engine_id
        records = GateRecords(bad.shop.store.bucket).of(first.manifest.engine_id)
        assert [record.kind for record in records] == ["verdict"]

    def test_an_engine_that_passes_with_nothing_to_compare_leaves_no_record(
        self, make: Callable[..., Made]
    ) -> None:
        manifest = make("good").in_use()
        assert manifest.core.gates == {"correctness": {"passed": True, "answers": 1}}
        assert GateRecords(make("x").shop.store.bucket).of(manifest.engine_id) == []


class TestOverride:
    def test_it_lets_the_alias_move_and_tells_who_and_why(self, make: Callable[..., Made]) -> None:
        bad = make("bad", wrong="it speaks Dutch")
        gated = bad.judged()
        admit(bad.shop, gated, Override("ada", "we want Dutch"))
        point_aliases(bad.shop, bad.spec, gated.manifest)
        assert aliased(bad) == gated.manifest.engine_id
        state = GateRecords(bad.shop.store.bucket).state(gated.manifest)
        assert state.override is not None
        assert (state.override.by, state.override.reason) == ("ada", "we want Dutch")

    def test_it_does_not_change_which_engine_this_is(self, make: Callable[..., Made]) -> None:
        bad = make("bad", wrong="no")
        before = bad.judged().manifest.engine_id
        admit(bad.shop, bad.judged(), Override("ada", "yes"))
        assert bad.judged().manifest.engine_id == before

    def test_it_is_said_once_and_later_builds_need_not_say_it(
        self, make: Callable[..., Made]
    ) -> None:
        bad = make("bad", wrong="no")
        gated = bad.judged()
        first = overrule(bad.shop, gated.manifest, Override("ada", "yes"))
        assert overrule(bad.shop, gated.manifest, Override("ada", " yes ")) == first
        admit(bad.shop, bad.judged(), None)

    def test_an_engine_that_passes_needs_none(self, make: Callable[..., Made]) -> None:
        good = make("good")
        gated = good.judged()
        admit(good.shop, gated, Override("ada", "in case"))
        assert not GateRecords(good.shop.store.bucket).of(gated.manifest.engine_id)


class TestPerformance:
    def test_a_slower_engine_is_refused_and_marked(self, make: Callable[..., Made]) -> None:
        good = make("good").in_use()
        slow = make("slow", tokens_per_s=80)
        gated = slow.judged()
        with pytest.raises(PerformanceGateError, match=r"output_tokens_per_s .* 0\.800 times"):
            admit(slow.shop, gated, None)
        # What the engine is does not depend on the one it was compared with.
        assert gated.manifest.core.gates == {"correctness": {"passed": True, "answers": 1}}
        (record,) = GateRecords(slow.shop.store.bucket).of(gated.manifest.engine_id)
        told: Any = record.gates["performance"]
        assert (told["against"], told["alias"]) == (good.engine_id, "latest")
        assert told["method"] == "recorded"
        assert [ref.path for ref in record.evidence] == ["performance.json"]
        with pytest.raises(GateError):
            point_aliases(slow.shop, slow.spec, gated.manifest)

    def test_a_quicker_one_passes_and_the_comparison_is_kept(
        self, make: Callable[..., Made]
    ) -> None:
        make("good").in_use()
        quick = make("quick", tokens_per_s=130)
        manifest = quick.in_use()
        assert aliased(quick) == manifest.engine_id
        (record,) = GateRecords(quick.shop.store.bucket).of(manifest.engine_id)
        told: Any = record.gates["performance"]
        assert told["passed"]
        ratios = {c["metric"]: c["ratio"] for c in told["comparisons"]}
        assert ratios["output_tokens_per_s"] == pytest.approx(1.3)

    @pytest.mark.parametrize("mode", ["report", "off"])
    def test_it_is_enforced_only_where_that_is_asked(
        self, make: Callable[..., Made], mode: str
    ) -> None:
        make("good").in_use()
        slow = make("slow", tokens_per_s=50, performance={"mode": mode})
        gated = slow.judged()
        admit(slow.shop, gated, None)
        expected = {"report": "slower, only reported", "off": "off"}
        assert gated.decision.performance.status == expected[mode]

    def test_the_same_engine_is_not_compared_with_itself(self, make: Callable[..., Made]) -> None:
        make("good").in_use()
        assert make("good", new_tokens=5).judged().decision.performance.status == "the same engine"

    @pytest.mark.parametrize(
        ("differs", "field"),
        [({"input_tokens": 64}, "workload")],
    )
    def test_what_cannot_be_compared_passes_and_the_field_is_named(
        self, make: Callable[..., Made], differs: dict[str, Any], field: str
    ) -> None:
        make("good", **differs).in_use()
        verdict = make("slow", tokens_per_s=10).judged().decision.performance
        assert (verdict.status, verdict.passed) == ("not comparable", True)
        assert [difference.field for difference in verdict.differences] == [field]
        assert "16/8" in verdict.describe()
        assert "64/8" in verdict.describe()

    def test_an_engine_in_use_whose_measurements_are_gone_blocks_nobody(
        self, make: Callable[..., Made]
    ) -> None:
        good = make("good").in_use()
        (lines,) = [ref for ref in good.evidence if ref.path == "requests.jsonl"]
        shop = make("slow").shop
        shop.store.bucket.delete(f"blobs/sha256/{lines.sha256[:2]}/{lines.sha256}")
        shop.store.cache.path(lines.sha256).unlink(missing_ok=True)
        assert make("slow", tokens_per_s=10).judged().decision.passed

    def test_the_comparison_is_made_once(self, make: Callable[..., Made]) -> None:
        make("good").in_use()
        slow = make("slow", tokens_per_s=80)
        keys = [self.gate_stages(slow) for _ in range(2) if slow.judged()]
        assert len(keys[0]) == 1
        assert keys[0] == keys[1]

    def test_what_it_took_is_a_line_of_the_build(self, make: Callable[..., Made]) -> None:
        assert make("good").judged().outcome is None
        good = make("good").in_use()
        quick = make("quick", tokens_per_s=130)
        lines = [quick.judged().outcome for _ in range(2)]
        for line, hit in zip(lines, (False, True), strict=True):
            assert line is not None
            assert (line.result.stage, line.hit) == ("gate", hit)
            assert line.seconds > 0
            assert line.detail.startswith(f"beside engine {good.engine_id[:12]}: ")

    @staticmethod
    def gate_stages(made: Made) -> list[str]:
        return list(made.shop.store.bucket.keys("stages/gate/"))
