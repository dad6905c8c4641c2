"""The TensorRT-LLM checkpoint format: from a Hugging Face directory to a checkpoint directory.

`preflight` checks a model and plans its conversion without writing; `convert` carries it out.
Numpy and ml_dtypes only, streaming: neither torch nor TensorRT-LLM is needed, nor the memory for
a whole model.
"""

from trtforge.checkpoint.convert import convert
from trtforge.checkpoint.hf_config import ModelConfig, parse_hf_config, read_hf_config
from trtforge.checkpoint.plan import ConversionPlan
from trtforge.checkpoint.preflight import preflight
from trtforge.checkpoint.target import Target
from trtforge.checkpoint.trtllm_config import trtllm_config

__all__ = [
    "ConversionPlan",
    "ModelConfig",
    "Target",
    "convert",
    "parse_hf_config",
    "preflight",
    "read_hf_config",
    "trtllm_config",
]
