"""How `trtllm-build` fails, hangs and is ended: each way has its name, and leaves only its log.

In the stand-in toolchain, which prints what upstream prints (tests/standin/README.md).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from standin.environment import HERE, standin_environment
from standin_build import TOOLCHAIN, Place, checkpoint, processes_of, with_options

from trtforge.engines import driver_process
from trtforge.engines.driver_process import DriverTimeoutError
from trtforge.engines.trtllm import build_failures as failures
from trtforge.engines.trtllm.backend import CheckpointUnreadableError
from trtforge.engines.trtllm.engine_directory import EngineIncompleteError
from trtforge.engines.trtllm.options import OptionConflictError, OptionUnknownError
from trtforge.engines.trtllm.probe import TrtllmMissingError, TrtllmPythonUnsetError
from trtforge.errors import BuildError, InputError

Configure = Callable[..., None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Choose what the stand-in does: `configure(fault="hang", gpus=2, version="1.0.0")`."""
    for name, value in standin_environment(TRTFORGE_STANDIN_MARK=str(tmp_path)).items():
        monkeypatch.setenv(name, value)

    def choose(**how: object) -> None:
        for name, value in how.items():
            monkeypatch.setenv(f"TRTFORGE_STANDIN_{name.upper()}", str(value))

    return choose


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_process, "_TERM_GRACE_S", 0.3)


@pytest.fixture(autouse=True)
def _nothing_goes_on(tmp_path: Path) -> Iterator[None]:
    """Whatever happens in a test here, no process of it is left."""
    yield
    deadline = time.monotonic() + 10
    while (left := processes_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return partial(checkpoint, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def place(tmp_path: Path, checkpoints: Callable[..., Path], configure: Configure) -> Place:
    del configure
    (tmp_path / "work").mkdir()
    return Place(tmp_path / "work", tmp_path / "engine", tmp_path / "model.cache", checkpoints())


FAILURES: list[tuple[str, type[BuildError], str]] = [
    ("gpu-oom", failures.GpuMemoryError, "210571452800 bytes"),
    ("cuda-oom", failures.GpuMemoryError, "2.00 GiB"),
    ("host-oom", failures.HostMemoryError, "signal 9"),
    ("disk-full", failures.DiskFullError, "No space left"),
    ("disk-full-cache", failures.DiskFullError, "No space left"),
    ("no-gpu", failures.NoGpuError, "No CUDA GPUs"),
    ("wrong-tensorrt", failures.TensorRtMismatchError, "kSERIALIZATION_VERSION"),
    ("wrong-gpu", failures.GpuUnsupportedError, "no kernel image"),
    ("driver-old", failures.DriverTooOldError, "insufficient"),
    ("mpi", failures.MpiFailedError, "ORTE"),
    ("mpi-size", failures.MpiFailedError, "mpiSize"),
    ("missing-libmpi", failures.MpiFailedError, "libmpi"),
    ("unknown-option", failures.OptionRefusedError, "--gemm_plugin"),
    ("mapping-keys", failures.CheckpointRefusedError, "auto_parallel"),
    ("missing-weights", failures.CheckpointRefusedError, "qkv.bias"),
    ("plugin-dtype", failures.PluginTypeError, "gpt_attention_plugin"),
    ("engine-none", failures.TrtllmBuildFailedError, "Engine building failed"),
    ("unknown", failures.TrtllmBuildFailedError, "moon"),
    ("exit-3", failures.TrtllmBuildFailedError, "exit code 3"),
    ("segfault", failures.TrtllmCrashedError, "signal 11"),
    ("no-files", EngineIncompleteError, "config.json"),
    ("no-config", EngineIncompleteError, "config.json"),
    ("rubbish-config", EngineIncompleteError, "config.json"),
    ("missing-rank", EngineIncompleteError, "rank0.engine"),
    ("empty-rank", EngineIncompleteError, "rank0.engine"),
    ("other-world", EngineIncompleteError, "2 ranks"),
    ("no-cache", EngineIncompleteError, "model.cache"),
    ("unknown,grandchildren", failures.TrtllmBuildFailedError, "moon"),
]


class TestFailures:
    @pytest.mark.parametrize(
        ("fault", "error", "said"), FAILURES, ids=[fault for fault, _, _ in FAILURES]
    )
    def test_it_is_named_with_the_log_kept_and_nothing_else_left(
        self,
        place: Place,
        configure: Configure,
        fault: str,
        error: type[BuildError],
        said: str,
    ) -> None:
        configure(fault=fault)
        with pytest.raises(error) as caught:
            place.build()
        assert type(caught.value) is error
        assert said in caught.value.problem
        assert str(place.log_file) in caught.value.remedy
        assert "\n" not in str(caught.value)
        assert list(place.work_dir.iterdir()) == [place.log_file]
        assert place.log_file.read_text().startswith("trtforge: running")
        assert not place.engine_dir.exists()
        assert not place.cache.exists()

    def test_a_worker_that_is_killed(
        self, place: Place, configure: Configure, checkpoints: Callable[..., Path]
    ) -> None:
        configure(fault="host-oom-worker", gpus=2)
        place.checkpoint = checkpoints(tp=2)
        with pytest.raises(failures.HostMemoryError, match="BrokenProcessPool"):
            place.build(with_options(workers=2))

    def test_the_last_of_several_ranks_missing(
        self, place: Place, configure: Configure, checkpoints: Callable[..., Path]
    ) -> None:
        configure(fault="missing-rank")
        place.checkpoint = checkpoints(tp=2)
        with pytest.raises(EngineIncompleteError, match=r"rank1\.engine missing"):
            place.build()
        assert not place.engine_dir.exists()

    def test_several_workers_without_a_gpu(
        self, place: Place, configure: Configure, checkpoints: Callable[..., Path]
    ) -> None:
        configure(gpus=0)
        place.checkpoint = checkpoints(tp=2)
        with pytest.raises(failures.NoGpuError, match="max_workers"):
            place.build(with_options(workers=2))

    def test_output_that_is_no_text_does_no_harm(self, place: Place, configure: Configure) -> None:
        configure(fault="rubbish-output")
        assert len(place.build().steps) == 5
        assert max(len(line) for line in place.log) <= 1 << 16

    def test_limits_that_upstream_lowers_are_told(self, place: Place, configure: Configure) -> None:
        configure(fault="clip")
        assert place.build().warnings == ("max_seq_len: asked for 512, the engine has 511",)

    def test_an_environment_without_trtllm_build(self, place: Place) -> None:
        with pytest.raises(TrtllmMissingError, match="no trtllm-build") as caught:
            place.build(python=Path(sys.executable))
        assert caught.value.field == "TRTFORGE_TRTLLM_PYTHON"


class TestBeforeAnyProcess:
    """With an interpreter that does not exist: whatever is raised here came before it was tried."""

    NOWHERE = Path("/nonexistent/python")

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"gemm_plugn": "auto"}, OptionUnknownError),
            ({"multiple_profiles": True, "opt_num_tokens": 8}, OptionConflictError),
            ({"gemm_plugin": "float16"}, OptionConflictError),
            ({"pp_reduce_scatter": True}, OptionConflictError),
        ],
    )
    def test_wrong_options_are_refused(
        self, place: Place, options: dict[str, Any], error: type[InputError]
    ) -> None:
        with pytest.raises(error):
            place.build(with_options(**options), python=self.NOWHERE)
        assert list(place.work_dir.iterdir()) == []

    def test_a_gpu_that_a_plugin_does_not_support(self, place: Place) -> None:
        spec = with_options(gemm_swiglu_plugin="fp8")
        blackwell = replace(TOOLCHAIN, compute_capability="10.0")
        with pytest.raises(OptionConflictError, match=r"10\.0"):
            place.build(spec, toolchain=blackwell, python=self.NOWHERE)

    @pytest.mark.parametrize(
        "content", [None, "{", "[]", '{"mapping": {"tp_size": 2, "pp_size": 1, "world_size": 1}}']
    )
    def test_what_is_no_checkpoint(self, place: Place, tmp_path: Path, content: str | None) -> None:
        place.checkpoint = tmp_path / "no-checkpoint"
        place.checkpoint.mkdir()
        if content:
            (place.checkpoint / "config.json").write_text(content)
        with pytest.raises(CheckpointUnreadableError, match="Convert the model again"):
            place.build(python=self.NOWHERE)

    def test_no_interpreter(self, place: Place) -> None:
        with pytest.raises(TrtllmMissingError, match="TRTFORGE_TRTLLM_PYTHON"):
            place.build(python=self.NOWHERE)
        with pytest.raises(TrtllmPythonUnsetError, match="trtforge doctor"):
            place.build(python=None)


class TestEnd:
    """Timeout, cancellation and the parent's own end: nothing is left, however it resists."""

    STUBBORN = "hang,ignore-sigterm,grandchildren"

    @pytest.mark.parametrize("fault", ["hang", STUBBORN])
    def test_a_timeout(
        self, place: Place, configure: Configure, tmp_path: Path, fault: str
    ) -> None:
        configure(fault=fault)
        with pytest.raises(DriverTimeoutError) as caught:
            place.build(timeout_s=2.0)
        assert processes_of(tmp_path) == []
        assert str(place.log_file) in caught.value.remedy
        assert list(place.work_dir.iterdir()) == [place.log_file]

    def test_a_cancellation(self, place: Place, configure: Configure, tmp_path: Path) -> None:
        configure(fault=self.STUBBORN)

        def cancel(line: str) -> None:
            if "stand-in" in line and "running" not in line:
                time.sleep(1.0)  # until the grandchildren are there
                raise RuntimeError("cancelled")

        with pytest.raises(RuntimeError, match="cancelled"):
            place.build(on_log=cancel)
        assert processes_of(tmp_path) == []
        assert list(place.work_dir.iterdir()) == [place.log_file]

    def test_kill_9_of_the_parent(self, place: Place, configure: Configure, tmp_path: Path) -> None:
        configure(fault=self.STUBBORN)
        paths = (place.work_dir, place.engine_dir, place.cache, place.checkpoint)
        script = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from standin_build import Place\n"
            "Place(*map(Path, sys.argv[2:])).build()\n"
        )
        command = [sys.executable, "-c", script, str(HERE.parent), *map(str, paths)]
        parent = subprocess.Popen(command)
        deadline = time.monotonic() + 30
        # Parent, driver, trtllm-build, and the four it started.
        while len(processes_of(tmp_path)) < 7:
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while processes_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_of(tmp_path) == []
        assert not place.engine_dir.exists()
