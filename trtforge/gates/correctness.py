"""Does the engine compute what the model computes?

Three answers to the same prompts are compared, token by token and logit by logit: the engine's,
the original model's in its own 16-bit type (eager PyTorch), and the original model's in fp32 along
the 16-bit model's tokens. The 16-bit model's distance from fp32 is the rounding noise of this
model on these prompts; an engine may be `rounding_factor` times as far from fp32 over the whole
answer, and `step_factor` times at any one token of it, no more.

Greedy tokens must be equal, with one excuse: where the engine first differs, the two candidates
must be so close in fp32 that rounding explains it, that is, closer than twice the largest error
the bound above allows at that step. After that first difference the two write different texts,
so nothing further is compared. `trtforge.gates.reading` compares along a text that is given.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.gates.divergence import Logits, divergence
from trtforge.gates.rounding import Rounding, incomparable


@dataclass(frozen=True)
class Verdict:
    """One prompt's comparison.

    Attributes:
        job: Which engine job answered: alone or in a batch.
        agreed_tokens: Greedy tokens equal to the reference's before the first difference.
        compared_tokens: How many the reference generated.
        near_tie: True when the first difference is explained by rounding.
        rounding_ratio: RMS error of the engine's logits over RMS error of the 16-bit model's, both
            against fp32, over the compared steps; None where there was nothing finite to compare.
        worst_step_ratio: The same for the worst single step. Where the 16-bit model came closer to
            fp32 than it does on average, by luck, its average counts.
        reason: Empty when the prompt passed.
        source: Which prompt: `gates.prompts.0`, `general.2`, `text`.
        method: How the text was read: `teacher-forced`, token by token; or `prefill`, with every
            beginning of it as a prompt, where a runtime chooses its own tokens. Empty for answers.
        kl, reference_kl, top1_agreement: See `trtforge.gates.divergence`.
        explained_agreement: As `top1_agreement`, with the differences that rounding explains.
        perplexity, reference_perplexity: Of the text, by the engine and the 16-bit model.
    """

    job: str
    prompt: int
    agreed_tokens: int
    compared_tokens: int
    near_tie: bool
    rounding_ratio: float | None
    worst_step_ratio: float | None
    reason: str
    source: str = ""
    method: str = ""
    kl: float | None = None
    reference_kl: float | None = None
    top1_agreement: float | None = None
    explained_agreement: float | None = None
    perplexity: float | None = None
    reference_perplexity: float | None = None

    @property
    def passed(self) -> bool:
        return not self.reason

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_logits(path: Path, steps: int, batch: int) -> Logits:
    """Logits written by a run driver: fp32 (steps, batch, vocabulary)."""
    return np.fromfile(path, dtype="<f4").reshape(steps, batch, -1)


def compare(
    job: str,
    prompt: int,
    *,
    engine_tokens: list[int],
    engine_logits: Logits,
    reference_tokens: list[int],
    reference_logits: Logits,
    fp32_logits: Logits,
    rounding_factor: float,
    step_factor: float | None = None,
    source: str = "",
) -> Verdict:
    """Compare one prompt's answers; all logits are (steps, vocabulary)."""
    agreed = 0
    for token, expected in zip(engine_tokens, reference_tokens, strict=False):
        if token != expected:
            break
        agreed += 1
    differs = agreed < min(len(engine_tokens), len(reference_tokens))
    # Up to and including the first difference both have read the same tokens.
    steps = min(agreed + differs, len(engine_logits), len(fp32_logits))
    mine, theirs, exact = (
        logits[:steps] for logits in (engine_logits, reference_logits, fp32_logits)
    )
    reason = incomparable(mine, theirs, exact)
    near_tie, ratio, worst_ratio, apart = False, None, None, None
    if not reason:
        rounding = Rounding.of(mine, theirs, exact)
        ratio, worst_ratio = rounding.ratio, rounding.worst
        apart = divergence(mine, theirs, exact)
        reason = rounding.beyond(rounding_factor, step_factor)
        if not reason and len(engine_tokens) != len(reference_tokens):
            reason = f"{len(engine_tokens)} tokens instead of {len(reference_tokens)}"
        elif not reason and differs:
            wanted, given = reference_tokens[agreed], engine_tokens[agreed]
            gap = rounding.gap(agreed, wanted, given)
            allowed = rounding.explained_gap(agreed, rounding_factor)
            near_tie = gap <= allowed
            if not near_tie:
                reason = (
                    f"token {agreed} is {given} instead of {wanted}, whose logit is {gap:.3f} "
                    f"higher in fp32; rounding explains {allowed:.3f}"
                )
    return Verdict(
        job=job,
        prompt=prompt,
        agreed_tokens=agreed,
        compared_tokens=len(reference_tokens),
        near_tie=near_tie,
        rounding_ratio=ratio,
        worst_step_ratio=worst_ratio,
        reason=reason,
        source=source,
        kl=apart.kl if apart else None,
        reference_kl=apart.reference_kl if apart else None,
        top1_agreement=apart.top1_agreement if apart else None,
    )


def judge(
    engine_jobs: list[dict[str, Any]],
    engine_outputs: Mapping[str, Mapping[str, Any]],
    reference_outputs: Mapping[str, Mapping[str, Any]],
    *,
    engine_logits_dir: Path,
    reference_logits_dir: Path,
    rounding_factor: float,
    step_factor: float | None = None,
    sources: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """Compare every prompt of every engine job with the reference's answer to the same prompt.

    Each engine job carries `reference_ids`: for each of its prompts, the id of the reference job
    (one prompt each) that answered it. `sources` says of these ids which prompt it was.
    """
    verdicts = []
    for job in engine_jobs:
        output = engine_outputs[job["id"]]
        steps, batch = len(output["step_s"][-1]), len(job["prompts"])
        logits = read_logits(engine_logits_dir / output["logits"], steps, batch)
        for row, reference_id in enumerate(job["reference_ids"]):
            reference = reference_outputs[reference_id]
            count = len(reference["step_s"][-1])
            verdicts.append(
                compare(
                    job["id"],
                    row,
                    engine_tokens=output["tokens"][row],
                    engine_logits=logits[:, row],
                    reference_tokens=reference["tokens"][0],
                    reference_logits=read_logits(
                        reference_logits_dir / reference["logits"], count, 1
                    )[:, 0],
                    fp32_logits=read_logits(
                        reference_logits_dir / reference["logits_fp32"], count, 1
                    )[:, 0],
                    rounding_factor=rounding_factor,
                    step_factor=step_factor,
                    source=(sources or {}).get(reference_id, ""),
                )
            )
    return verdicts


def correctness_jobs(
    prompts: list[list[int]],
    new_tokens: int,
    max_batch_size: int,
    *,
    alone: Collection[int] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Jobs for the engine and for the reference.

    The engine answers every prompt alone and, where it can, in batches: other code runs then. The
    reference answers every prompt once.

    Args:
        alone: Which prompts are answered alone; None: all. Those that no batch has always are.
    """
    reference: list[dict[str, Any]] = [
        {"id": f"prompt-{n}", "prompts": [ids], "max_new_tokens": new_tokens, "logits": True}
        for n, ids in enumerate(prompts)
    ]
    groups = [
        (first, prompts[first : first + max_batch_size])
        for first in range(0, len(prompts), max_batch_size)
    ]
    left_over = {first for first, group in groups if len(group) == 1}
    engine = [
        {**job, "reference_ids": [job["id"]]}
        for n, job in enumerate(reference)
        if alone is None or n in alone or n in left_over
    ]
    for first, group in groups:
        if len(group) > 1:
            engine.append(
                {
                    "id": f"batch-{first}",
                    "prompts": group,
                    "max_new_tokens": new_tokens,
                    "logits": True,
                    "reference_ids": [f"prompt-{first + n}" for n in range(len(group))],
                }
            )
    return engine, reference
