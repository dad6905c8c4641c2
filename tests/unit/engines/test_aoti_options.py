from pathlib import Path
from typing import Any

import pytest

from trtforge.engines.aoti.backend import AotiBackend, EngineOptionError
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
