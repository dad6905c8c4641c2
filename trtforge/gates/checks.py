"""All that the correctness gate asks of an engine and of the original model, and its judgement."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.engines.registry import TEACHER_FORCING
from trtforge.gates.correctness import Verdict, correctness_jobs, judge
from trtforge.gates.prompt_sets import gate_prompts, gate_text
from trtforge.gates.reading import ReadingJobs, judge_reading, reading_jobs
from trtforge.spec import BuildSpec, GatesSpec
from trtforge.tokenizer import ModelTokenizer

_Outputs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class CorrectnessChecks:
    """What to ask; `engine_jobs` and `reference_jobs` go to the two run drivers.

    Attributes:
        sources: Which prompt each reference job answers.
        reading: The text, where one is read.
    """

    gates: GatesSpec
    answers: list[dict[str, Any]]
    reference_answers: list[dict[str, Any]]
    sources: dict[str, str]
    reading: ReadingJobs | None

    @property
    def engine_jobs(self) -> list[dict[str, Any]]:
        return [*self.answers, *(self.reading.engine if self.reading else [])]

    @property
    def reference_jobs(self) -> list[dict[str, Any]]:
        return [*self.reference_answers, *(self.reading.reference if self.reading else [])]

    def judge(
        self,
        engine_outputs: _Outputs,
        reference_outputs: _Outputs,
        *,
        engine_logits_dir: Path,
        reference_logits_dir: Path,
    ) -> list[Verdict]:
        """One verdict per answer, and one on the text; outputs by the ids of their jobs."""
        verdicts = judge(
            self.answers,
            engine_outputs,
            reference_outputs,
            engine_logits_dir=engine_logits_dir,
            reference_logits_dir=reference_logits_dir,
            rounding_factor=self.gates.rounding_factor,
            step_factor=self.gates.step_factor,
            sources=self.sources,
        )
        if self.reading:
            read = judge_reading(
                self.reading,
                engine_outputs,
                reference_outputs,
                engine_logits_dir=engine_logits_dir,
                reference_logits_dir=reference_logits_dir,
                gates=self.gates,
            )
            verdicts.append(read)
        return verdicts


def correctness_checks(
    spec: BuildSpec, tokenizer: ModelTokenizer | None, vocab_size: int
) -> CorrectnessChecks:
    """What `spec.gates` asks, for a model with this tokenizer."""
    prompts = gate_prompts(spec, tokenizer, vocab_size)
    engine, reference = correctness_jobs(
        [prompt.ids for prompt in prompts],
        spec.gates.new_tokens,
        spec.engine.max_batch_size,
        alone=[number for number, prompt in enumerate(prompts) if prompt.alone],
    )
    text = gate_text(spec, tokenizer, vocab_size)
    return CorrectnessChecks(
        gates=spec.gates,
        answers=engine,
        reference_answers=reference,
        sources={job["id"]: prompt.source for job, prompt in zip(reference, prompts, strict=True)},
        reading=reading_jobs(
            text,
            teacher_forcing=spec.engine.backend in TEACHER_FORCING,
            max_batch_size=spec.engine.max_batch_size,
        )
        if text
        else None,
    )
