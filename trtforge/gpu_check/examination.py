"""Run every check, one after the other, on one small model; a failure ends only what needs it."""

from collections.abc import Callable
from pathlib import Path

from trtforge.engines.trtllm.versions import release
from trtforge.gpu_check import engine_checks, toolchain_checks
from trtforge.gpu_check.report import Report
from trtforge.gpu_check.workbench import OnCheck, Workbench

_CHECKS: tuple[tuple[str, Callable[[Workbench], str]], ...] = (
    ("toolchain", toolchain_checks.check_toolchain),
    ("options of trtllm-build --help", toolchain_checks.check_help),
    ("names and parameters of the Python API", toolchain_checks.check_api),
    ("option table against the real parser", toolchain_checks.check_parser),
    ("conversion (our converter)", toolchain_checks.check_conversion),
    ("conversion equals upstream's script", toolchain_checks.check_upstream_conversion),
    ("first build, without a timing cache", engine_checks.check_first_build),
    ("files and config.json of the engine", engine_checks.check_files),
    ("log lines of the build", engine_checks.check_log),
    ("second build, with the timing cache", engine_checks.check_second_build),
    ("run: tokens, times, logits", engine_checks.check_run),
    ("streaming gives every token its time", engine_checks.check_streaming),
    ("the answer is the original model's", engine_checks.check_answer),
    ("trtllm-bench", engine_checks.check_bench),
)


def examine(
    python: Path | None,
    version: str,
    *,
    model_dir: Path,
    reference_python: Path,
    work_dir: Path,
    on_check: OnCheck = lambda _check: None,
) -> Report:
    """Check everything that one GPU can show.

    Args:
        python: Interpreter that has TensorRT-LLM.
        version: The release it should have; empty for the default.
        model_dir: A small Hugging Face model with a tokenizer.
        reference_python: Interpreter with PyTorch and transformers, for the answer to compare with.
        work_dir: An empty directory; everything made is left there.
        on_check: Called with each check when it is over.

    Raises:
        InputError: There is no such release.
    """
    used = release(version)
    bench = Workbench(python, used, model_dir, reference_python, work_dir, Report(used.version))
    for name, check in _CHECKS:
        with bench.recorded(name, on_check) as record:
            record(check(bench))
    return bench.report
