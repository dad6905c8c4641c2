"""Does the engine read a given text as the original model does?

Both read the same tokens, so every step can be compared, also after one at which the two would
have gone on differently. Beside the distance from fp32 (`trtforge.gates.rounding`) three things
are judged that say what an error means: the KL divergence from fp32, how often the two find the
same token likeliest, and the perplexity of the text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trtforge.gates.correctness import Verdict, read_logits
from trtforge.gates.divergence import Logits, divergence, perplexity
from trtforge.gates.prompt_sets import Text
from trtforge.gates.rounding import Rounding, incomparable
from trtforge.spec import GatesSpec

Method = Literal["teacher-forced", "prefill"]
TEXT_JOB = "text"


@dataclass(frozen=True)
class ReadingJobs:
    """How engine and reference are made to read a text: jobs of `trtforge.engines.jobs`."""

    text: Text
    method: Method
    engine: list[dict[str, Any]]
    reference: list[dict[str, Any]]


def reading_jobs(text: Text, *, teacher_forcing: bool, max_batch_size: int) -> ReadingJobs:
    """Jobs for the engine and for the reference, which is always teacher-forced.

    An engine that chooses its own tokens is given every beginning of the text as a prompt, and
    asked for the one token after it.
    """
    forced = {
        "id": TEXT_JOB,
        "prompts": [text.context],
        "max_new_tokens": len(text.read),
        "forced": [text.read],
        "logits": True,
    }
    if teacher_forcing:
        return ReadingJobs(text, "teacher-forced", [forced], [forced])
    beginnings = [text.context + text.read[:count] for count in range(len(text.read))]
    engine = [
        {
            "id": f"{TEXT_JOB}-{first}",
            "prompts": beginnings[first : first + max_batch_size],
            "max_new_tokens": 1,
            "logits": True,
        }
        for first in range(0, len(beginnings), max_batch_size)
    ]
    return ReadingJobs(text, "prefill", engine, [forced])


def judge_reading(
    jobs: ReadingJobs,
    engine_outputs: Mapping[str, Mapping[str, Any]],
    reference_outputs: Mapping[str, Mapping[str, Any]],
    *,
    engine_logits_dir: Path,
    reference_logits_dir: Path,
    gates: GatesSpec,
) -> Verdict:
    """Compare what the run drivers wrote."""
    steps = len(jobs.text.read)
    if jobs.method == "teacher-forced":
        name = engine_outputs[TEXT_JOB]["logits"]
        mine = read_logits(engine_logits_dir / name, steps, 1)[:, 0]
    else:
        parts = [
            read_logits(
                engine_logits_dir / engine_outputs[job["id"]]["logits"], 1, len(job["prompts"])
            )[0]
            for job in jobs.engine
        ]
        mine = np.concatenate(parts)
    reference = reference_outputs[TEXT_JOB]
    return compare_reading(
        jobs.text.read,
        mine,
        read_logits(reference_logits_dir / reference["logits"], steps, 1)[:, 0],
        read_logits(reference_logits_dir / reference["logits_fp32"], steps, 1)[:, 0],
        method=jobs.method,
        gates=gates,
    )


def compare_reading(
    tokens: Sequence[int],
    mine: Logits,
    theirs: Logits,
    exact: Logits,
    *,
    method: Method,
    gates: GatesSpec,
) -> Verdict:
    """Compare logits (steps, vocabulary) before each of `tokens`: engine, 16-bit model, fp32."""
    reason = incomparable(mine, theirs, exact)
    if reason:
        return _verdict(tokens, method, reason)
    rounding = Rounding.of(mine, theirs, exact)
    apart = divergence(mine, theirs, exact)
    agreed, explained = _agreement(mine, theirs, rounding, gates.rounding_factor)
    my_perplexity, their_perplexity = (perplexity(rows, list(tokens)) for rows in (mine, theirs))
    # What errors as small as those that `Rounding` passes over amount to: half their variance.
    kl_floor = rounding.floor**2 / 2
    reason = (
        rounding.beyond(gates.rounding_factor, gates.step_factor)
        or _kl_beyond(apart.kl, max(apart.reference_kl, kl_floor), gates.kl_factor)
        or _disagreement(explained, len(tokens), gates.top1_agreement)
        or _perplexity_off(my_perplexity, their_perplexity, gates.perplexity_tolerance)
    )
    return _verdict(
        tokens,
        method,
        reason,
        agreed_tokens=agreed,
        rounding_ratio=rounding.ratio,
        worst_step_ratio=rounding.worst,
        kl=apart.kl,
        reference_kl=apart.reference_kl,
        top1_agreement=apart.top1_agreement,
        explained_agreement=explained,
        perplexity=my_perplexity,
        reference_perplexity=their_perplexity,
    )


def _verdict(tokens: Sequence[int], method: Method, reason: str, **measured: Any) -> Verdict:
    told = {"agreed_tokens": 0, "rounding_ratio": None, "worst_step_ratio": None, **measured}
    return Verdict(
        job=TEXT_JOB,
        prompt=0,
        compared_tokens=len(tokens),
        near_tie=False,
        reason=reason,
        source=TEXT_JOB,
        method=method,
        **told,
    )


def _agreement(
    mine: Logits, theirs: Logits, rounding: Rounding, factor: float
) -> tuple[int, float]:
    """Steps with the same likeliest token before the first other one; and the share of steps
    where it is the same or rounding explains that it is not."""
    given, wanted = mine.argmax(-1), theirs.argmax(-1)
    differing = [int(step) for step in np.flatnonzero(given != wanted)]
    wrong = [
        step
        for step in differing
        if rounding.gap(step, int(wanted[step]), int(given[step]))
        > rounding.explained_gap(step, factor)
    ]
    return (differing[0] if differing else len(given)), 1 - len(wrong) / len(given)


def _kl_beyond(kl: float, usual: float, factor: float) -> str:
    if kl <= factor * usual:
        return ""
    return (
        f"the engine's KL divergence from fp32 is {kl:.2g} nats per token, {kl / usual:.1f} times "
        f"the original 16-bit model's; {factor:g} are allowed"
    )


def _disagreement(explained: float, steps: int, least: float) -> str:
    if explained >= least:
        return ""
    return (
        f"engine and original model find another token likeliest at {steps * (1 - explained):.0f} "
        f"of {steps} tokens, and rounding does not explain it; {steps * (1 - least):.1f} are "
        "allowed"
    )


def _perplexity_off(mine: float, theirs: float, tolerance: float) -> str:
    if abs(math.log(mine / theirs)) <= math.log1p(tolerance):
        return ""
    return (
        f"the text's perplexity is {mine:.3f} by the engine and {theirs:.3f} by the original "
        f"model, {abs(mine / theirs - 1):.1%} apart; {tolerance:.1%} are allowed"
    )
