"""Where a release keeps its examples: the conversion scripts are not part of the wheel.

Standard library only: drivers use it.
"""

import importlib.util
import os
from pathlib import Path

EXAMPLES_VARIABLE = "TRTLLM_EXAMPLES"
# The container's path is not documented ([inf] of the reference): it is looked for, not assumed.
_USUAL_ROOTS = ("/app/tensorrt_llm", "/code/tensorrt_llm", "/opt/tensorrt_llm")


def find_examples() -> "Path | None":
    """The first candidate that is a directory with an `examples` of TensorRT-LLM in it."""
    return next((root for root in candidate_roots() if _has_examples(root)), None)


def candidate_roots() -> "list[Path]":
    """Directories that may hold `examples`, the most explicit first."""
    roots = []
    named = os.environ.get(EXAMPLES_VARIABLE)
    if named:
        # People point at the checkout or at the folder itself.
        path = Path(named).expanduser().absolute()
        roots += [path.parent, path] if path.name == "examples" else [path]
    roots += [Path(root) for root in _USUAL_ROOTS]
    spec = importlib.util.find_spec("tensorrt_llm")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).resolve().parent
        # An editable install of a checkout, and a copy beside or inside the package.
        roots += [package.parent, package]
    return roots


def _has_examples(root: Path) -> bool:
    folder = root / "examples"
    return (folder / "run.py").is_file() or any(folder.glob("**/convert_checkpoint.py"))
