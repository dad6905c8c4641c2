import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import ASSISTANT, BOS, BOS_ID, END, END_ID, EOS_ID, USER, write_tiny_tokenizer
from tokenizers import Tokenizer

from trtforge.tokenizer import ModelTokenizer, TokenizerError, open_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's tokenizer without a chat template."""
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return opened(write_tiny_tokenizer(tmp_path_factory.mktemp("tiny")))


def configure(model: Path, **keys: Any) -> None:
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def opened(model: Path) -> ModelTokenizer:
    tokenizer = open_tokenizer(model)
    assert tokenizer is not None
    return tokenizer


def asked(model: Path, text: str = "Hello") -> str:
    """What the model gets to read, special tokens spelled out."""
    raw = Tokenizer.from_file(str(model / "tokenizer.json"))
    shown: str = raw.decode(opened(model).encode_question(text), skip_special_tokens=False)
    return shown


class TestText:
    def test_a_directory_without_tokenizer_json_has_no_tokenizer(self, tmp_path: Path) -> None:
        assert open_tokenizer(tmp_path) is None

    @given(st.text())
    def test_text_survives_a_round_trip(self, tiny: ModelTokenizer, text: str) -> None:
        assert tiny.decode(tiny.encode(text)) == text

    def test_special_tokens_are_recognised_and_not_shown(self, model: Path) -> None:
        tokenizer = opened(model)
        ids = tokenizer.encode(f"{BOS}Hello{END}")
        assert (ids[0], ids[-1]) == (BOS_ID, END_ID)
        assert tokenizer.decode(ids) == "Hello"

    @pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "None"}}'])
    def test_a_broken_tokenizer_is_named_with_its_directory(
        self, model: Path, content: str
    ) -> None:
        (model / "tokenizer.json").write_text(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read") as caught:
            open_tokenizer(model)
        assert caught.value.value == str(model)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
    @pytest.mark.parametrize("content", [b"{", b"\xff"])
    def test_a_broken_configuration_is_named(self, model: Path, name: str, content: bytes) -> None:
        (model / name).write_bytes(content)
        with pytest.raises(TokenizerError, match=f"{name} is not JSON") as caught:
            open_tokenizer(model)
        assert caught.value.value == str(model / name)


class TestChatTemplate:
    def test_a_model_without_one_is_asked_in_plain_text(self, model: Path) -> None:
        tokenizer = opened(model)
        assert tokenizer.encode_question("Hello") == tokenizer.encode("Hello")

    def test_the_question_is_the_users_turn_and_the_answer_is_begun(self, tmp_path: Path) -> None:
        write_tiny_tokenizer(tmp_path)
        assert asked(tmp_path) == f"{BOS}{USER}Hello{END}{ASSISTANT}"

    def test_it_may_lie_in_the_tokenizer_configuration(self, model: Path) -> None:
        configure(model, chat_template="{{ bos_token }}[{{ messages[0].content }}]")
        assert asked(model) == f"{BOS}[Hello]"

    def test_of_several_the_default_one_is_used(self, model: Path) -> None:
        configure(
            model,
            chat_template=[
                {"name": "tool_use", "template": "tools"},
                {"name": "default", "template": "<{{ messages[0].content }}>"},
            ],
        )
        assert asked(model) == "<Hello>"

    def test_several_without_a_default_are_none(self, model: Path) -> None:
        configure(model, chat_template=[{"name": "tool_use", "template": "tools"}])
        assert asked(model) == "Hello"

    def test_it_may_lie_in_chat_template_json(self, model: Path) -> None:
        (model / "chat_template.json").write_text('{"chat_template": "({{ messages[0].role }})"}')
        assert asked(model) == "(user)"

    def test_the_jinja_file_wins_over_the_configuration(self, model: Path) -> None:
        configure(model, chat_template="configuration")
        (model / "chat_template.jinja").write_text("file")
        assert asked(model) == "file"

    def test_special_tokens_may_be_objects(self, model: Path) -> None:
        configure(model, bos_token={"content": BOS, "lstrip": False}, chat_template="{{bos_token}}")
        assert asked(model) == BOS

    def test_a_special_token_the_model_lacks_is_empty(self, model: Path) -> None:
        configure(model, bos_token=None, chat_template="{{ bos_token }}{{ pad_token }}.")
        assert asked(model) == "."

    def test_special_tokens_are_not_added_a_second_time(self, model: Path) -> None:
        content = json.loads((model / "tokenizer.json").read_text())
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": BOS, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [BOS_ID], "tokens": [BOS]}},
        }
        (model / "tokenizer.json").write_text(json.dumps(content))
        configure(model, chat_template="{{ bos_token }}{{ messages[0].content }}")
        assert opened(model).encode("Hello")[0] == BOS_ID
        assert asked(model) == f"{BOS}Hello"

    def test_what_templates_of_the_hub_use_is_there(self, model: Path) -> None:
        configure(
            model,
            chat_template=(
                "{%- if tools is not none %}tools{% endif -%}"
                "{%- for m in messages %}{% if loop.first %}{% break %}{% endif %}{% endfor -%}"
                "{{- {'ö': '<'} | tojson }}"
                "{%- generation %}|{{ messages[0].content }}|{% endgeneration -%}"
                "{{- strftime_now('%Y') | length }}"
            ),
        )
        assert asked(model) == '{"ö": "<"}|Hello|4'

    @pytest.mark.parametrize(
        ("template", "why"),
        [
            ("{{ raise_exception('only tools here') }}", "only tools here"),
            ("{% if %}", "Expected an expression"),
            ("{{ messages[0].tools.name }}", "has no attribute 'tools'"),
            ("{{ 1 / 0 }}", "division by zero"),
            ("{{ messages + 1 }}", "can only concatenate list"),
            ("{{ range(10**9) }}", "Range too big"),
            (17, "Can't compile non template nodes"),
        ],
    )
    def test_one_that_fails_is_an_error_of_the_model(
        self, model: Path, template: object, why: str
    ) -> None:
        configure(model, chat_template=template)
        with pytest.raises(TokenizerError) as caught:
            opened(model).encode_question("Hello")
        assert why in caught.value.problem
        assert caught.value.value == str(model)

    @pytest.mark.parametrize(
        "template",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.__init__.__globals__ }}",
            "{{ raise_exception.__globals__['json'] }}",
            "{{ strftime_now.__closure__ }}",
            "{{ self.__init__.__globals__ }}",
            "{{ cycler.__init__.__globals__ }}",
            "{{ ''|attr('__class__')|attr('__mro__') }}",
            "{{ '{0.__class__.__mro__}'.format('') }}",
            "{{ ('{0.__class__.__mro__}' | attr('format'))('') }}",
            "{% set f = namespace(x=''.__class__) %}{{ f.x }}",
        ],
    )
    def test_one_that_reaches_for_python_internals_gets_nothing(
        self, model: Path, template: str
    ) -> None:
        configure(model, chat_template=template)
        try:
            shown = asked(model)
        except TokenizerError:
            return
        assert shown == ""

    @pytest.mark.parametrize(
        "template",
        ["{{ messages.append(1) }}", "{{ messages.clear() }}", "{{ messages[0].update(a=1) }}"],
    )
    def test_one_cannot_change_what_it_is_given(self, model: Path, template: str) -> None:
        configure(model, chat_template=template)
        with pytest.raises(TokenizerError, match="is unsafe"):
            opened(model).encode_question("Hello")

    def test_one_that_is_no_text_is_an_error_of_the_model(self, model: Path) -> None:
        (model / "chat_template.jinja").write_bytes(b"\xff")
        with pytest.raises(TokenizerError, match=r"chat_template\.jinja is not UTF-8") as caught:
            open_tokenizer(model)
        assert caught.value.value == str(model / "chat_template.jinja")


class TestStopIds:
    def generation(self, model: Path, **keys: object) -> list[int]:
        (model / "generation_config.json").write_text(json.dumps(keys))
        return opened(model).stop_ids

    def test_one_id(self, model: Path) -> None:
        assert self.generation(model, eos_token_id=END_ID) == [END_ID]

    def test_id_zero_counts(self, model: Path) -> None:
        assert self.generation(model, eos_token_id=0) == [0]

    def test_several_ids(self, model: Path) -> None:
        assert self.generation(model, eos_token_id=[EOS_ID, END_ID]) == [EOS_ID, END_ID]

    @pytest.mark.parametrize("keys", [{}, {"eos_token_id": None}, {"eos_token_id": []}])
    def test_without_any_the_tokenizers_end_of_sequence(
        self, model: Path, keys: dict[str, object]
    ) -> None:
        assert self.generation(model, **keys) == [EOS_ID]

    def test_without_the_file_the_tokenizers_end_of_sequence(self, model: Path) -> None:
        assert opened(model).stop_ids == [EOS_ID]
        configure(model, eos_token={"content": END})
        assert opened(model).stop_ids == [END_ID]

    @pytest.mark.parametrize("token", [None, "<|no such token|>"])
    def test_without_an_end_of_sequence_none(self, model: Path, token: str | None) -> None:
        configure(model, eos_token=token)
        assert opened(model).stop_ids == []


@pytest.mark.slow
class TestAgainstTransformers:
    @pytest.mark.parametrize(
        "template",
        [
            None,
            "{%- for m in messages %}\n    {%- if loop.first %}\n{{ bos_token }}{% endif %}\n"
            "  {{ m['role'] | upper }}: {{ m['content'] | trim }} {{ eos_token }}\n{% endfor %}\n"
            "{% if add_generation_prompt %}{{ {'a': ['ü', '<']} | tojson(indent=1) }}{% endif %}",
            "{{ bos_token }}{{ unk_token }}{{ tools is none }}{{ documents is none }}",
            "{% generation %}{% set x = 1 %}{{ messages[-1].content }}{% endgeneration %}{{ x }}",
        ],
    )
    @pytest.mark.parametrize("text", ["How do I count to nine?", "  Zwölf 日本 🙂\n", f"{BOS}!"])
    def test_the_same_ids_are_read(self, tmp_path: Path, template: str | None, text: str) -> None:
        transformers = pytest.importorskip("transformers")
        write_tiny_tokenizer(tmp_path)
        if template:
            (tmp_path / "chat_template.jinja").write_text(template)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        assert opened(tmp_path).encode_question(text) == theirs
