"""Number formats: from what a model is stored in to what the checkpoint is written in."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

# safetensors name → numpy type; what conversion can read.
SOURCE_DTYPES: Mapping[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
# TensorRT-LLM name → safetensors name; what conversion can write.
TARGET_DTYPES: Mapping[str, str] = {"bfloat16": "BF16"}


def cast(source: memoryview, source_dtype: str, target: memoryview, target_dtype: str) -> None:
    """Convert the numbers of `source` into `target`, rounding to nearest, ties to even.

    Finite numbers beyond the largest of the target become infinite, as they do in PyTorch; NaN
    stays NaN. Both views must hold the same count of numbers. Dtypes are safetensors names.
    """
    numbers = np.frombuffer(source, SOURCE_DTYPES[source_dtype])
    with np.errstate(all="ignore"):
        np.copyto(np.frombuffer(target, SOURCE_DTYPES[target_dtype]), numbers, casting="unsafe")
