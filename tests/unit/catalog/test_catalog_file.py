"""catalog.yaml: what it may say, and how a mistake is told."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from trtforge.catalog import CatalogError, CatalogFileError, load_catalog, parse_catalog

Data = dict[str, Any]


def refusal(data: Data) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        parse_catalog(data)
    return caught.value


def test_the_catalogue_that_comes_with_trtforge_is_right() -> None:
    catalog, cells = load_catalog()
    assert cells, "it has examples"
    assert {cell.gpu.pool for cell in cells} <= {gpu.pool for gpu in catalog.gpus.values()}


def test_the_catalogue_of_the_documentation_is_right() -> None:
    page = (Path(__file__).parents[3] / "docs" / "catalogue.md").read_text()
    shown = re.findall(r"```yml\n(.*?)```", page, re.DOTALL)
    assert shown
    for text in shown:
        parse_catalog(yaml.safe_load(text))


def test_models_times_gpus_times_profiles_are_the_cells(data: Data) -> None:
    data["profiles"]["long"] = {"publish": {"aliases": ["long"]}}
    data["models"][0]["profiles"] = ["chat", "long"]
    _, cells = parse_catalog(data)
    assert [cell.name for cell in cells] == [
        "alpha/standin/chat",
        "alpha/standin/long",
        "alpha/h100/chat",
        "alpha/h100/long",
        "beta/standin/chat",
    ]


def test_a_cell_has_the_defaults_then_its_profile_then_its_gpu_then_its_model(data: Data) -> None:
    data["defaults"] = {"benchmark": {"repeats": 5, "warmups": 2}, "engine": {"max_batch_size": 1}}
    data["gpus"]["standin"]["overrides"] = {"engine": {"options": {"device": "cpu"}}}
    data["models"][1]["overrides"] = {
        "engine": {"options": {"threads": 2}},
        "benchmark": {"warmups": 3},
    }
    _, cells = parse_catalog(data)
    beta = next(cell for cell in cells if cell.model.name == "beta").spec
    assert beta.engine.max_batch_size == 4
    assert beta.engine.options == {"device": "cpu", "threads": 2}
    assert (beta.benchmark.repeats, beta.benchmark.warmups) == (5, 3)
    assert (beta.model.name, beta.model.source) == ("beta", "hf://acme/beta")


@pytest.mark.parametrize(
    ("where", "key", "field", "hint"),
    [
        ([], "modles", "modles", "'models'"),
        (["gpus", "h100"], "memory", "gpus.h100.memory", "'memory_gb'"),
        (["models", 0], "prority", "models.alpha.prority", "'priority'"),
        (["profiles", "chat"], "engin", "profiles.chat.engin", "'engine'"),
        (
            ["profiles", "chat", "engine"],
            "max_batchsize",
            "profiles.chat.engine.max_batchsize",
            "'max_batch_size'",
        ),
    ],
)
def test_an_unknown_key_is_told_what_it_may_have_been(
    data: Data, where: list[Any], key: str, field: str, hint: str
) -> None:
    place: Any = data
    for part in where:
        place = place[part]
    place[key] = 1
    error = refusal(data)
    assert error.field == field
    assert hint in error.remedy


def test_a_wrong_value_names_model_gpu_and_profile(data: Data) -> None:
    data["profiles"]["chat"]["engine"]["max_batch_size"] = 0
    error = refusal(data)
    assert "alpha/standin/chat" in str(error)
    assert "2 more cells" in str(error)
    assert error.field == "engine.max_batch_size"
    assert error.value == 0


def test_parts_that_do_not_agree_are_found_in_their_cell(data: Data) -> None:
    data["models"][1]["overrides"] = {"engine": {"max_seq_len": 100}}
    error = refusal(data)
    assert "beta/standin/chat" in str(error)
    assert error.field == "engine.max_input_len"


@pytest.mark.parametrize(
    ("engine", "hint"),
    [
        ({"options": {"devise": "cpu"}}, "'device'"),
        ({"backend": "trtllm", "options": {"gemm_plug": "auto"}}, "gemm_plugin"),
    ],
)
def test_an_option_that_the_backend_does_not_have_is_found_in_its_cell(
    data: Data, engine: Data, hint: str
) -> None:
    data["models"][1]["overrides"] = {"engine": engine}
    error = refusal(data)
    assert "beta/standin/chat" in str(error)
    assert hint in error.remedy


def test_a_model_may_only_name_what_is_there(data: Data) -> None:
    data["models"][0]["gpus"] = ["h10"]
    error = refusal(data)
    assert (error.field, error.value) == ("models.alpha.gpus", "h10")
    assert "'h100'" in error.remedy


def test_two_cells_that_would_move_the_same_alias_are_refused(data: Data) -> None:
    data["profiles"]["long"] = {"engine": {"max_batch_size": 2}}
    data["models"][0]["profiles"] = ["chat", "long"]
    error = refusal(data)
    assert error.field == "publish.aliases"
    assert "alpha/standin/chat and alpha/standin/long" in str(error)


def test_two_gpu_types_that_are_the_same_gpu_share_their_aliases(data: Data) -> None:
    data["gpus"]["h100-spot"] = {"pool": "gpu-spot", "gpu_name": "NVIDIA H100 80GB HBM3"}
    data["models"][0]["gpus"] = ["h100", "h100-spot"]
    assert "on NVIDIA H100 80GB HBM3" in str(refusal(data))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("every", "weekly", "7d"),
        ("every", "0d", "7d"),
        ("days", ["saturday"], "models.beta.days"),
        ("name", "a/b", "models.a/b.name"),
        ("gpus", [], "models.beta.gpus"),
    ],
)
def test_a_wrong_entry_of_a_model_is_named(data: Data, key: str, value: Any, named: str) -> None:
    data["models"][1][key] = value
    assert named in str(refusal(data))


@pytest.mark.parametrize(
    ("window", "named"),
    [
        ({"from": "25:00", "to": "06:00"}, "build_window.from"),
        ({"from": "22:00"}, "build_window.to"),
        ({"from": "22:00", "to": "06:00", "timezone": "Europe/Viena"}, "'Europe/Vienna'"),
        ({"from": "22:00", "to": "06:00", "days": []}, "build_window.days"),
    ],
)
def test_a_wrong_window_is_named(data: Data, window: Data, named: str) -> None:
    data["build_window"] = window
    assert named in str(refusal(data))


def test_times_need_no_quotes(tmp_path: Path, data: Data) -> None:
    text = yaml.safe_dump(data) + (
        "build_window: {from: 20:00, to: 06:30, timezone: Europe/Vienna}\n"
    )
    (tmp_path / "catalog.yaml").write_text(text)
    catalog, _ = load_catalog(tmp_path / "catalog.yaml")
    assert catalog.build_window is not None
    assert (catalog.build_window.opens, catalog.build_window.closes) == (20 * 60, 6 * 60 + 30)


def test_lengths_of_time_are_hours_days_or_weeks(data: Data) -> None:
    data["models"][0]["every"] = "2w"
    data["look_again_after"] = "12h"
    catalog, _ = parse_catalog(data)
    assert catalog.models[0].every == timedelta(weeks=2)
    assert catalog.look_again_after == timedelta(hours=12)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text("gpus:\n  a: {pool: x}\n  a: {pool: y}\n")
    with pytest.raises(CatalogFileError, match="'a' is there twice"):
        load_catalog(tmp_path / "catalog.yaml")


@pytest.mark.parametrize("text", ["- a list", "gpus: [", "", "\x80"])
def test_a_file_that_is_no_catalogue_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "catalog.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises((CatalogFileError, CatalogError)):
        load_catalog(tmp_path / "catalog.yaml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogFileError, match=r"nowhere\.yaml"):
        load_catalog(tmp_path / "nowhere.yaml")
