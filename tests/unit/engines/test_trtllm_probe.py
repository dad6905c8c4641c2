"""What the probe says of an environment, and how it says what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_engine import STANDIN_DIR, STANDIN_PYTHON

from trtforge.engines.trtllm import gpu_query
from trtforge.engines.trtllm.examples import EXAMPLES_VARIABLE, find_examples
from trtforge.engines.trtllm.gpu_query import Gpu, MemoryWatch, find_gpus
from trtforge.engines.trtllm.probe import (
    EngineWorkflowGoneError,
    GpuMissingError,
    TrtllmMissingError,
    TrtllmPythonUnsetError,
    TrtllmVersionError,
    probe,
)


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TRTFORGE_STANDIN_PYTHON", sys.executable)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("TRTFORGE_IMAGE_DIGEST", raising=False)
    return monkeypatch


def test_a_toolchain_is_described_and_the_stand_in_never_passes_for_the_real_thing(
    tmp_path: Path, standin: pytest.MonkeyPatch
) -> None:
    digest = "sha256:" + "a" * 64
    standin.setenv("TRTFORGE_IMAGE_DIGEST", digest)
    found = probe(STANDIN_PYTHON, "1.2.1", tmp_path)
    assert found.toolchain.backend == "trtllm"
    assert found.toolchain.backend_version == "1.2.1+standin"
    assert found.toolchain.tensorrt_version
    assert found.toolchain.gpu_name == "Stand-in GPU"
    assert found.toolchain.compute_capability == "9.0"
    assert found.toolchain.driver_version == "590.0"
    assert found.toolchain.device == "cuda"
    assert found.toolchain.image_digest == digest
    assert found.facts["standin"] is True
    assert found.facts["memory_bytes"] == 81559 << 20
    assert set(found.facts["tools"]) == {"trtllm-build", "trtllm-bench", "mpirun"}
    assert found.facts["tools"]["trtllm-build"].endswith("bin/trtllm-build")


def test_importing_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert "import_s" not in probe(STANDIN_PYTHON, "1.2.1", tmp_path).facts
    assert probe(STANDIN_PYTHON, "1.2.1", tmp_path, deep=True).facts["import_s"] >= 0


@pytest.mark.parametrize(
    ("installed", "error", "words"),
    [
        ("1.1.0", TrtllmVersionError, r"1\.1\.0 is installed, and the spec asks for 1\.2\.1"),
        ("1.3.0rc20", TrtllmVersionError, "rc20 is installed"),
        ("1.3.0rc21", EngineWorkflowGoneError, "removed trtllm-build"),
        ("1.3.0", EngineWorkflowGoneError, r"Install 1\.2\.1"),
        ("1.4.0rc1", EngineWorkflowGoneError, "removed trtllm-build"),
    ],
)
def test_another_release_is_refused_with_what_was_found_and_wanted(
    tmp_path: Path,
    standin: pytest.MonkeyPatch,
    installed: str,
    error: type[Exception],
    words: str,
) -> None:
    standin.setenv("TRTFORGE_STANDIN_VERSION", installed)
    with pytest.raises(error, match=words) as caught:
        probe(STANDIN_PYTHON, "1.2.1", tmp_path)
    assert "TRTFORGE_TRTLLM_PYTHON" in str(caught.value)


def test_without_a_gpu_nothing_is_blamed_on_the_settings(
    tmp_path: Path, standin: pytest.MonkeyPatch
) -> None:
    standin.setenv("TRTFORGE_STANDIN_GPUS", "0")
    with pytest.raises(GpuMissingError, match="couldn't communicate") as caught:
        probe(STANDIN_PYTHON, "1.2.1", tmp_path)
    assert caught.value.field == ""
    assert "doctor" in caught.value.remedy


def test_an_environment_without_tensorrt_llm(tmp_path: Path) -> None:
    with pytest.raises(TrtllmMissingError, match="has no tensorrt_llm") as caught:
        probe(Path(sys.executable), "1.2.1", tmp_path)
    assert caught.value.field == "TRTFORGE_TRTLLM_PYTHON"


def test_an_interpreter_must_be_named_and_exist(tmp_path: Path) -> None:
    with pytest.raises(TrtllmPythonUnsetError, match="trtforge doctor"):
        probe(None, "1.2.1", tmp_path)
    with pytest.raises(TrtllmMissingError, match="TRTFORGE_TRTLLM_PYTHON"):
        probe(tmp_path / "no-python", "1.2.1", tmp_path)


def test_the_gpus_are_those_that_cuda_would_see(standin: pytest.MonkeyPatch) -> None:
    standin.setenv("PATH", f"{STANDIN_DIR / 'bin'}:/usr/bin:/bin")
    standin.setenv("TRTFORGE_STANDIN_GPUS", "3")
    assert [gpu.index for gpu in find_gpus().visible] == [0, 1, 2]
    standin.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [gpu.index for gpu in find_gpus().visible] == [2, 0]
    standin.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides every GPU" in find_gpus().absence
    standin.setenv("TRTFORGE_STANDIN_GPUS", "0")
    assert "failed" in find_gpus().absence
    standin.setenv("PATH", "/nowhere")
    assert "no nvidia-smi" in find_gpus().absence


@given(st.lists(st.sampled_from(["0", "1", "2", "7", "GPU-b", "GPU-x", "rubbish"]), max_size=4))
def test_cuda_stops_at_the_first_entry_it_does_not_know(entries: list[str]) -> None:
    gpus = [
        Gpu(n, "G", "590", "9.0", None, uuid) for n, uuid in enumerate(("GPU-a", "GPU-b", "GPU-c"))
    ]
    known = {"0": 0, "1": 1, "2": 2, "GPU-b": 1}
    expected = []
    for entry in entries:
        if entry not in known:
            break
        expected.append(known[entry])
    visible = gpu_query._visible(gpus, ",".join(entries))
    assert [gpu.index for gpu in visible] == expected


def test_gpu_memory_is_unknown_where_nvml_is_missing() -> None:
    with MemoryWatch([0], interval_s=0.01) as memory:
        pass
    assert memory.peak_bytes is None or memory.peak_bytes > 0


def test_examples_are_found_where_the_environment_says(
    tmp_path: Path, standin: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples" / "models" / "core" / "gpt").mkdir(parents=True)
    standin.setenv(EXAMPLES_VARIABLE, str(tmp_path))
    assert find_examples() is None or find_examples() != tmp_path
    (tmp_path / "examples" / "models" / "core" / "gpt" / "convert_checkpoint.py").touch()
    assert find_examples() == tmp_path
    standin.setenv(EXAMPLES_VARIABLE, str(tmp_path / "examples"))
    assert find_examples() == tmp_path


def test_the_probe_imports_nothing_heavy() -> None:
    code = (
        "import sys, trtforge.engines.trtllm.probe_driver; "
        "print({'torch', 'tensorrt_llm', 'tensorrt'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
