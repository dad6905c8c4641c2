"""What decides an engine, its timing cache and where it is valid."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from trtforge.engines.base import ImageDigestError, Toolchain, image_digest
from trtforge.engines.processor import describe_processor

TOOLCHAIN = Toolchain(
    backend="trtllm",
    backend_version="1.2.1",
    tensorrt_version="10.14.1",
    cuda_version="13.0",
    driver_version="580.65.06",
    gpu_name="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    cpu="x86_64 avx2",
    compiler="g++ 13.3.0",
    os="linux",
    arch="x86_64",
    image_digest="sha256:" + "a" * 64,
)


@pytest.mark.parametrize("field", [f.name for f in fields(Toolchain) if f.name != "image_digest"])
def test_a_timing_cache_belongs_to_one_of_every_field(field: str) -> None:
    assert replace(TOOLCHAIN, **{field: "another"}).key() != TOOLCHAIN.key()


def test_a_timing_cache_outlives_a_rebuilt_image() -> None:
    assert replace(TOOLCHAIN, image_digest="sha256:" + "b" * 64).key() == TOOLCHAIN.key()


def test_a_toolchain_is_read_back_and_so_is_that_of_another_version() -> None:
    data = TOOLCHAIN.to_json()
    assert Toolchain.from_json(data) == TOOLCHAIN
    assert Toolchain.from_json({**data, "of_a_newer_version": 1}) == TOOLCHAIN
    del data["image_digest"], data["compiler"]
    older = Toolchain.from_json(data)
    assert older == replace(TOOLCHAIN, image_digest=None, compiler="")


@pytest.mark.parametrize("prefix", ["", "registry.example/trtforge@", "localhost:5000/a/b:tag@"])
def test_the_image_is_known_by_its_digest(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTFORGE_IMAGE_DIGEST", f"{prefix}sha256:{'c' * 64}")
    assert image_digest() == f"sha256:{'c' * 64}"


@pytest.mark.parametrize("value", ["trtforge:latest", "sha256:" + "c" * 63, "c" * 64, "@"])
def test_a_tag_is_not_a_digest(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTFORGE_IMAGE_DIGEST", value)
    with pytest.raises(ImageDigestError, match=r"TRTFORGE_IMAGE_DIGEST = .* not the digest"):
        image_digest()


@pytest.mark.parametrize("value", [None, "", " "])
def test_outside_of_a_container_there_is_no_image(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRTFORGE_IMAGE_DIGEST", raising=False)
    if value is not None:
        monkeypatch.setenv("TRTFORGE_IMAGE_DIGEST", value)
    assert image_digest() is None


def test_the_vector_units_of_a_cpu_are_named_in_one_order(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512f sse2 avx2\nflags\t\t: avx2\n")
    arch = describe_processor(tmp_path / "none")
    assert describe_processor(cpuinfo) == f"{arch} avx2 avx512f"
    cpuinfo.write_text("Features\t: fp asimd sve bf16\n")
    assert describe_processor(cpuinfo) == f"{arch} asimd bf16 sve"
