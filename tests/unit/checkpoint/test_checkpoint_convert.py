"""`convert`: the same checkpoint as upstream's converter, whole or not at all."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save as library_save

from trtforge.checkpoint import convert
from trtforge.checkpoint.convert import NotEnoughDiskError
from trtforge.checkpoint.safetensors_io import TruncatedFileError, encode_header
from trtforge.checkpoint.staging import OutputBusyError, OutputNotEmptyError
from trtforge.checkpoint.streaming import WeightOverflowError
from trtforge.checkpoint.target import Target
from trtforge.files import describe_directory
from trtforge.progress import Progress

Models = Callable[[str], Any]
Names = Callable[[Path], list[str]]


class Stopped(Exception):  # noqa: N818
    """Raised by a progress callback, as a cancelled task would."""


def stop_halfway(progress: Progress) -> None:
    assert progress.total is not None
    if progress.done > progress.total / 2:
        raise Stopped


def test_config_equals_upstreams(hf_model: Models, upstream: Any, tmp_path: Path) -> None:
    convert(hf_model(upstream.model).path, tmp_path / "out", upstream.target)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == upstream.config


def test_tensors_equal_upstreams_bit_for_bit(
    hf_model: Models, upstream: Any, tmp_path: Path, read_checkpoint: Models
) -> None:
    convert(hf_model(upstream.model).path, tmp_path / "out", upstream.target)
    written = {
        file.name: {
            name: {
                "dtype": t.dtype,
                "shape": list(t.shape),
                "sha256": hashlib.sha256(t.data).hexdigest(),
            }
            for name, t in read_checkpoint(file).items()
        }
        for file in (tmp_path / "out").glob("*.safetensors")
    }
    assert written == upstream.ranks


def test_either_config_dialect_gives_the_same_checkpoint(hf_model: Models, tmp_path: Path) -> None:
    old = convert(hf_model("llama_untied").path, tmp_path / "old")
    new = convert(hf_model("llama_untied_transformers5").path, tmp_path / "new")
    assert old == new


def test_the_file_is_byte_for_byte_what_the_safetensors_library_writes(
    hf_model: Models, tmp_path: Path, read_checkpoint: Models
) -> None:
    convert(hf_model("qwen2_untied").path, tmp_path / "out")
    file = tmp_path / "out" / "rank0.safetensors"
    arrays = {
        name: np.frombuffer(t.data, ml_dtypes.bfloat16).reshape(t.shape)
        for name, t in read_checkpoint(file).items()
    }
    assert file.read_bytes() == library_save(arrays)


def test_the_safetensors_library_opens_the_file(hf_model: Models, tmp_path: Path) -> None:
    convert(hf_model("llama_tied").path, tmp_path / "out")
    with safe_open(tmp_path / "out" / "rank0.safetensors", framework="np") as file:
        qkv = file.get_slice("transformer.layers.0.attention.qkv.weight")
        assert (qkv.get_dtype(), qkv.get_shape()) == ("BF16", [128, 64])
        assert "lm_head.weight" in file.keys()  # noqa: SIM118 (not a mapping)


def test_returned_digests_are_those_of_the_files(hf_model: Models, tmp_path: Path) -> None:
    files = convert(hf_model("llama_mha").path, tmp_path / "out")
    assert [f.path for f in files] == ["config.json", "rank0.safetensors"]
    assert files == describe_directory(tmp_path / "out")


def test_the_same_model_gives_the_same_bytes(hf_model: Models, tmp_path: Path) -> None:
    model = hf_model("llama31").path
    assert convert(model, tmp_path / "a") == convert(model, tmp_path / "b")


def test_a_sharded_model_gives_the_same_bytes(hf_model: Models, tmp_path: Path) -> None:
    model = hf_model("qwen2_untied")
    whole = convert(model.path, tmp_path / "whole")
    model.shard(3)
    assert convert(model.path, tmp_path / "sharded") == whole


def test_tied_embeddings_are_written_twice(
    hf_model: Models, tmp_path: Path, read_checkpoint: Models
) -> None:
    convert(hf_model("llama_tied").path, tmp_path / "out")
    written = read_checkpoint(tmp_path / "out" / "rank0.safetensors")
    assert written["lm_head.weight"] == written["transformer.vocab_embedding.weight"]


def test_attention_bias_writes_qkv_and_dense_biases(
    hf_model: Models, tmp_path: Path, read_checkpoint: Models
) -> None:
    model = hf_model("llama_untied")
    model.edit_config(attention_bias=True)
    tensors = model.tensors()
    kinds = type(tensors["lm_head.weight"])
    biases = {
        f"model.layers.{i}.self_attn.{part}_proj.bias": kinds("BF16", (rows,), os.urandom(2 * rows))
        for i in range(3)
        for part, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64))
    }
    model.save(tensors | biases)
    convert(model.path, tmp_path / "out")
    written = read_checkpoint(tmp_path / "out" / "rank0.safetensors")
    for i in range(3):
        source = [biases[f"model.layers.{i}.self_attn.{part}_proj.bias"].data for part in "qkvo"]
        layer = f"transformer.layers.{i}.attention"
        assert written[f"{layer}.qkv.bias"].data == b"".join(source[:3])
        assert written[f"{layer}.dense.bias"].data == source[3]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["attn_bias"] is True


@pytest.mark.parametrize(("stored", "numpy_dtype"), [("F16", np.float16), ("F32", np.float32)])
def test_other_float_types_are_rounded_to_nearest_even(
    hf_model: Models, tmp_path: Path, read_checkpoint: Models, stored: str, numpy_dtype: type
) -> None:
    model = hf_model("llama_tied")
    tensors = model.tensors()
    embedding = tensors["model.embed_tokens.weight"]
    # 1 + 2^-8 and 1 + 3·2^-8 lie halfway between two bfloat16 numbers.
    special = [1 + 2**-8, 1 + 3 * 2**-8, np.inf, -np.inf, np.nan, 0.0, -0.0, 2**-24]
    numbers = np.random.default_rng(0).normal(size=embedding.shape).astype(numpy_dtype)
    numbers.flat[: len(special)] = special
    embedding.dtype, embedding.data = stored, numbers.tobytes()
    model.save(tensors)
    convert(model.path, tmp_path / "out")
    written = read_checkpoint(tmp_path / "out" / "rank0.safetensors")["lm_head.weight"]
    result = np.frombuffer(written.data, ml_dtypes.bfloat16).astype(np.float32)
    assert written.dtype == "BF16"
    assert result[:2].tolist() == [1.0, 1 + 2**-6]
    np.testing.assert_array_equal(result[2:8], special[2:])
    np.testing.assert_allclose(result[8:], numbers.flat[8:], rtol=2**-8)


def test_progress_counts_bytes_up_to_the_size_of_the_rank_file(
    hf_model: Models, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    files = convert(hf_model("llama31").path, tmp_path / "out", on_progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total == files[1].size_bytes
    assert "transformer.layers.2.mlp.fc.weight" in {progress.what for progress in seen}


def test_an_empty_output_directory_is_accepted(hf_model: Models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(hf_model("llama31").path, tmp_path / "out")
    assert (tmp_path / "out" / "rank0.safetensors").is_file()


@pytest.mark.parametrize("occupant", ["file", "directory"])
def test_an_occupied_output_is_refused_and_left_alone(
    hf_model: Models, tmp_path: Path, names_in: Names, occupant: str
) -> None:
    out = tmp_path / "out"
    if occupant == "directory":
        out.mkdir()
    kept = out / "kept" if occupant == "directory" else out
    kept.write_text("mine")
    with pytest.raises(OutputNotEmptyError, match=r"out_dir = .*not empty"):
        convert(hf_model("llama31").path, out)
    assert kept.read_text() == "mine"
    assert names_in(tmp_path) == ["models", "out"]


@pytest.mark.parametrize("target", [Target(), Target(tp=2, pp=3)])
def test_an_interruption_leaves_nothing(
    hf_model: Models, tmp_path: Path, names_in: Names, target: Target
) -> None:
    with pytest.raises(Stopped):
        convert(hf_model("llama31").path, tmp_path / "out", target, on_progress=stop_halfway)
    started = ("ranks", "read ahead", "sha256")
    assert [t.name for t in threading.enumerate() if t.name.startswith(started)] == []
    assert names_in(tmp_path) == ["models"]


def test_a_failing_write_leaves_nothing(hf_model: Models, tmp_path: Path, names_in: Names) -> None:
    model = hf_model("llama31").path
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            convert(model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(tmp_path) == ["models"]


@pytest.mark.parametrize("percent", [0, 20, 60, 99, 100])
def test_after_kill_9_the_next_start_cleans_up_and_succeeds(
    hf_model: Models, tmp_path: Path, names_in: Names, percent: int
) -> None:
    model, target = hf_model("llama31").path, Target(tp=2, pp=2)
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from trtforge.checkpoint import Target, convert\n"
        "def die(progress):\n"
        "    if progress.done >= int(sys.argv[3]) / 100 * progress.total:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "target = Target(tp=2, pp=2)\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), target, on_progress=die)\n"
    )
    command = [sys.executable, "-c", program, str(model), str(tmp_path / "out"), str(percent)]
    killed = subprocess.run(command)
    assert killed.returncode == -signal.SIGKILL
    assert names_in(tmp_path) == [".out.partial", "models"]
    (tmp_path / ".out.partial" / "nested").mkdir()
    files = convert(model, tmp_path / "out", target)
    assert names_in(tmp_path) == ["models", "out"]
    assert files == describe_directory(tmp_path / "out")
    assert [file.path for file in files] == [
        "config.json",
        *(f"rank{r}.safetensors" for r in range(4)),
    ]


def test_two_conversions_into_one_directory_do_not_meet(hf_model: Models, tmp_path: Path) -> None:
    model = hf_model("llama31").path
    refusals: list[OutputBusyError] = []

    def intrude(_: Progress) -> None:
        with pytest.raises(OutputBusyError, match="another process") as refusal:
            convert(model, tmp_path / "out")
        refusals.append(refusal.value)

    files = convert(model, tmp_path / "out", on_progress=intrude)
    assert refusals
    assert files == describe_directory(tmp_path / "out")


def test_a_model_larger_than_the_disk_is_refused_before_writing(
    hf_model: Models, tmp_path: Path, names_in: Names
) -> None:
    model = hf_model("llama_tied")
    free = os.statvfs(tmp_path)
    vocab = free.f_bavail * free.f_frsize // (64 * 2)
    shapes = {name: t.shape for name, t in model.tensors().items()}
    shapes["model.embed_tokens.weight"] = (vocab, 64)
    header = encode_header((name, "BF16", shape) for name, shape in shapes.items())
    elements = sum(int(np.prod(shape)) for shape in shapes.values())
    with (model.path / "model.safetensors").open("wb") as stream:
        stream.write(header)
        try:
            stream.truncate(len(header) + 2 * elements)
        except OSError:
            pytest.skip("this file system has no sparse files of the size of its free space")
    model.edit_config(vocab_size=vocab)
    with pytest.raises(NotEnoughDiskError, match=r"out_dir = .* needs \d+ bytes, but only \d+"):
        convert(model.path, tmp_path / "out")
    assert names_in(tmp_path) == ["models"]


def test_a_source_that_shrinks_meanwhile_is_reported(
    hf_model: Models, tmp_path: Path, names_in: Names
) -> None:
    model = hf_model("llama31").path

    def shrink(_: Progress) -> None:
        os.truncate(model / "model.safetensors", 5000)

    with pytest.raises(TruncatedFileError, match="5000 found"):
        convert(model, tmp_path / "out", on_progress=shrink)
    assert names_in(tmp_path) == ["models"]


def test_a_weight_too_large_for_float16_is_reported(
    hf_model: Models, tmp_path: Path, names_in: Names
) -> None:
    model = hf_model("llama_untied")
    tensors = model.tensors()
    norm = tensors["model.norm.weight"]
    norm.dtype, norm.data = "F32", np.full(64, 65520.0, np.float32).tobytes()
    model.save(tensors)
    with pytest.raises(WeightOverflowError, match=r"tensor model.norm.weight .*bfloat16"):
        convert(model.path, tmp_path / "out", Target(dtype="float16"))
    assert names_in(tmp_path) == ["models"]


def test_an_infinite_weight_stays_infinite_in_float16(
    hf_model: Models, tmp_path: Path, read_checkpoint: Models
) -> None:
    model = hf_model("llama_untied")
    tensors = model.tensors()
    norm = tensors["model.norm.weight"]
    norm.dtype, norm.data = "F32", np.array([np.inf, 65519.0] * 32, np.float32).tobytes()
    model.save(tensors)
    convert(model.path, tmp_path / "out", Target(dtype="float16"))
    written = read_checkpoint(tmp_path / "out" / "rank0.safetensors")["transformer.ln_f.weight"]
    assert np.frombuffer(written.data, np.float16)[:2].tolist() == [np.inf, 65504.0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_memory_does_not_grow_with_the_model(hf_model: Models, tmp_path: Path, dtype: str) -> None:
    model = hf_model("llama_tied")
    vocab = 800_000
    shapes = {name: t.shape for name, t in model.tensors().items()}
    shapes["model.embed_tokens.weight"] = (vocab, 64)
    header = encode_header((name, dtype, shape) for name, shape in shapes.items())
    width = 2 if dtype == "BF16" else 4
    with (model.path / "model.safetensors").open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + width * sum(int(np.prod(s)) for s in shapes.values()))
    model.edit_config(vocab_size=vocab)
    # VmHWM, since ru_maxrss would start from this process's peak.
    program = (
        "import sys; from pathlib import Path\n"
        "from trtforge.checkpoint import convert\n"
        "def peak():\n"
        "    status = Path('/proc/self/status').read_text().split('VmHWM:')[1]\n"
        "    return int(status.split()[0]) // 1024\n"
        "before = peak(); files = convert(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(peak() - before, files[1].size_bytes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model.path), str(tmp_path / "out")],
        check=True,
        capture_output=True,
        text=True,
    )
    growth_mib, written_bytes = map(int, done.stdout.split())
    assert written_bytes > 200e6
    assert growth_mib < 80
