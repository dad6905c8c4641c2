"""Driver: a GGUF file → a bfloat16 Hugging Face directory with tokenizer, by transformers.

Request:  gguf (path), out_dir (must not exist)
Result:   files (names below out_dir)
"""

from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import Report, drive


def dequantise(request: dict[str, Any], report: Report) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf, out_dir = Path(request["gguf"]), Path(request["out_dir"])
    report("dequantising", 0, 3)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    report("saving the weights", 1, 3)
    model.save_pretrained(out_dir)
    report("saving the tokenizer", 2, 3)
    tokenizer = AutoTokenizer.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, local_files_only=True
    )
    tokenizer.save_pretrained(out_dir)
    report("saved", 3, 3)
    return {"files": sorted(path.name for path in out_dir.iterdir())}


if __name__ == "__main__":
    drive(dequantise)
