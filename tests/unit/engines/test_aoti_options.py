import json
from pathlib import Path
from typing import Any

import pytest
from prebuilt import toolchain_of

from trtforge.engines.aoti import backend
from trtforge.engines.aoti.backend import AotiBackend, EngineOptionError
from trtforge.progress import ignore
from trtforge.spec import EngineSpec


def check(**options: Any) -> None:
    AotiBackend(Path("python")).check(EngineSpec(options=options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device": "cuda"},
        {"device": "cpu", "threads": 4},
        {"decode": "graphs"},
        {"device": "cuda", "decode": "kernels"},
    ],
)
def test_options_that_exist_are_taken(options: dict[str, Any]) -> None:
    check(**options)


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        ({"decod": "kernels"}, "decod", "'decode'"),
        ({"decode": "kernel"}, "decode", "graphs, kernels"),
        ({"decode": True}, "decode", "graphs, kernels"),
        ({"device": "gpu"}, "device", "auto, cpu, cuda"),
        ({"threads": -1}, "threads", "0 for all cores"),
    ],
)
def test_others_are_refused_with_what_to_type(
    options: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(EngineOptionError) as caught:
        check(**options)
    assert f"engine.options.{field}" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "options", "decode"),
    [
        ("9.0", {}, "kernels"),
        ("9.0", {"decode": "graphs"}, "graphs"),
        ("8.0", {}, "graphs"),
        ("12.0", {}, "graphs"),
        ("8.0", {"decode": "kernels"}, "kernels"),
        (None, {}, "graphs"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_kernels_are_what_one_gets_where_they_were_measured(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capability: str | None,
    options: dict[str, Any],
    decode: str,
    ranks: int,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mapping": {"tp_size": ranks}}))
    asked: dict[str, Any] = {}

    class AskedError(Exception):
        pass

    def ask(_: str, request: dict[str, Any], **__: Any) -> None:
        asked.update(request)
        raise AskedError

    monkeypatch.setattr(backend, "run_driver", ask)
    gpu = None if capability is None else "a GPU"
    with pytest.raises(AskedError):
        AotiBackend(Path("python")).build(
            EngineSpec(options=options),
            toolchain=toolchain_of(gpu, compute_capability=capability),
            checkpoint_dir=tmp_path,
            engine_dir=tmp_path / "engine",
            cache_in=None,
            cache_out=tmp_path / "model.cache",
            work_dir=tmp_path,
            on_progress=ignore,
            on_log=lambda _: None,
        )
    # They are for one rank; what somebody asks for is not changed on the way.
    assert asked["decode"] == (decode if ranks == 1 or options else "graphs")
