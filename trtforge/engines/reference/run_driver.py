"""Driver: the original Hugging Face model in eager PyTorch, the yardstick for every engine.

It performs the same jobs as an engine's run driver (`trtforge.engines.jobs`), in the model's
16-bit dtype, with the key-value cache and attention that `transformers` uses by default. For jobs
with `logits` it also runs the same token sequences through the model in fp32 and writes
`<job id>.fp32.f32`: how far the 16-bit model itself is from that says how much of an engine's
difference is rounding.

Request:  model_dir, dtype, threads, device, jobs, logits_dir
Result:   load_s, outputs (each also names its `logits_fp32` file), versions
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError, Report, drive
from trtforge.engines.jobs import perform


@dataclass
class _Generation:
    tokens: "list[list[int]]"
    step_s: "list[float]"
    logits: "list[Any]" = field(default_factory=list)


def run(request: dict[str, Any], report: Report) -> dict[str, Any]:
    import torch
    import transformers

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    started = time.perf_counter()
    report("loading the reference model", 0, None)
    model = _load(request, request["dtype"])
    load_s = time.perf_counter() - started

    logits_dir = Path(request["logits_dir"])
    outputs = perform(request["jobs"], partial(_generate, model), logits_dir, report)
    del model
    answered = zip(request["jobs"], outputs, strict=True)
    checked = [(job, output) for job, output in answered if output["logits"]]
    if checked:
        wide = _load(request, "float32")
        for number, (job, output) in enumerate(checked):
            report(f"fp32 logits of {job['id']}", number, len(checked))
            output["logits_fp32"] = f"{job['id']}.fp32.f32"
            _write_fp32(wide, job, output, logits_dir / output["logits_fp32"])
    return {
        "load_s": load_s,
        "outputs": outputs,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _load(request: dict[str, Any], dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        request["model_dir"],
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model.to(request["device"]).eval()


def _generate(model: Any, job: dict[str, Any], keep_logits: bool) -> _Generation:
    import torch

    longest = max(len(prompt) for prompt in job["prompts"])
    ragged = any(len(prompt) != longest for prompt in job["prompts"])
    if ragged and keep_logits:
        raise DriverError(
            "ragged-batch", "the reference judges prompts of one length at a time", "Split the job"
        )
    stop_ids = job.get("stop_ids", ())
    forced = torch.tensor(job["forced"], device=model.device) if "forced" in job else None
    with torch.inference_mode():
        started = time.perf_counter()
        # Prompts of several lengths begin later, behind a mask.
        rows = [[0] * (longest - len(prompt)) + prompt for prompt in job["prompts"]]
        ids = torch.tensor(rows, device=model.device)
        mask = None
        if ragged:
            read = [[int(n >= longest - len(p)) for n in range(longest)] for p in job["prompts"]]
            mask = torch.tensor(read, device=model.device)
        out = _Generation([[] for _ in job["prompts"]], [])
        finished = [False] * len(out.tokens)
        past = None
        for step in range(job["max_new_tokens"]):
            answer = model(
                ids, past_key_values=past, use_cache=True, logits_to_keep=1, attention_mask=mask
            )
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            past = answer.past_key_values
            logits = answer.logits[:, -1].float()
            if keep_logits:
                out.logits.append(logits.cpu())
            ids = logits.argmax(-1, keepdim=True) if forced is None else forced[:, step, None]
            chosen = ids[:, 0].tolist()
            out.step_s.append(time.perf_counter() - started)
            for row, token in enumerate(chosen):
                if not finished[row]:
                    out.tokens[row].append(token)
                    finished[row] = token in stop_ids
            if all(finished):
                break
    return out


def _write_fp32(wide: Any, job: dict[str, Any], output: dict[str, Any], path: Path) -> None:
    """fp32 logits (steps, batch, vocabulary) along the sequences the 16-bit model chose."""
    import torch

    steps = len(output["step_s"][-1])
    rows = [
        prompt + tokens[: steps - 1]
        for prompt, tokens in zip(job["prompts"], output["tokens"], strict=True)
    ]
    with torch.inference_mode():
        ids = torch.tensor(rows, device=wide.device)
        logits = wide(ids, use_cache=False, logits_to_keep=steps).logits
    path.write_bytes(logits.transpose(0, 1).contiguous().cpu().numpy().astype("<f4").tobytes())


if __name__ == "__main__":
    drive(run)
