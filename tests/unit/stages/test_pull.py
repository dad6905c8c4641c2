"""Which models are let into the store, and what is found out before anything is made of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from models import write_tiny_model
from safetensors.numpy import load_file, save_file

from trtforge.errors import InputError
from trtforge.progress import StageEvent, listening
from trtforge.spec import BuildSpec, parse_spec
from trtforge.stages.prompts import PromptTooLongError
from trtforge.stages.pull import pull, resolve_model
from trtforge.stages.stage import Workshop
from trtforge.tokenizer import TokenizerError

REPO = "acme/tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", layers=1)


def spec(source: str | Path, **parts: Any) -> BuildSpec:
    return parse_spec({"model": {"source": str(source)}, **parts})


SHORT: dict[str, Any] = {
    "gates": {"prompts": ["How do I count to nine in French?"]},
    "engine": {"max_input_len": 8, "max_seq_len": 40, "max_num_tokens": 8},
    "benchmark": {"workload": {"input_tokens": 8, "output_tokens": 8}},
}


def lose_a_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def break_the_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lose_a_tensor, "model.layers.0.mlp.up_proj.weight"),
        (break_the_tokenizer, "tokenizer.json"),
    ],
)
def test_a_model_that_is_no_good_does_not_reach_the_store(
    harm: Callable[[Path], None],
    named: str,
    shop: Workshop,
    hub: HubServer,
    model: Path,
    stored: Callable[[], set[str]],
) -> None:
    harm(model)
    hub.add_commit(REPO, model)
    for source in (f"hf://{REPO}", model):
        with pytest.raises(InputError, match=named):
            pull(shop, spec(source))
        assert stored() == set()


def test_a_model_is_the_same_from_the_hub_and_from_a_directory(
    shop: Workshop, hub: HubServer, model: Path, stored: Callable[[], set[str]]
) -> None:
    commit = hub.add_commit(REPO, model, card={"license": "apache-2.0"})
    local, _ = pull(shop, spec(model))
    blobs = {key for key in stored() if key.startswith("blobs/")}
    from_hub, outcome = pull(shop, spec(f"hf://{REPO}"))
    assert not outcome.hit
    assert from_hub.content_digest == local.content_digest
    assert (from_hub.name, from_hub.revision, from_hub.licence) == ("tiny", commit, "apache-2.0")
    assert {key for key in stored() if key.startswith("blobs/")} == blobs


def test_a_commit_of_the_hub_that_the_store_has_is_not_downloaded_again(
    shop: Workshop, hub: HubServer, model: Path
) -> None:
    hub.add_commit(REPO, model)
    pull(shop, spec(f"hf://{REPO}"))
    assert len(hub.downloads("model.safetensors")) == 1
    _, outcome = pull(shop, spec(f"hf://{REPO}@main"))
    assert outcome.hit
    assert len(hub.downloads("model.safetensors")) == 1


def test_what_conversion_reads_and_what_is_published_beside_the_engine(
    shop: Workshop, model: Path
) -> None:
    pulled, _ = pull(shop, spec(model))
    assert {f.path for f in pulled.weights} == {"config.json", "model.safetensors"}
    assert {f.path for f in pulled.companions} == {
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_prompts_that_do_not_fit_are_found_before_a_directory_is_copied(
    shop: Workshop, model: Path, stored: Callable[[], set[str]]
) -> None:
    with pytest.raises(PromptTooLongError, match=r"gates\.prompts\.0 = .* at most 8 fit"):
        resolve_model(shop, spec(model, **SHORT))
    assert stored() == set()


def test_prompts_that_do_not_fit_are_found_right_after_the_hub_was_asked(
    shop: Workshop, hub: HubServer, model: Path
) -> None:
    hub.add_commit(REPO, model)
    source = f"hf://{REPO}"
    too_long = spec(source, **SHORT)
    with pytest.raises(PromptTooLongError):
        pull(shop, too_long)
    # The model itself is good, and a better spec finds it in the store.
    _, outcome = pull(shop, spec(source))
    assert outcome.hit
    with pytest.raises(PromptTooLongError):
        pull(shop, too_long)
    assert list(shop.work_root.glob("*/")) == []


def test_a_model_without_a_tokenizer_fits_wherever_two_tokens_fit(
    shop: Workshop, tmp_path: Path
) -> None:
    bare = write_tiny_model(tmp_path / "bare", layers=1, with_tokenizer=False)
    tight: dict[str, Any] = {
        "engine": {"max_input_len": 2, "max_seq_len": 4, "max_num_tokens": 2},
        "benchmark": {"workload": {"input_tokens": 2, "output_tokens": 2}},
    }
    resolve_model(shop, spec(bare, gates={"new_tokens": 2}, **tight))
    with pytest.raises(PromptTooLongError, match="with 4 new ones"):
        resolve_model(shop, spec(bare, gates={"new_tokens": 4}, **tight))


def test_a_tokenizer_that_cannot_be_read_is_named(shop: Workshop, model: Path) -> None:
    break_the_tokenizer(model)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        resolve_model(shop, spec(model))


def test_a_pull_that_was_cut_off_goes_on_from_the_files_it_had(
    shop: Workshop, hub: HubServer, model: Path
) -> None:
    hub.add_commit(REPO, model)

    def cut_off(event: StageEvent) -> None:
        if event.progress and event.progress.what == "hashing":
            raise ConnectionError("the worker went away")

    with listening(cut_off), pytest.raises(ConnectionError):
        pull(shop, spec(f"hf://{REPO}"))
    _, outcome = pull(shop, spec(f"hf://{REPO}"))
    assert not outcome.hit
    assert len(hub.downloads("model.safetensors")) == 1
    assert [path for path in shop.work_root.iterdir() if path.is_dir()] == []
