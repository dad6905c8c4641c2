"""The environment and the checkpoint: what can be checked before an engine is built."""

import json
import subprocess
import time

from trtforge import checkpoint
from trtforge.checkpoint.inspect import inspect_checkpoint
from trtforge.engines.driver_process import run_driver
from trtforge.engines.trtllm.convert import ExamplesMissingError, convert_upstream
from trtforge.engines.trtllm.option_table import raw_table
from trtforge.engines.trtllm.probe import probe
from trtforge.gpu_check.expectations import compare_tables, expected_names, flags_of_help
from trtforge.gpu_check.tensors import compare_checkpoints
from trtforge.gpu_check.workbench import NotRunError, Workbench, require
from trtforge.progress import ignore

_HELP_TIMEOUT_S = 600.0
_API_TIMEOUT_S = 900.0


def check_toolchain(bench: Workbench) -> str:
    bench.probe = found = probe(
        bench.python, bench.release.version, bench.scratch("probe"), deep=True
    )
    bench.report.standin = bool(found.facts["standin"])
    toolchain, facts = found.toolchain, found.facts
    bench.report.versions = {
        name: str(value)
        for name, value in {
            "TensorRT-LLM": toolchain.backend_version,
            "TensorRT": toolchain.tensorrt_version,
            "CUDA": toolchain.cuda_version,
            "driver": toolchain.driver_version,
            "GPU": f"{facts['gpus']} × {toolchain.gpu_name}",
            "compute capability": toolchain.compute_capability,
            "PyTorch": facts["torch_version"],
            "transformers": facts["transformers_version"],
            "Python": facts["python"],
            "CPU": toolchain.cpu,
            "image": toolchain.image_digest,
        }.items()
        if value is not None
    }
    bench.measured("import tensorrt_llm", f"{facts['import_s']:.1f} s")
    bench.evidence = [json.dumps(facts, indent=1, default=str)]
    wanted = bench.release.tensorrt_series
    has = toolchain.tensorrt_version or ""
    if not bench.report.standin:
        require(has.startswith(wanted), f"TensorRT {has} is installed, {wanted} was expected")
    return f"{toolchain.gpu_name}, TensorRT {has}"


def check_help(bench: Workbench) -> str:
    tool = bench.found().facts["tools"]["trtllm-build"]
    done = subprocess.run(
        [tool, "--help"],
        capture_output=True,
        text=True,
        timeout=_HELP_TIMEOUT_S,
        check=False,
    )
    require(done.returncode == 0, f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    told = flags_of_help(done.stdout)
    known = {flag for row in raw_table(bench.release.table) for flag in row["flags"]}
    new, gone = sorted(told - known), sorted(known - told)
    bench.evidence = [*(f"new: {flag}" for flag in new), *(f"gone: {flag}" for flag in gone)]
    require(not new and not gone, f"{len(new)} unknown to our table, {len(gone)} not in the help")
    return f"{len(told)} options, all of them in our table"


def check_api(bench: Workbench) -> str:
    bench.api = answer = run_driver(
        "trtforge.gpu_check.api_driver",
        {"expected": expected_names(bench.release)},
        work_dir=bench.scratch("api"),
        timeout_s=_API_TIMEOUT_S,
        python=bench.interpreter(),
    )
    wrong = [n for n in answer["names"] if not n["found"] or n["missing"]]
    untold = [n for n in answer["names"] if n["found"] and n["missing"] is None]
    for entry in (*wrong, *untold):
        bench.evidence.append(f"{entry['name']}: missing {entry['missing']}; {entry['detail']}")
    require(not wrong, f"{len(wrong)} of {len(answer['names'])} are not as they are called")
    note = f"; of {len(untold)} the parameters cannot be told" if untold else ""
    return f"{len(answer['names'])} names found{note}"


def check_parser(bench: Workbench) -> str:
    answer = bench.api
    if answer is None or answer["parser"] is None:
        raise NotRunError(answer["parser_detail"] if answer else "the API was not looked at")
    lines = compare_tables(raw_table(bench.release.table), answer["parser"])
    bench.evidence = lines
    require(not lines, f"{len(lines)} differences")
    return f"{len(answer['parser'])} options agree in type, default and choices"


def check_conversion(bench: Workbench) -> str:
    out = bench.work_dir / "checkpoint"
    started = time.monotonic()
    checkpoint.convert(bench.model_dir, out, bench.target, on_progress=ignore)
    bench.measured("convert (ours)", f"{time.monotonic() - started:.1f} s")
    report = inspect_checkpoint(out)
    require(not report.problems, "; ".join(report.problems))
    bench.checkpoint = out
    return f"{report.architecture}, {report.layers} layers, {report.size_bytes / 1e6:.0f} MB"


def check_upstream_conversion(bench: Workbench) -> str:
    ours = bench.need(bench.checkpoint, "our conversion failed")
    out = bench.work_dir / "upstream-checkpoint"
    started = time.monotonic()
    try:
        convert_upstream(bench.interpreter(), bench.model_dir, out, bench.target, ignore)
    except ExamplesMissingError as error:
        raise NotRunError(str(error)) from error
    bench.measured("convert (upstream)", f"{time.monotonic() - started:.1f} s")
    same, lines = compare_checkpoints(ours, out)
    bench.evidence = lines
    require(same and not lines, f"{len(lines)} tensors differ, {same} are the same")
    return f"{same} tensors, the same bytes"
