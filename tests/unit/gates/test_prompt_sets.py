"""What trtforge puts to an engine always fits it; a user's own prompts are never left out."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import write_tiny_tokenizer

from trtforge.gates.checks import correctness_checks
from trtforge.gates.prompt_sets import LONGEST_PROMPT, gate_prompts, gate_text
from trtforge.gates.reading import reading_jobs
from trtforge.spec import BuildSpec, SpecError, parse_spec
from trtforge.stages.prompts import NothingToAskError, PromptTooLongError, gate_checks
from trtforge.tokenizer import ModelTokenizer

VOCAB = 512
SETS = ("general", "multilingual", "code", "long-context")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def spec(max_input_len: int = 256, max_seq_len: int = 512, **gates: Any) -> BuildSpec:
    return parse_spec(
        {
            "model": {"source": "tiny"},
            "engine": {
                "max_input_len": max_input_len,
                "max_seq_len": max_seq_len,
                "max_num_tokens": max_input_len,
            },
            "benchmark": {"workload": {"input_tokens": 1, "output_tokens": 2}},
            "gates": gates,
        }
    )


def test_every_set_is_asked_for_by_default(tokenizer: ModelTokenizer) -> None:
    prompts = gate_prompts(spec(), tokenizer, VOCAB)
    assert {p.source.partition(".")[0] for p in prompts} == set(SETS)
    assert len(prompts) >= 10
    assert len({tuple(p.ids) for p in prompts}) == len(prompts)


@pytest.mark.parametrize("name", SETS)
def test_a_set_alone(tokenizer: ModelTokenizer, name: str) -> None:
    prompts = gate_prompts(spec(prompt_sets=[name]), tokenizer, VOCAB)
    assert {p.source.partition(".")[0] for p in prompts} == {name}
    assert [p.alone for p in prompts] == [True] + [False] * (len(prompts) - 1)


def test_own_prompts_come_beside_them(tokenizer: ModelTokenizer) -> None:
    prompts = gate_prompts(spec(prompts=["Hello", "Good day"]), tokenizer, VOCAB)
    assert [p.source for p in prompts[:2]] == ["gates.prompts.0", "gates.prompts.1"]
    assert all(p.alone for p in prompts[:2])
    assert prompts[0].ids == tokenizer.encode_question("Hello")


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 300), st.integers(0, 40), st.integers(1, 30), st.booleans(), st.integers(0, 99)
)
def test_what_is_brought_fits_whatever_the_limits(
    tokenizer: ModelTokenizer, length: int, more: int, new: int, with_tokenizer: bool, text: int
) -> None:
    asked = spec(length, max(3, length + more), new_tokens=new, text_tokens=text)
    opened = tokenizer if with_tokenizer else None
    room = min(length, asked.engine.max_seq_len - new)
    for prompt in gate_prompts(asked, opened, VOCAB):
        assert 1 <= len(prompt.ids) <= max(1, room)
    read = gate_text(asked, opened, VOCAB)
    assert (read is None) == (text == 0)
    if read:
        assert 1 <= len(read.context) <= length
        assert 1 <= len(read.read) <= text
        assert len(read.context) + len(read.read) <= asked.engine.max_seq_len
        assert len(read.context) + len(read.read) - 1 <= length


def test_the_long_prompt_is_as_long_as_the_engine_takes(tokenizer: ModelTokenizer) -> None:
    (prompt,) = gate_prompts(spec(200, 300, prompt_sets=["long-context"]), tokenizer, VOCAB)
    assert len(prompt.ids) == 200
    (prompt,) = gate_prompts(
        spec(200, 210, prompt_sets=["long-context"], new_tokens=20), tokenizer, VOCAB
    )
    assert len(prompt.ids) == 190
    *_, prompt = gate_prompts(spec(100_000, 200_000, prompt_sets=["long-context"]), None, VOCAB)
    assert len(prompt.ids) == LONGEST_PROMPT


def test_an_own_prompt_that_does_not_fit_is_an_error_that_names_it(
    tokenizer: ModelTokenizer,
) -> None:
    asked = spec(16, 64, prompts=["Hi", "word " * 40])
    with pytest.raises(PromptTooLongError, match=r"^gates\.prompts\.1 = "):
        gate_checks(asked, tokenizer, VOCAB)


def test_a_gate_that_would_ask_nothing_is_an_error(tokenizer: ModelTokenizer) -> None:
    with pytest.raises(SpecError, match=r"gates\.prompt_sets"):
        spec(prompt_sets=[], text_tokens=0)
    with pytest.raises(NothingToAskError, match="long-context"):
        gate_checks(spec(2, 40, prompt_sets=["code"], text_tokens=0), tokenizer, VOCAB)


def test_the_text_is_read_token_by_token_or_from_its_beginnings(tokenizer: ModelTokenizer) -> None:
    text = gate_text(spec(text_tokens=5), tokenizer, VOCAB)
    assert text is not None
    forced = reading_jobs(text, teacher_forcing=True, max_batch_size=2)
    (job,) = forced.engine
    assert (job["prompts"], job["forced"]) == ([text.context], [text.read])
    beginnings = reading_jobs(text, teacher_forcing=False, max_batch_size=2)
    assert [len(job["prompts"]) for job in beginnings.engine] == [2, 2, 1]
    asked = [prompt for job in beginnings.engine for prompt in job["prompts"]]
    assert asked == [text.context + text.read[:n] for n in range(5)]
    assert forced.reference == beginnings.reference == [job]


def test_every_prompt_is_answered_alone_or_in_a_batch(tokenizer: ModelTokenizer) -> None:
    checks = correctness_checks(spec(prompts=["Hello"]), tokenizer, VOCAB)
    answered = {reference for job in checks.answers for reference in job["reference_ids"]}
    assert answered == {job["id"] for job in checks.reference_answers} == set(checks.sources)


def test_the_text_and_the_prompts_are_installed_with_the_package() -> None:
    configuration = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"trtforge.gates" = ["prompts/*"]' in configuration
