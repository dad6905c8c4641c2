"""Parts of gpu.py that need the GPU to themselves: `gpu_phases.py NAME ANSWER < request.json`."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

# A CPU: only to try the script.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ceilings(request: dict[str, Any]) -> dict[str, Any]:
    """What this GPU copies (bytes read plus written) and multiplies, with random data."""
    del request
    size = 4 << 30 if DEVICE == "cuda" else 64 << 20
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy_s = median_s(lambda: target.copy_(source), 10)
    edge = 8192 if DEVICE == "cuda" else 512
    a, b = (torch.randn(edge, edge, dtype=torch.bfloat16, device=DEVICE) for _ in "ab")
    matmul_s = median_s(lambda: torch.mm(a, b), 20)
    return {
        "machine": machine(),
        "copy_bytes_per_s": 2 * size / copy_s,
        "matmul_flops": 2 * edge**3 / matmul_s,
    }


def machine() -> str:
    if DEVICE == "cpu":
        return f"a CPU, PyTorch {torch.__version__}"
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"{gpu}, PyTorch {torch.__version__}"


def weights(request: dict[str, Any]) -> dict[str, Any]:
    """A Hugging Face directory with random bf16 weights of plausible size."""
    hidden, layers, heads, kv_heads, inner, vocab = request["shape"]
    directory, head = Path(request["model_dir"]), hidden // heads
    directory.mkdir()
    index: dict[str, str] = {}

    def make(rows: int, columns: int) -> Any:
        values = torch.empty((rows, columns), dtype=torch.bfloat16, device=DEVICE)
        return values.normal_(0, columns**-0.5).cpu()

    def save(name: str, tensors: dict[str, Any]) -> None:
        save_file(tensors, directory / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    def near_one() -> Any:
        return (1 + 0.1 * torch.randn(hidden)).to(torch.bfloat16)

    save(
        "model-head.safetensors",
        {
            "model.embed_tokens.weight": make(vocab, hidden),
            "lm_head.weight": make(vocab, hidden),
            "model.norm.weight": near_one(),
        },
    )
    for layer in range(layers):
        names = {
            "self_attn.q_proj": (heads * head, hidden),
            "self_attn.k_proj": (kv_heads * head, hidden),
            "self_attn.v_proj": (kv_heads * head, hidden),
            "self_attn.o_proj": (hidden, heads * head),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}{name}.weight": make(*size) for name, size in names.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = near_one()
        save(f"model-{layer:03}.safetensors", tensors)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return {}


@torch.inference_mode()
def check(request: dict[str, Any]) -> dict[str, Any]:
    """Along the engine's own tokens, is each what eager bf16 says, or within rounding of it?

    A token that is not eager's is excused where eager's logit of its own choice is above that of
    the engine's by at most 6 times eager's distance from fp32 (root mean square of that step): two
    logits, each off in two computations, so three standard deviations of what rounding does.
    """
    narrow = load(request["model_dir"], torch.bfloat16)
    sixteen = [logits_along(narrow, job) for job in request["jobs"]]
    del narrow
    wide = load(request["model_dir"], torch.float32)
    batches = []
    for job, rows in zip(request["jobs"], sixteen, strict=True):
        raw = Path(request["logits_dir"], job["logits"]).read_bytes()
        steps, batch = len(job["tokens"][0]), len(job["prompts"])
        engine = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(steps, batch, -1)
        facts = {"tokens": 0, "equal": 0, "excused": 0, "wrong": 0, "largest_gap": 0.0}
        squares = [0.0, 0.0]
        for row, (mine, exact) in enumerate(zip(rows, logits_along(wide, job), strict=True)):
            squares[0] += float((engine[:, row] - exact).square().mean())
            squares[1] += float((mine - exact).square().mean())
            for step, token in enumerate(job["tokens"][row]):
                best = int(mine[step].argmax())
                gap = float(mine[step][best] - mine[step][token])
                noise = 6 * float((mine[step] - exact[step]).square().mean().sqrt())
                # The engine says what it has chosen.
                chosen = int(engine[step, row].argmax()) == token
                verdict = "equal" if best == token else "excused" if gap <= noise else "wrong"
                facts["tokens"] += 1
                facts[verdict if chosen else "wrong"] += 1
                facts["largest_gap"] = max(facts["largest_gap"], gap)
        facts["error_ratio"] = (squares[0] / squares[1]) ** 0.5
        batches.append(facts)
    return {"batches": batches}


def logits_along(model: Any, job: dict[str, Any]) -> list[Any]:
    """fp32 logits (steps, vocabulary) of each prompt, on the CPU."""
    found = []
    for prompt, tokens in zip(job["prompts"], job["tokens"], strict=True):
        ids = torch.tensor([[*prompt, *tokens[:-1]]], device=DEVICE)
        answer = model(ids, use_cache=False, logits_to_keep=len(tokens))
        found.append(answer.logits[0].float().cpu())
    return found


@torch.inference_mode()
def baseline(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds a decode step takes the transformers model, compiled and eager."""
    from transformers import StaticCache

    model = load(request["model_dir"], torch.bfloat16)
    torch.manual_seed(request["seed"])
    steps, batch = request["output_tokens"], request["batch"]
    ids = torch.randint(0, model.config.vocab_size, (batch, request["input_tokens"])).to(DEVICE)
    # One cache, since a recorded step belongs to the places it has read.
    cache = StaticCache(config=model.config, max_cache_len=request["input_tokens"] + steps)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)

    def generate(step: Callable[..., Any]) -> float:
        cache.reset()
        answer = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = answer.logits[:, -1:].argmax(-1)
        times = [time.perf_counter()]
        for _ in range(steps - 1):
            torch.compiler.cudagraph_mark_step_begin()
            logits = step(token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(-1)
            token.tolist()  # as streaming needs
            times.append(time.perf_counter())
        return statistics.median(after - before for before, after in pairwise(times))

    for _ in range(2):  # compiles, then records
        generate(compiled)
    step_s = statistics.median(generate(compiled) for _ in range(3))
    return {"step_s": step_s, "eager_s": generate(model)}


def load(model_dir: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return model.to(DEVICE).eval()


def median_s(work: Callable[[], object], times: int) -> float:
    taken = []
    for turn in range(times + 3):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        if turn >= 3:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    phase = {f.__name__: f for f in (ceilings, weights, check, baseline)}[sys.argv[1]]
    Path(sys.argv[2]).write_text(json.dumps(phase(json.loads(sys.stdin.read()))))
