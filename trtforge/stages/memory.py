"""Whether an engine fits into memory, before anything is pulled or a GPU is taken."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from trtforge.checkpoint.config_keys import CONFIG_NAME, ConfigValueError
from trtforge.checkpoint.hf_config import read_hf_config
from trtforge.checkpoint.trtllm_config import trtllm_config
from trtforge.engines.aoti import memory as aoti
from trtforge.engines.base import Toolchain
from trtforge.engines.gpu import GpuModel, LocalGpus
from trtforge.engines.host_memory import available_memory_bytes
from trtforge.engines.memory import MemoryPlan
from trtforge.engines.trtllm import memory as trtllm
from trtforge.sources import ResolvedSource, fetch
from trtforge.spec import BuildSpec, CheckpointSpec, EngineSpec
from trtforge.stages.target import checkpoint_target


def plan_memory(
    spec: BuildSpec,
    resolved: ResolvedSource,
    *,
    token: SecretStr | None,
    gpus: LocalGpus,
    work_root: Path,
    gpu_name: str | None = None,
    gpu_bytes: int | None = None,
) -> MemoryPlan | None:
    """What the engine needs of a GPU beside what there is; only config.json is fetched.

    Of TensorRT-LLM, where this machine has the GPU, its free memory and disk count too. Where it
    has none, the engine is built on another machine, of which nothing is known but `gpu_bytes`.

    Args:
        gpus: Of this machine.
        gpu_name: Which of them builds; None is the first.
        gpu_bytes: Of a GPU somewhere else; None: of this machine's.

    Returns:
        None when config.json says too little of an architecture that only upstream's converter
        knows.

    Raises:
        InputError: config.json is not what the converter takes.
        ServiceError: The source does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="trtforge-config-") as scratch:
        only = tuple(file for file in resolved.files if file.path == CONFIG_NAME)
        fetch(replace(resolved, files=only), Path(scratch) / "model", token=token)
        config = _checkpoint_config(Path(scratch) / "model", spec.checkpoint)
    here = None if gpu_bytes else _local(gpus, gpu_name)
    gpu_bytes = gpu_bytes or (here.memory_bytes if here else None)
    if spec.engine.backend == "aoti":
        return aoti.estimate(config, spec.engine, gpu_bytes=gpu_bytes)
    try:
        return trtllm.estimate(
            config,
            spec.engine,
            gpu_bytes=gpu_bytes,
            host_bytes=available_memory_bytes() if here else None,
            disk_bytes=free_disk_bytes(work_root) if here else None,
            release=spec.checkpoint.target,
            compute_capability=here.compute_capability if here else None,
        )
    except ConfigValueError:
        if spec.checkpoint.tool == "upstream":
            return None
        raise


def runs_on_gpu(engine: EngineSpec, toolchain: Toolchain | None) -> bool | None:
    """Whether the engine will lie in a GPU's memory.

    Args:
        toolchain: What compiles; None: not known.

    Returns:
        None where nobody can tell yet: aoti takes what there is.
    """
    if engine.backend == "trtllm":
        return True
    device = toolchain.device if toolchain else engine.options.get("device", "auto")
    return None if device == "auto" else device == "cuda"


def free_disk_bytes(directory: Path) -> int:
    """Free space where `directory` is, or would be made."""
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    return shutil.disk_usage(there).free


def _local(gpus: LocalGpus, name: str | None) -> GpuModel | None:
    return next((gpu for gpu in gpus.models if name in (None, gpu.name)), None)


def _checkpoint_config(model_dir: Path, checkpoint: CheckpointSpec) -> Mapping[str, Any]:
    target = checkpoint_target(checkpoint)
    if checkpoint.tool == "trtforge":
        return trtllm_config(read_hf_config(model_dir), target)
    raw: dict[str, Any] = json.loads((model_dir / CONFIG_NAME).read_text(encoding="utf-8"))
    heads, hidden = raw.get("num_attention_heads"), raw.get("hidden_size")
    usual = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 0
    return raw | {
        "architecture": "",
        "dtype": checkpoint.dtype,
        "head_size": raw.get("head_dim") or usual,
        "num_key_value_heads": raw.get("num_key_value_heads") or heads,
        "moe": {"num_experts": raw.get("num_local_experts") or raw.get("num_experts")},
        "mapping": {"tp_size": checkpoint.tp, "pp_size": checkpoint.pp},
        "quantization": {},
    }
