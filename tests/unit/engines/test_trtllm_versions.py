"""Which releases of TensorRT-LLM are supported, and what is said of the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.engines.trtllm.option_table import load_table
from trtforge.engines.trtllm.versions import (
    DEFAULT,
    SUPPORTED,
    EngineWorkflowRemovedError,
    ReleaseTooNewError,
    ReleaseTooOldError,
    ReleaseUnknownError,
    public_version,
    release,
)
from trtforge.errors import InputError


def test_the_default_is_the_last_stable_release_with_engines() -> None:
    assert DEFAULT == "1.2.1"
    assert release("") == release("1.2.1")


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_supported_release_has_a_table_and_all_facts(version: str) -> None:
    found = release(version)
    assert found.version == version
    assert len(load_table(found.table)) > 60
    assert found.tensorrt.startswith("10.")
    assert found.llm_api == ("ModelRunnerCpp" if version == "0.16.0" else "_tensorrt_engine.LLM")
    assert version.startswith(found.checkpoint_target)


@pytest.mark.parametrize(
    ("version", "error", "remedy"),
    [
        ("1.3.0rc21", EngineWorkflowRemovedError, "Use 1.2.1"),
        ("1.3.0rc29", EngineWorkflowRemovedError, "Use 1.2.1"),
        ("1.3.0", EngineWorkflowRemovedError, "Use 1.2.1"),
        ("1.4.0rc1", EngineWorkflowRemovedError, "Use 1.2.1"),
        ("2.0.0", EngineWorkflowRemovedError, "Use 1.2.1"),
        ("1.3.0rc20", ReleaseTooNewError, "Use 1.2.1"),
        ("1.3.0rc0", ReleaseTooNewError, "Use 1.2.1"),
        ("0.15.0", ReleaseTooOldError, "Use one of"),
        ("0.10.0", ReleaseTooOldError, "Use one of"),
        ("0.16.0.dev2024121000", ReleaseUnknownError, "Did you mean '0.16.0'?"),
        ("0.20.0", ReleaseUnknownError, "Use one of"),
        ("1.2", ReleaseUnknownError, "Did you mean '1.2.1'?"),
        ("1.2.9", ReleaseUnknownError, "Did you mean '1.2.1'?"),
        ("1.2.0rc2", ReleaseUnknownError, "Did you mean '1.2.1'?"),
        ("1.1.0rc6", ReleaseUnknownError, "Did you mean '1.1.0'?"),
        ("latest", ReleaseUnknownError, "Use one of"),
    ],
)
def test_another_release_is_refused_with_the_reason_and_what_to_use(
    version: str, error: type[InputError], remedy: str
) -> None:
    with pytest.raises(error) as caught:
        release(version)
    assert type(caught.value) is error
    assert caught.value.field == "engine.version"
    assert caught.value.value == version
    assert remedy in caught.value.remedy


@given(st.text(max_size=20).filter(lambda text: text not in (*SUPPORTED, "")))
def test_whatever_is_typed_is_refused_in_one_way_or_another(version: str) -> None:
    with pytest.raises(InputError) as caught:
        release(version)
    assert caught.value.field == "engine.version"


def test_a_local_part_is_no_part_of_the_release() -> None:
    assert public_version("1.2.1+standin") == "1.2.1"
    assert public_version("1.2.1") == "1.2.1"
