"""What is read in the output of `trtllm-build`: phases with times, and the causes of failures."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.engines.trtllm import build_failures as failures
from trtforge.engines.trtllm.build_failures import diagnose
from trtforge.engines.trtllm.build_log import PHASES, BuildLog
from trtforge.errors import BuildError

PREFIX = "[11/22/2026-10:11:12] [TRT-LLM] [I] "
LOG = Path("/work/build_driver.log")


def one_rank(rank: int) -> list[tuple[float, str]]:
    """Seconds since the line before, and the line, as upstream prints it."""
    return [
        (12.5, "Total time of constructing network from module object 2.5 seconds"),
        (1.0, "Total time to initialize the weights in network Unnamed Network 0: 00:00:01"),
        (0.0, "Build TensorRT engine Unnamed Network 0"),
        (90.0, "Total time of building Unnamed Network 0: 00:01:30"),
        (0.1, "Timing cache serialized to model.cache"),
        (0.0, "Build phase peak memory: 4096.00 MB, children: 1024.00 MB"),
        (0.0, f"Serializing engine to engine/rank{rank}.engine..."),
        (9.9, "Engine serialized. Total time: 00:00:09"),
    ]


def read(lines: list[tuple[float, str]], at_once: int = 1) -> tuple[BuildLog, list[str]]:
    log, now, told = BuildLog(100.0, at_once), 100.0, []
    for seconds, line in lines:
        now += seconds
        told.append(log.feed(PREFIX + line, now))
    return log, [line for line in told if line]


class TestPhases:
    def test_each_is_measured_between_the_lines_that_end_it(self) -> None:
        log, told = read(one_rank(0))
        assert [(phase.name, round(phase.seconds, 3)) for phase in log.phases] == [
            ("load", 10.0),
            ("construct", 2.5),
            ("weights", 1.0),
            ("compile", 90.0),
            ("save", 10.0),
        ]
        assert tuple(phase.name for phase in log.phases) == PHASES
        assert [phase.said_s for phase in log.phases] == [None, 2.5, 1.0, 90.0, 9.0]
        assert told[1] == "compiling with TensorRT"
        assert told[-1] == "writing rank0.engine"

    def test_a_day_that_upstreams_clock_does_not_show_is_measured(self) -> None:
        lines = one_rank(0)
        lines[3] = (86400.0 + 60, "Total time of building Unnamed Network 0: 00:01:00")
        log, _ = read(lines)
        assert log.phases[3].seconds == 86460.0

    def test_one_rank_after_the_other(self) -> None:
        end = (0.0, "Total time of building all engines: 00:04:00")
        log, told = read([*one_rank(0), *one_rank(1), end])
        assert [phase.rank for phase in log.phases] == [0] * 5 + [1] * 5
        assert len(log.phases) == 10
        assert "compiling with TensorRT (rank 1)" in told

    def test_where_lines_are_mixed_upstreams_own_times_count(self) -> None:
        mixed = [line for pair in zip(one_rank(0), one_rank(1), strict=True) for line in pair]
        log, _ = read(mixed, at_once=2)
        assert len(log.phases) == 10
        assert [p.seconds for p in log.phases if p.name == "compile"] == [90.0, 90.0]

    def test_memory_that_upstream_tells_of(self) -> None:
        assert read(one_rank(0))[0].said_peak_bytes == 5 << 30

    def test_a_network_constructed_in_no_time(self) -> None:
        line = "Total time of constructing network from module object 9.5e-07 seconds"
        assert [phase.name for phase in read([(1.0, line)])[0].phases] == ["load", "construct"]

    def test_what_becomes_of_the_timing_cache(self) -> None:
        log = BuildLog(0.0)
        log.feed("[W] Invalid timing cache, using freshly created one", 1.0)
        assert (log.cache_unreadable, log.cache_refused) == (True, False)
        log.feed("[TRT] [W] The timing cache does not match the device", 1.0)
        assert log.cache_refused

    @given(st.text())
    def test_any_line_can_be_read(self, line: str) -> None:
        BuildLog(0.0).feed(line, 1.0)


CASES: list[tuple[type[BuildError], str, str]] = [
    (
        failures.GpuMemoryError,
        "[TRT] [E] plugin node requires 210571452800 bytes of scratch space, but only 84825604096",
        "210571452800 bytes (210.6 GB) of scratch space",
    ),
    (
        failures.GpuMemoryError,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has",
        "for 2.00 GiB",
    ),
    (
        failures.GpuMemoryError,
        "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)",
        "1073741824 bytes",
    ),
    (failures.HostMemoryError, "concurrent.futures.process.BrokenProcessPool: A process", "Broken"),
    (failures.HostMemoryError, "terminate called after throwing 'std::bad_alloc'", "bad_alloc"),
    (failures.HostMemoryError, "OSError: [Errno 12] Cannot allocate memory", "Cannot allocate"),
    (failures.DiskFullError, "OSError: [Errno 28] No space left on device", "No space left"),
    (failures.DiskFullError, "OSError: [Errno 122] Disk quota exceeded", "quota"),
    (failures.NoGpuError, "ValueError: max_workers must be greater than 0", "max_workers"),
    (failures.NoGpuError, "RuntimeError: No CUDA GPUs are available", "No CUDA GPUs"),
    (
        failures.NoGpuError,
        "ImportError: libcuda.so.1: cannot open shared object file: No such file",
        "libcuda",
    ),
    (
        failures.DriverTooOldError,
        "CUDA driver version is insufficient for CUDA runtime version",
        "insufficient",
    ),
    (
        failures.TensorRtMismatchError,
        "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed",
        "stdVersionRead",
    ),
    (
        failures.TensorRtMismatchError,
        "ImportError: libnvinfer.so.10: cannot open shared object file: No such file or directory",
        "libnvinfer",
    ),
    (
        failures.GpuUnsupportedError,
        "CUDA error: no kernel image is available for execution on the device",
        "no kernel image",
    ),
    (failures.MpiFailedError, "Assertion failed: mpiSize == tp * pp", "mpiSize"),
    (
        failures.MpiFailedError,
        "ImportError: libmpi.so.40: cannot open shared object file",
        "libmpi",
    ),
    (failures.MpiFailedError, "[x:1] [[INVALID],INVALID] ORTE_ERROR_LOG: Not found", "ORTE"),
    (
        failures.OptionRefusedError,
        "trtllm-build: error: unrecognized arguments: --gemm_plugin auto",
        "--gemm_plugin auto",
    ),
    (
        failures.CheckpointRefusedError,
        "TypeError: Mapping.__init__() got an unexpected keyword argument 'auto_parallel'",
        "auto_parallel",
    ),
    (failures.CheckpointRefusedError, "Required but not provided tensors:{'lm_head'}", "lm_head"),
    (
        failures.PluginTypeError,
        "AssertionError: gpt_attention_plugin dtype float16 does not match",
        "float16",
    ),
]


class TestCauses:
    @pytest.mark.parametrize(
        ("error", "line", "said"), CASES, ids=[f"{c[0].__name__}: {c[2]}" for c in CASES]
    )
    def test_a_known_line_is_a_named_error_with_a_remedy_and_the_log(
        self, error: type[BuildError], line: str, said: str
    ) -> None:
        found = diagnose(1, f"{PREFIX}before\n{PREFIX}{line}\nTraceback (most recent call)", LOG)
        assert type(found) is error
        assert said in found.problem
        assert PREFIX not in found.problem
        assert len(found.remedy) > 40
        assert str(LOG) in found.remedy
        assert "\n" not in str(found)

    @pytest.mark.parametrize("exit_code", [-9, 137])
    def test_a_kill_is_taken_for_want_of_memory(self, exit_code: int) -> None:
        found = diagnose(exit_code, "loading\n", LOG)
        assert type(found) is failures.HostMemoryError
        assert "engine.options.workers" in found.remedy

    @pytest.mark.parametrize("exit_code", [-11, 139])
    def test_another_signal_is_a_crash(self, exit_code: int) -> None:
        found = diagnose(exit_code, "the last line\n", LOG)
        assert type(found) is failures.TrtllmCrashedError
        assert "signal 11: the last line" in found.problem

    def test_the_cause_counts_and_not_what_it_caused(self) -> None:
        both = "OutOfMemory (Requested size was 8 bytes.)\nOSError: [Errno 28] No space left\n"
        assert type(diagnose(1, both, LOG)) is failures.DiskFullError
        killed = "Required but not provided tensors\ntorch.OutOfMemoryError: CUDA out of memory."
        assert type(diagnose(1, killed, LOG)) is failures.GpuMemoryError

    def test_an_unknown_failure_tells_the_last_lines(self) -> None:
        lines = "\n".join(f"line {number}" for number in range(100))
        found = diagnose(3, lines + "\n\n", LOG)
        assert type(found) is failures.TrtllmBuildFailedError
        assert found.problem.endswith("line 98 | line 99")
        assert "line 90" not in found.problem
        assert str(LOG) in found.remedy

    def test_silence_is_told_too(self) -> None:
        assert diagnose(1, "", LOG).problem == "trtllm-build ended with exit code 1: no output"

    @pytest.mark.parametrize(
        "line",
        [
            "Invalid timing cache, using freshly created one",
            "Option --gather_generation_logits is deprecated",
            "max_input_len is not required and will be ignored",
            "Set gpt_attention_plugin to auto.",
            "Set dtype to bfloat16.",
            "Plugin dtype is bfloat16",
            "[TRT] [W] Tactic Device request: 200816MB Available: 78987MB. Device memory is "
            "insufficient to use tactic.",
            "[TRT] [I] [MemUsageChange] TensorRT-managed allocation: GPU +0, now: CPU 0, GPU 0",
        ],
    )
    def test_what_a_good_build_prints_is_no_cause(self, line: str) -> None:
        assert type(diagnose(1, PREFIX + line, LOG)) is failures.TrtllmBuildFailedError

    @given(st.text(), st.integers(-64, 255).filter(bool))
    def test_any_output_and_exit_code_is_one_line(self, text: str, exit_code: int) -> None:
        assert len(str(diagnose(exit_code, text, LOG)).splitlines()) == 1
