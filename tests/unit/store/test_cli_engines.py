"""`trtforge list`, `show` and `resolve`, on a real store with many engines in it."""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from published import H100, MODEL, NOW, alias, engine
from rich.console import Console
from typer.testing import CliRunner

from trtforge.cli import app
from trtforge.cli.listing import age, print_engines
from trtforge.cli.resolve import MachineDescriptionError
from trtforge.store import Manifest, Store
from trtforge.store.layout import alias_key, manifest_key
from trtforge.store.resolve import ModelUnknownError, NoEngineFitsError
from trtforge.units import size

MANY = 300
Run = Callable[..., Any]
Put = Callable[..., None]

ON_H100 = ("--gpu", H100, "--compute-capability", "9.0", "--driver", "580.82.07")


@pytest.fixture
def run(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process; an error of trtforge is in `.exception`.

    It finds the bucket of the test through the environment.
    """
    settings = {
        "HOME": str(tmp_path / "home"),
        "S3_ENDPOINT_URL": s3.endpoint_url,
        "S3_BUCKET": s3.bucket,
        "S3_ACCESS_KEY_ID": s3.access_key_id,
        "S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        # There is no PyTorch here: what is installed must not decide what these tests see.
        "TOOLCHAIN_PYTHON": str(tmp_path / "no-toolchain"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"TRTFORGE_{name}", value)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def put(store: Store) -> Put:
    """Puts manifests and aliases where publishing would; there are no blobs behind them."""

    def put_all(*manifests: Manifest, aliases: Any = ()) -> None:
        with ThreadPoolExecutor(8) as pool:
            keys = [(manifest_key(m.engine_id), m.to_bytes()) for m in manifests]
            keys += [(alias_key(name), record.to_bytes()) for name, record in aliases]
            assert all(pool.map(lambda item: store.bucket.put_if_absent(*item), keys))

    return put_all


def many() -> list[Manifest]:
    """Engines of five models and four devices, one an hour."""
    devices: list[dict[str, Any]] = [
        {},
        {"gpu_name": "NVIDIA L4", "compute_capability": "8.9"},
        {"gpu_name": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0"},
        {"on": "cpu", "backend": "aoti"},
    ]
    return [
        engine(model=f"Model-{i % 5}-Instruct", hours_old=i + 1, **devices[i % 4])
        for i in range(MANY)
    ]


class TestList:
    def test_hundreds_of_engines_give_a_page_of_the_newest_and_how_many_there_are(
        self, run: Run, put: Put
    ) -> None:
        manifests = many()
        put(*manifests)
        done = run("list")
        assert done.exit_code == 0, done.exception
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines[1:-1]] == [
            manifest.engine_id[:12] for manifest in manifests[:30]
        ]
        assert lines[-1] == f"30 of {MANY} shown; {MANY} match, --limit 0 shows them all"

        everything = json.loads(run("list", "--json").stdout)
        assert [entry["engine_id"] for entry in everything] == [m.engine_id for m in manifests]

    def test_filters_are_combined(self, run: Run, put: Put) -> None:
        manifests = many()
        prod = manifests[0]
        put(*manifests[:40], aliases=[alias(prod, "prod"), alias(prod, "latest")])

        def ids(*words: str) -> list[str]:
            return [
                entry["engine_id"] for entry in json.loads(run("list", "--json", *words).stdout)
            ]

        assert ids("--gpu", "l4") == [m.engine_id for m in manifests[1:40:4]]
        assert ids("--gpu", "cpu") == [m.engine_id for m in manifests[3:40:4]]
        assert ids("--backend", "aoti") == ids("--gpu", "cpu")
        assert ids("--model", "model-3") == [m.engine_id for m in manifests[3:40:5]]
        assert ids("--model", manifests[3].core.model.source) == ids("--model", "model-3")
        assert ids("--model", "model-3", "--gpu", "l4") == [
            manifests[13].engine_id,
            manifests[33].engine_id,
        ]
        assert ids("--alias", "prod") == [prod.engine_id]
        assert ids("--limit", "3") == [m.engine_id for m in manifests[:3]]
        assert ids("--alias", "nobody") == []
        assert (
            run("list", "--gpu", "l4", "--limit", "4")
            .stdout.splitlines()[-1]
            .startswith("4 of 40 shown; 10 match")
        )
        assert run("list", "--gpu", "l4").stdout.splitlines()[-1] == "10 of 40 shown"
        assert run("list", "--alias", "nobody").stdout == "0 of 40 shown\n"

    def test_an_empty_store_says_so(self, run: Run) -> None:
        assert run("list").stdout == "No engine is published yet.\n"
        assert json.loads(run("list", "--json").stdout) == []

    @pytest.mark.parametrize("width", [80, 120])
    def test_an_engine_takes_one_line_that_fits_the_terminal(self, width: int) -> None:
        text = self.printed(width=width, force_terminal=True, color_system=None)
        lines = text.splitlines()
        assert len(lines) == 1 + 2
        assert all(len(line) <= width for line in lines)
        first = lines[1]
        assert engine().engine_id[:12] in first
        assert "1.3 GB" in first
        assert "1 h ago" in first
        assert "prod" in first

    def test_a_pipe_gets_every_name_whole(self) -> None:
        text = self.printed(width=80)
        assert "Qwen3-Next-Something-With-A-Rather-Long-Name-80B-A3B-Instruct" in text
        assert "H100 80GB HBM3" in text
        assert "prod, latest" in text
        assert len(text.splitlines()) == 1 + 2

    @staticmethod
    def printed(**console: Any) -> str:
        written = io.StringIO()
        long = "Qwen3-Next-Something-With-A-Rather-Long-Name-80B-A3B-Instruct"
        engines = [(engine(), ("prod", "latest")), (engine(model=long, hours_old=100), ())]
        print_engines(Console(file=written, **console), engines, NOW)
        return written.getvalue()


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        (timedelta(seconds=-90), "now"),
        (timedelta(seconds=59), "now"),
        (timedelta(minutes=1), "1 min ago"),
        (timedelta(minutes=119), "1 h ago"),
        (timedelta(hours=49), "2 d ago"),
        (timedelta(days=60), "60 d ago"),
        (timedelta(days=61), "2026-09-23"),
    ],
)
def test_ages_are_said_as_people_say_them(passed: timedelta, text: str) -> None:
    assert age(NOW - passed, NOW) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_308_622_848, "1.3 GB"),
        (2_500_000_000_000, "2.5 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_sizes_have_three_digits_at_most(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


class TestShow:
    def test_the_card_tells_the_toolchain_and_json_is_the_manifest(
        self, run: Run, put: Put
    ) -> None:
        image = "sha256:" + "d" * 64
        manifest = engine(image_digest=image)
        put(manifest, aliases=[alias(manifest, "prod")])
        card = run("show", manifest.engine_id[:8]).stdout
        for row in (
            f"| Valid on | {H100} |",
            "| TensorRT | 10.14.1 |",
            "| Driver | 580.82.07 |",
            "| System | linux x86_64 |",
            f"| Image | `{image}` |",
            "| Gates | correctness passed |",
            "| Aliases | `prod` |",
            "| Published | 2026-11-23 11:00 UTC |",
        ):
            assert row in card
        assert json.loads(run("show", manifest.engine_id, "--json").stdout) == (
            manifest.model_dump(mode="json")
        )


class TestResolve:
    def test_it_prints_the_engine_for_a_described_machine(self, run: Run, put: Put) -> None:
        old, new = engine(hours_old=9), engine(hours_old=1)
        put(old, new, engine(gpu_name="NVIDIA L4"), aliases=[alias(old, "prod")])
        done = run("resolve", MODEL, *ON_H100)
        assert done.exit_code == 0, done.exception
        lines = done.stdout.splitlines()
        assert lines[0] == f"Engine       {old.engine_id}"
        assert f"Valid on     {H100}" in lines
        assert "Aliases      prod" in lines
        assert lines[-1] == "1 more would run there; --json names them."
        answer = json.loads(run("resolve", MODEL, *ON_H100, "--json").stdout)
        assert answer["engine"]["engine_id"] == old.engine_id
        assert [other["engine_id"] for other in answer["others"]] == [new.engine_id]
        assert [m["field"] for m in answer["near_misses"][0]["mismatches"]] == [
            "gpu_name",
        ]

    def test_when_none_fits_it_says_what_differs_and_ends_with_2(self, run: Run, put: Put) -> None:
        put(engine())
        done = run("resolve", MODEL, "--gpu", "NVIDIA H200", "--driver", "570.1")
        assert isinstance(done.exception, NoEngineFitsError)
        assert done.exception.exit_code == 2
        assert done.stdout == ""
        id_ = engine().engine_id[:12]
        assert done.stderr.splitlines() == [
            f"{id_}  gpu_name: engine '{H100}', machine 'NVIDIA H200'",
            f"{id_}  driver_version: engine '580 or newer', machine '570.1'",
        ]
        done = run("resolve", MODEL, "--gpu", "NVIDIA H200", "--json")
        assert isinstance(done.exception, NoEngineFitsError)
        answer = json.loads(done.stdout)
        assert answer["engine"] is None
        assert answer["near_misses"][0]["mismatches"] == [
            {"field": "gpu_name", "engine": H100, "machine": "NVIDIA H200"}
        ]

    def test_an_image_with_another_tensorrt_does_not_load_it(self, run: Run, put: Put) -> None:
        put(engine())
        image = ("--backend", "trtllm", "--backend-version", "1.2.1", "--tensorrt-version")
        assert run("resolve", MODEL, *ON_H100, *image, "10.14.1").exit_code == 0
        done = run("resolve", MODEL, *ON_H100, *image, "10.13.3")
        assert "tensorrt_version: engine '10.14.1', machine '10.13.3'" in done.stderr

    def test_a_cpu_can_be_described_too(self, run: Run, put: Put) -> None:
        manifest = engine(on="cpu", backend="aoti")
        put(manifest)
        assert run("resolve", MODEL, "--cpu", "x86_64 avx2 avx512f amx_bf16").exit_code == 0
        done = run("resolve", MODEL, "--cpu", "x86_64 avx2")
        assert "cpu: engine 'x86_64 avx2 avx512f', machine 'x86_64 avx2'" in done.stderr
        done = run("resolve", MODEL, "--cpu", "aarch64 asimd")
        assert "arch: engine 'x86_64', machine 'aarch64'" in done.stderr

    @pytest.mark.parametrize("words", [(), ("--on", "local")])
    def test_this_machine_is_the_default(self, run: Run, put: Put, words: tuple[str, ...]) -> None:
        from trtforge.engines.machine import local_machine

        here = local_machine()
        mine = engine(on="cpu", backend="aoti", cpu=here.cpu, os=here.os, arch=here.arch)
        put(mine, engine(gpu_name="NVIDIA GeForce 256", compute_capability="0.1"))
        answer = json.loads(run("resolve", MODEL, *words, "--json").stdout)
        assert answer["engine"]["engine_id"] == mine.engine_id
        assert answer["machine"]["cpu"] == here.cpu
        assert len(answer["machine"]["gpus"]) == len(here.gpus)
        [other] = answer["near_misses"]
        assert other["mismatches"][0]["field"] == "gpu_name"

    def test_wishes_are_held_against_the_engine(self, run: Run, put: Put) -> None:
        put(engine(config={"max_batch_size": 8}))
        assert run("resolve", MODEL, *ON_H100, "--min-batch-size", "8").exit_code == 0
        done = run("resolve", MODEL, *ON_H100, "--min-batch-size", "9", "--alias", "prod")
        assert "alias: engine 'none', machine 'prod'" in done.stderr
        assert "max_batch_size: engine '8', machine '9 or more wanted'" in done.stderr

    def test_a_model_that_was_never_built_is_named(self, run: Run) -> None:
        done = run("resolve", "nobody/nothing", "--gpu", H100)
        assert isinstance(done.exception, ModelUnknownError)

    @pytest.mark.parametrize(
        ("words", "field"),
        [
            (("--on", "mars"), "--on"),
            (("--on", "local", "--gpu", H100), "--on"),
            (("--driver", "580"), "--driver"),
            (("--os", "linux"), "--os"),
            (("--cpu", "x86_64", "--compute-capability", "9.0"), "--compute-capability"),
            (("--gpu", H100, "--tensorrt-version", "10.14.1"), "--tensorrt-version"),
            (("--gpu", H100, "--backend-version", "1.2.1"), "--backend-version"),
        ],
    )
    def test_half_a_description_is_refused(
        self, run: Run, words: tuple[str, ...], field: str
    ) -> None:
        done = run("resolve", MODEL, *words)
        assert isinstance(done.exception, MachineDescriptionError)
        assert done.exception.field == field
