import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from trtforge.spec import (
    BuildSpec,
    SpecError,
    SpecFileError,
    did_you_mean,
    load_spec,
    parse_spec,
)

SOURCE = {"source": "hf://org/name"}
SMALL: dict[str, Any] = {
    "model": {"source": "hf://org/name@v1", "name": "name"},
    "checkpoint": {
        "dtype": "bfloat16",
        "tp": 1,
        "pp": 1,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 1,
        "target": "1.1",
        "tool": "upstream",
    },
    "engine": {
        "backend": "aoti",
        "max_batch_size": 2,
        "max_input_len": 24,
        "max_seq_len": 48,
        "max_num_tokens": 48,
        "options": {"device": "cpu", "threads": 2},
        "timing_cache": "read",
    },
    "benchmark": {
        "workload": {"input_tokens": 8, "output_tokens": 4},
        "concurrency": [1, 2],
        "warmups": 1,
        "repeats": 2,
        "seed": 7,
    },
    "gates": {
        "prompts": ["Hello"],
        "new_tokens": 4,
        "rounding_factor": 2.5,
        "step_factor": 3.0,
        "prompt_sets": ["code"],
        "text_tokens": 8,
        "kl_factor": 5.0,
        "top1_agreement": 0.9,
        "perplexity_tolerance": 0.1,
        "performance": {
            "mode": "report",
            "tolerance": 0.1,
            "metrics": ["itl_s"],
            "repeats": 4,
        },
    },
    "publish": {"aliases": ["latest", "prod"], "prompt": "Hello", "max_output_len": 4},
}


def refused(data: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    assert "\n" not in str(caught.value)
    return caught.value


def with_value(path: str, value: object) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(SMALL))
    *parents, last = path.split(".")
    part = data
    for name in parents:
        part = part[name]
    part[last] = value
    return data


def parts(model: type[BaseModel] = BuildSpec) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every part of the spec, with its path."""
    yield "", model
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for path, part in parts(info.annotation):
                yield f"{name}.{path}".rstrip("."), part


class TestDefaults:
    def test_a_source_is_all_that_must_be_given(self) -> None:
        spec = parse_spec({"model": SOURCE})
        assert spec.model.source == "hf://org/name"
        assert spec.model.name is None
        assert spec.checkpoint.dtype == "bfloat16"
        assert (spec.checkpoint.tp, spec.checkpoint.pp) == (1, 1)
        assert (spec.checkpoint.target, spec.checkpoint.tool) == ("1.2", "trtforge")
        assert spec.engine.backend == "aoti"
        assert spec.publish.aliases == ("latest",)

    def test_the_default_benchmark_measures_one_request_and_doubles_up_to_a_full_batch(
        self,
    ) -> None:
        assert parse_spec({"model": SOURCE}).concurrencies() == (1, 2, 4)

    def test_an_engine_for_one_request_is_measured_once(self) -> None:
        spec = parse_spec({"model": SOURCE, "engine": {"max_batch_size": 1}})
        assert spec.concurrencies() == (1,)

    def test_concurrencies_are_measured_once_each_smallest_first(self) -> None:
        spec = parse_spec({"model": SOURCE, "benchmark": {"concurrency": [4, 1, 4, 2]}})
        assert spec.concurrencies() == (1, 2, 4)


class TestRoundTrip:
    def test_a_spec_survives_json(self) -> None:
        spec = parse_spec(SMALL)
        assert parse_spec(json.loads(spec.model_dump_json())) == spec
        assert parse_spec(spec.model_dump(mode="json")) == spec
        assert spec.model_dump(mode="json") == SMALL

    def test_option_values_keep_their_types(self) -> None:
        options = {"a": True, "b": 1, "c": 1.5, "d": "1", "e": "true"}
        spec = parse_spec(with_value("engine.options", options))
        again = parse_spec(json.loads(spec.model_dump_json())).engine.options
        assert [(value, type(value)) for value in again.values()] == [
            (value, type(value)) for value in options.values()
        ]

    @pytest.mark.parametrize("path", [path for path, _ in parts()])
    def test_no_part_can_be_changed(self, path: str) -> None:
        part: Any = parse_spec(SMALL)
        for name in filter(None, path.split(".")):
            part = getattr(part, name)
        for field in type(part).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(part, field, getattr(part, field))


class TestRunForm:
    """What Prefect makes its run form of."""

    @pytest.mark.parametrize(("path", "part"), list(parts()))
    def test_every_field_is_described_and_in_order(self, path: str, part: type[BaseModel]) -> None:
        properties = part.model_json_schema()["properties"]
        assert list(properties) == list(part.model_fields), path
        assert [p["position"] for p in properties.values()] == list(range(len(properties)))
        for name, described in properties.items():
            assert described.get("description"), f"{path}.{name}"

    def test_the_schema_requires_the_source_and_refuses_other_keys(self) -> None:
        schema = BuildSpec.model_json_schema()
        assert schema["required"] == ["model"]
        assert schema["$defs"]["ModelSpec"]["required"] == ["source"]
        assert all(d["additionalProperties"] is False for d in [schema, *schema["$defs"].values()])

    def test_the_schema_is_plain_json_with_defaults(self) -> None:
        schema = json.loads(json.dumps(BuildSpec.model_json_schema(), allow_nan=False))
        assert schema["properties"]["publish"]["default"]["aliases"] == ["latest"]


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("data", "field", "meant"),
        [
            ({"modle": SOURCE}, "modle", "model"),
            ({"model": {"sorce": "x"}}, "model.sorce", "source"),
            ({"model": SOURCE, "checkpoint": {"tpp": 2}}, "checkpoint.tpp", "tp"),
            ({"model": SOURCE, "engine": {"max_batch": 2}}, "engine.max_batch", "max_batch_size"),
            (
                {"model": SOURCE, "benchmark": {"workload": {"input_token": 1}}},
                "benchmark.workload.input_token",
                "input_tokens",
            ),
            ({"model": SOURCE, "gates": {"prompt": ["x"]}}, "gates.prompt", "prompts"),
            ({"model": SOURCE, "publish": {"alias": ["x"]}}, "publish.alias", "aliases"),
        ],
    )
    def test_a_near_miss_is_answered_with_the_key_meant(
        self, data: dict[str, Any], field: str, meant: str
    ) -> None:
        error = refused(data)
        assert error.field == field
        assert error.problem == "unknown key"
        assert error.remedy == f"Did you mean {meant!r}?"

    def test_a_key_like_none_is_answered_with_the_known_ones(self) -> None:
        error = refused({"model": SOURCE, "checkpoint": {"quantisation": "int4"}})
        assert str(error) == (
            "checkpoint.quantisation = 'int4': unknown key. Known: dtype, embedding_sharding_dim, "
            "pp, target, tool, tp, use_parallel_embedding"
        )

    def test_a_key_that_is_no_text_is_refused_too(self) -> None:
        assert refused({"model": SOURCE, True: 1}).field == "True"

    @given(st.data())
    def test_a_typo_of_one_edit_in_any_key_is_refused(self, data: st.DataObject) -> None:
        paths = sorted(keys_below(SMALL))
        path = data.draw(st.sampled_from(paths))
        *parents, key = path
        typo = data.draw(one_edit(key))
        spec = json.loads(json.dumps(SMALL))
        part = spec
        for name in parents:
            part = part[name]
        if typo in part:
            return
        part[typo] = part.pop(key)
        error = refused(spec)
        assert error.field == ".".join([*parents, typo])
        assert error.remedy.startswith(("Did you mean", "Known: "))


class TestOneLineErrors:
    def test_a_missing_source_is_asked_for(self) -> None:
        error = refused({"model": {}})
        assert str(error) == (
            "model.source = None: this field is required. Give it: hf://org/name@revision, "
            "a local directory, or s3://bucket/prefix"
        )

    def test_a_missing_model_names_the_keys_of_a_model(self) -> None:
        assert str(refused({})) == (
            "model = None: this field is required. Give it: a mapping with source, name"
        )

    @pytest.mark.parametrize("data", [None, 5, "model", [], [SMALL]])
    def test_anything_but_a_mapping_names_the_parts_of_a_spec(self, data: object) -> None:
        assert "a mapping with model, checkpoint, engine" in str(refused(data))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("model.source", ""),
            ("model.source", 5),
            ("model.name", "a b"),
            ("model.name", "../a"),
            ("checkpoint.dtype", "float32"),
            ("checkpoint.tp", 0),
            ("engine.backend", "trt"),
            ("engine.max_batch_size", 0),
            ("engine.max_batch_size", 5000),
            ("engine.max_batch_size", "many"),
            ("engine.max_input_len", 2.5),
            ("engine.options", ["device"]),
            ("engine.timing_cache", "write"),
            ("engine.timing_cache", False),
            ("benchmark.workload.output_tokens", 1),
            ("benchmark.warmups", 0),
            ("gates.new_tokens", 0),
            ("gates.top1_agreement", 1.5),
            ("gates.performance.tolerance", 0),
            ("gates.performance.metrics", []),
            ("gates.rounding_factor", 0),
            ("gates.rounding_factor", float("inf")),
            ("gates.rounding_factor", float("nan")),
            ("publish.prompt", ""),
            ("publish.max_output_len", 0),
        ],
    )
    def test_a_bad_value_is_named_with_its_field_and_what_is_expected(
        self, path: str, value: object
    ) -> None:
        error = refused(with_value(path, value))
        assert error.field == path
        assert str(error).startswith(f"{path} = {value!r}: ")
        assert error.problem
        assert error.remedy.startswith("Expected: ")

    @pytest.mark.parametrize("name", ["Latest", "a/b", "", "-x", "x" * 64, "ünique"])
    def test_an_alias_that_would_be_no_file_name_is_refused(self, name: str) -> None:
        error = refused(with_value("publish.aliases", ["ok", name]))
        assert error.field == "publish.aliases.1"
        assert error.value == name

    @pytest.mark.parametrize("value", [None, [1], {"a": 1}, float("nan")])
    def test_an_option_that_is_no_plain_value_is_named_without_the_types_tried(
        self, value: object
    ) -> None:
        error = refused(with_value("engine.options.threads", value))
        assert error.field == "engine.options.threads"
        assert "true or false, a number or a text" in error.problem


class TestLimitsAgree:
    def test_a_prompt_must_fit_into_a_sequence(self) -> None:
        error = refused(with_value("engine.max_input_len", 49))
        assert str(error) == (
            "engine.max_input_len = 49: a prompt of that length does not fit into max_seq_len 48. "
            "Use at most 48, or raise max_seq_len"
        )

    def test_a_forward_pass_must_hold_a_prompt(self) -> None:
        error = refused(with_value("engine.max_num_tokens", 23))
        assert str(error) == (
            "engine.max_num_tokens = 23: a forward pass must hold one prompt of max_input_len 24. "
            "Use at least 24"
        )

    @pytest.mark.parametrize("concurrency", [0, 3])
    def test_the_benchmark_must_not_ask_for_more_at_once_than_the_engine_takes(
        self, concurrency: int
    ) -> None:
        error = refused(with_value("benchmark.concurrency", [1, concurrency]))
        assert (error.field, error.value) == ("benchmark.concurrency", concurrency)
        assert error.problem == "the engine takes 1 to 2 sequences at once"
        assert "engine.max_batch_size" in error.remedy

    def test_the_benchmarks_prompts_must_fit(self) -> None:
        error = refused(with_value("benchmark.workload.input_tokens", 25))
        assert (error.field, error.value) == ("benchmark.workload.input_tokens", 25)
        assert "engine.max_input_len" in error.remedy

    def test_the_benchmarks_sequences_must_fit(self) -> None:
        error = refused(with_value("benchmark.workload.output_tokens", 41))
        assert (error.field, error.value) == ("benchmark.workload", "8+41")
        assert error.problem == "the engine takes 48 tokens in a sequence, this is 49"
        assert "engine.max_seq_len" in error.remedy

    def test_everything_may_be_used_to_its_limit(self) -> None:
        data = with_value("benchmark.workload", {"input_tokens": 24, "output_tokens": 24})
        assert parse_spec(data).benchmark.workload.output_tokens == 24


class TestCheckpoint:
    @pytest.mark.parametrize("release", ["1.2", "1.1", "1.0", "0.16"])
    def test_a_release_may_be_written_without_quotes(self, tmp_path: Path, release: str) -> None:
        file = tmp_path / "spec.yaml"
        file.write_text(f"model: {{source: hf://a/b}}\ncheckpoint: {{target: {release}}}\n")
        assert load_spec(file).checkpoint.target == release

    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("target", "0.18", "'1.2', '1.1', '1.0' or '0.16'"),
            ("target", 0.18, "'1.2', '1.1', '1.0' or '0.16'"),
            ("target", True, "'1.2', '1.1', '1.0' or '0.16'"),
            ("dtype", "float32", "'bfloat16' or 'float16'"),
            ("embedding_sharding_dim", 2, "0 or 1"),
            ("tool", "trtlm", "'trtforge' or 'upstream'"),
            ("tp", 0, "greater than or equal to 1"),
        ],
    )
    def test_what_no_converter_writes_is_refused(
        self, field: str, value: object, expected: str
    ) -> None:
        error = refused(with_value(f"checkpoint.{field}", value))
        assert error.field == f"checkpoint.{field}"
        assert expected in error.problem

    @pytest.mark.parametrize(
        ("field", "value", "problem", "remedy"),
        [
            (
                "pp",
                4,
                "aoti has all layers on every rank",
                "Use 1, and checkpoint.tp to split the model",
            ),
            ("dtype", "float16", "aoti compiles bfloat16 only", "Use bfloat16"),
            ("use_parallel_embedding", True, "aoti has the whole input embedding", "Use false"),
        ],
    )
    def test_what_aoti_cannot_load_is_refused_before_anything_is_pulled(
        self, field: str, value: object, problem: str, remedy: str
    ) -> None:
        error = refused(with_value(f"checkpoint.{field}", value))
        assert (error.field, error.value) == (f"checkpoint.{field}", value)
        assert problem in error.problem
        assert error.remedy == remedy

    def test_aoti_runs_on_as_many_ranks_as_the_checkpoint_has(self) -> None:
        spec = parse_spec(with_value("checkpoint.tp", 4))
        assert (spec.engine.backend, spec.ranks) == ("aoti", 4)

    def test_its_decode_kernels_run_on_one(self) -> None:
        data = with_value("engine.options", {"decode": "kernels"})
        assert parse_spec(data).ranks == 1
        error = refused({**data, "checkpoint": {"tp": 2}})
        assert (error.field, error.value) == ("engine.options.decode", "kernels")
        assert error.remedy == "Use graphs, or checkpoint.tp 1"
        graphs = with_value("engine.options", {"decode": "graphs"})
        assert parse_spec({**graphs, "checkpoint": {"tp": 2}}).ranks == 2


class TestRelease:
    def test_the_default_release_is_named_in_what_is_kept(self) -> None:
        for version in ({}, {"version": ""}, {"version": "1.2.1"}):
            spec = parse_spec({"model": SOURCE, "engine": {"backend": "trtllm", **version}})
            assert spec.engine.version == "1.2.1"
            assert parse_spec(json.loads(spec.model_dump_json())) == spec

    @pytest.mark.parametrize(
        ("version", "target"),
        [("1.2.0", "1.2"), ("1.1.0", "1.1"), ("1.0.0", "1.0"), ("0.16.0", "0.16")],
    )
    def test_a_release_goes_with_the_checkpoints_it_reads(self, version: str, target: str) -> None:
        engine = {"backend": "trtllm", "version": version}
        data = {"model": SOURCE, "engine": engine, "checkpoint": {"target": target}}
        assert parse_spec(data).engine.version == version
        data["checkpoint"] = {"target": "1.0" if target != "1.0" else "1.2"}
        error = refused(data)
        assert error.field == "checkpoint.target"
        assert f"Use {target}" in error.remedy

    @pytest.mark.parametrize(
        ("version", "remedy"),
        [
            ("1.3.0", "Use 1.2.1"),
            ("0.9.0", "Use one of 1.2.1"),
            (1.0, "Did you mean '1.0.0'?"),
            ("latest", "Use one of 1.2.1"),
        ],
    )
    def test_another_release_is_refused_with_one_that_is_not(
        self, version: object, remedy: str
    ) -> None:
        engine = {"backend": "trtllm", "version": version}
        error = refused({"model": SOURCE, "engine": engine})
        assert (error.field, error.value) == ("engine.version", str(version))
        assert remedy in error.remedy

    def test_aoti_has_none(self) -> None:
        error = refused(with_value("engine.version", "2.13.0"))
        assert error.field == "engine.version"
        assert "Leave it out" in error.remedy

    def test_where_there_is_none_nothing_is_kept_of_it(self) -> None:
        assert "version" not in parse_spec(SMALL).model_dump(mode="json")["engine"]

    def test_trtllm_may_split_a_model_and_use_float16(self) -> None:
        checkpoint = {"tp": 2, "pp": 2, "dtype": "float16", "use_parallel_embedding": True}
        spec = parse_spec(
            {"model": SOURCE, "engine": {"backend": "trtllm"}, "checkpoint": checkpoint}
        )
        assert (spec.checkpoint.tp, spec.checkpoint.pp) == (2, 2)


class TestSpecFile:
    def test_a_yaml_file_is_read(self, tmp_path: Path) -> None:
        file = tmp_path / "spec.yaml"
        file.write_text("model:\n  source: hf://org/name\nengine:\n  max_batch_size: 8\n")
        assert load_spec(file).engine.max_batch_size == 8

    def test_a_json_file_is_read(self, tmp_path: Path) -> None:
        file = tmp_path / "spec.json"
        file.write_text(json.dumps(SMALL))
        assert load_spec(file) == parse_spec(SMALL)

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"model: [", "while parsing"),
            (b"model: {source: a}\n\tengine: 1", "while scanning"),
            (b"\xff\xfe\xff", "codec can't decode"),
            (b"!!python/object/apply:os.getcwd []", "could not determine a constructor"),
            (b"", "must be a YAML mapping"),
            (b"- a\n- b\n", "must be a YAML mapping"),
        ],
    )
    def test_what_is_no_yaml_mapping_is_refused_in_one_line(
        self, tmp_path: Path, content: bytes, why: str
    ) -> None:
        file = tmp_path / "spec.yaml"
        file.write_bytes(content)
        with pytest.raises(SpecFileError, match=why) as caught:
            load_spec(file)
        assert "\n" not in str(caught.value)
        assert caught.value.value == str(file)
        assert caught.value.remedy

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SpecFileError, match="No such file") as caught:
            load_spec(tmp_path / "none.yaml")
        assert caught.value.value == str(tmp_path / "none.yaml")

    def test_a_wrong_spec_in_a_good_file_is_a_spec_error(self, tmp_path: Path) -> None:
        file = tmp_path / "spec.yaml"
        file.write_text("model:\n  sorce: hf://org/name\n")
        with pytest.raises(SpecError, match="Did you mean 'source'"):
            load_spec(file)


def test_did_you_mean_lists_the_known_words_in_order_when_none_is_close() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b"


def keys_below(part: dict[str, Any], *path: str) -> Iterator[tuple[str, ...]]:
    for key, value in part.items():
        yield (*path, key)
        # The keys of options are the backend's, not the spec's.
        if isinstance(value, dict) and key != "options":
            yield from keys_below(value, *path, key)


def one_edit(word: str) -> st.SearchStrategy[str]:
    """`word` with one letter added, removed, replaced or swapped with the next."""
    places = st.integers(0, len(word) - 1)
    letters = st.characters(codec="utf-8", exclude_characters="\n\r")
    added = st.builds(lambda i, c: word[:i] + c + word[i:], st.integers(0, len(word)), letters)
    removed = places.map(lambda i: word[:i] + word[i + 1 :])
    replaced = st.builds(lambda i, c: word[:i] + c + word[i + 1 :], places, letters)
    swapped = places.map(lambda i: word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :])
    return st.one_of(added, removed, replaced, swapped).filter(lambda typo: typo != word)
