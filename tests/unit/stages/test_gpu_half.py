"""What the two halves of a build tell each other."""

from dataclasses import replace
from pathlib import Path

import pytest
from models import write_tiny_model

from trtforge.errors import BuildError, GateError, InputError, ServiceError, TrtforgeError
from trtforge.files import FileRef
from trtforge.gates.enforce import CorrectnessGateError
from trtforge.spec import parse_spec
from trtforge.stages.gpu import (
    GpuReport,
    GpuRequest,
    StageGoneError,
    failure_of,
    make_request,
    put_report,
    raise_failure,
    read_report,
    requested,
)
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import Workshop
from trtforge.store import StageResult

RUN = "3f1c2d00-0000-4000-8000-000000000001"


@pytest.fixture
def request_(shop: Workshop, tmp_path: Path) -> GpuRequest:
    """A request after pull and convert of a model of two files."""
    model_dir = write_tiny_model(tmp_path / "tiny")
    spec = parse_spec({"model": {"source": str(model_dir), "name": "tiny-named"}})
    files = tuple(shop.store.put_bytes(name.encode(), name) for name in ("config.json", "LICENSE"))
    made = {
        stage: shop.store.put_stage(
            StageResult(stage=stage, key=key * 64, inputs={}, outputs=outputs, seconds=1)
        )
        for stage, key, outputs in (("pull", "a", files), ("convert", "b", files[:1]))
    }
    model = PulledModel("tiny-named", "hf://org/tiny@abc", "abc", "apache-2.0", files)
    return make_request(spec, model, made["pull"], made["convert"], force=False)


def test_the_gpu_half_finds_the_model_that_the_cpu_half_pulled(
    shop: Workshop, request_: GpuRequest
) -> None:
    sent = GpuRequest.model_validate_json(request_.model_dump_json())
    model, converted = requested(shop, sent)
    assert (model.name, model.source, model.revision) == ("tiny-named", "hf://org/tiny@abc", "abc")
    assert [f.path for f in model.companions] == ["LICENSE"]
    assert converted.outputs == model.weights


def test_what_was_deleted_meanwhile_is_named(shop: Workshop, request_: GpuRequest) -> None:
    gone = request_.model_copy(update={"convert_key": "c" * 64})
    with pytest.raises(StageGoneError, match="result of convert"):
        requested(shop, gone)


def test_the_same_work_has_the_same_key_whoever_asks(request_: GpuRequest) -> None:
    assert request_.key() == request_.model_copy(update={"traceparent": "00-1-1-01"}).key()
    assert request_.key() != request_.model_copy(update={"force": True}).key()
    assert request_.key() != request_.model_copy(update={"convert_key": "c" * 64}).key()


def test_a_run_without_a_report_has_none(shop: Workshop) -> None:
    assert read_report(shop, RUN) is None


@pytest.mark.parametrize(
    ("error", "family"),
    [
        (
            InputError("no such option", remedy="Use x", field="engine.options.y", value=3),
            InputError,
        ),
        (ServiceError("no answer", remedy="Wait"), ServiceError),
        (BuildError("out of memory", remedy="Use less"), BuildError),
        (CorrectnessGateError("1 answer is wrong", remedy="Look", field="gates"), GateError),
        (TrtforgeError("odd", remedy="Tell us"), BuildError),
    ],
)
def test_an_error_of_the_gpu_half_is_the_same_one_here(
    shop: Workshop, error: TrtforgeError, family: type[TrtforgeError]
) -> None:
    there = replace(shop, run_id=RUN)
    put_report(there, GpuReport(toolchain={}, failure=failure_of(error)))
    report = read_report(shop, RUN)
    assert report is not None
    assert report.failure is not None
    with pytest.raises(family) as raised:
        raise_failure(report.failure)
    assert raised.value.problem == error.problem
    assert raised.value.remedy == error.remedy
    assert raised.value.field == error.field
    assert raised.value.exit_code == family.exit_code


def test_a_stage_whose_files_are_gone_is_gone(shop: Workshop) -> None:
    ref = FileRef("x", 1, "0" * 64)
    result = StageResult(stage="pull", key="d" * 64, inputs={}, outputs=(ref,), seconds=1)
    shop.store.put_stage(result)
    # Its blob was never uploaded: a record without its files is no result.
    with pytest.raises(StageGoneError):
        requested(
            shop,
            GpuRequest(
                spec=parse_spec({"model": {"source": "hf://org/m"}}),
                source="hf://org/m@1",
                pull_key="d" * 64,
                convert_key="d" * 64,
            ),
        )
