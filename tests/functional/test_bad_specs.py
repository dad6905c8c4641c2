"""Whatever is wrong with a spec or a service: one line that says what, where, and what to do.

Nothing is made by then. The commands run in this process, on an empty bucket, unless they come as
far as Prefect, which wants a process of its own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forge import Forge, write_spec
from models import write_tiny_model
from safetensors.numpy import load_file, save_file

from trtforge import cli

CLOSED_PORT = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Answer:
    exit_code: int
    out: str
    err: str

    def is_one_line(self, exit_code: int, *fragments: str) -> None:
        """It ended with one line on stderr, nothing on stdout, and `exit_code`."""
        assert self.exit_code == exit_code, self.err
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        missing = [fragment for fragment in fragments if fragment not in self.err]
        assert not missing, self.err


Command = Callable[..., Answer]


@pytest.fixture
def trtforge(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs the command in this process, with a home where nothing is."""
    monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path / "home"))

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["trtforge", *map(str, arguments)])
        exit_code = 0
        try:
            cli.main()
        except SystemExit as end:
            exit_code = end.code if isinstance(end.code, int) else 0
        written = capsys.readouterr()
        return Answer(exit_code, written.out, written.err)

    return run


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bucket that the command is told to use."""
    for name, value in storage(s3).items():
        monkeypatch.setenv(name, value)
    return s3


def storage(s3: Any) -> dict[str, str]:
    return {
        "TRTFORGE_S3_ENDPOINT_URL": s3.endpoint_url,
        "TRTFORGE_S3_BUCKET": s3.bucket,
        "TRTFORGE_S3_ACCESS_KEY_ID": s3.access_key_id,
        "TRTFORGE_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
    }


def keys(s3: Any) -> set[str]:
    answer = s3.client.list_objects_v2(Bucket=s3.bucket)
    return {item["Key"] for item in answer.get("Contents", [])}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", layers=1)


def part(name: str, **values: Any) -> dict[str, Any]:
    return {name: values}


@pytest.mark.parametrize(
    ("parts", "fragments"),
    [
        pytest.param(
            part("engine", max_batchsize=1),
            ["engine.max_batchsize = 1", "unknown key", "Did you mean 'max_batch_size'?"],
            id="unknown key",
        ),
        pytest.param(
            part("engine", max_input_len=200),
            ["engine.max_input_len = 200", "max_seq_len 96", "Use at most 96"],
            id="prompt longer than sequence",
        ),
        pytest.param(
            part("engine", max_batch_size="many"),
            ["engine.max_batch_size = 'many'", "Expected: Sequences at once"],
            id="not a number",
        ),
        pytest.param(
            part("engine", options={"precision": "fp8"}),
            [
                "engine.options.precision = 'fp8'",
                "no such option",
                "Known: decode, device, threads",
            ],
            id="unknown engine option",
        ),
        pytest.param(
            part("engine", options={"device": "tpu"}),
            ["engine.options.device = 'tpu'", "no such device", "auto, cpu, cuda"],
            id="wrong device",
        ),
        pytest.param(
            part("checkpoint", pp=2),
            ["checkpoint.pp = 2", "all layers on every rank", "Use 1, and checkpoint.tp"],
            id="pp 2",
        ),
        pytest.param(
            part("checkpoint", tp=3),
            ["checkpoint.tp = 3", "4 attention heads cannot be shared out", "1, 2, 4"],
            id="tp 3",
        ),
        pytest.param(
            part("benchmark", workload={"input_tokens": 90, "output_tokens": 2}),
            ["benchmark.workload.input_tokens = 90", "48 tokens", "raise engine.max_input_len"],
            id="workload too long",
        ),
        pytest.param(
            part("gates", prompts=["Hello", "word " * 60]),
            ["gates.prompts.1 = ", "at most 48 fit", "Shorten it"],
            id="gate prompt too long",
        ),
        pytest.param(
            part("publish", prompt="word " * 60),
            ["publish.prompt = ", "at most 48 fit", "Shorten it"],
            id="published prompt too long",
        ),
        pytest.param(
            part("publish", aliases=["Prod/EU"]),
            ["publish.aliases.0 = 'Prod/EU'", "pattern"],
            id="alias",
        ),
        pytest.param(
            part("model", source="ftp://somewhere/model"),
            ["ftp://somewhere/model", "hf://"],
            id="unknown scheme",
        ),
        pytest.param(
            part("model", source="/no/such/directory"),
            ["model.source = '/no/such/directory'", "no such directory", "Check the path"],
            id="missing directory",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_to_type_instead(
    parts: Mapping[str, Any],
    fragments: list[str],
    trtforge: Command,
    bucket: Any,
    model: Path,
    tmp_path: Path,
) -> None:
    spec = write_spec(tmp_path / "spec.yaml", model, **parts)
    trtforge("plan", spec).is_one_line(2, *fragments)
    assert keys(bucket) == set()


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lose_a_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def rename_the_architecture(model: Path) -> None:
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace("LlamaForCausalLM", "MambaForCausalLM"))


def break_the_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def break_the_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("[]")


def break_the_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% if %}")


def lose_the_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def pickle_the_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "fragments"),
    [
        (truncate, ["model.safetensors", "again"]),
        (lose_a_tensor, ["model.layers.0.mlp.up_proj.weight"]),
        (rename_the_architecture, ["MambaForCausalLM", "LlamaForCausalLM"]),
        (break_the_config, ["config.json"]),
        (break_the_tokenizer, ["tokenizer.json cannot be read"]),
        (break_the_template, ["chat template", "Mend the model's chat_template"]),
        (lose_the_weights, ["safetensors"]),
        (pickle_the_weights, ["safetensors", "pytorch_model.bin"]),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else None,
)
def test_a_model_that_is_no_good_is_refused_where_it_lies(
    harm: Callable[[Path], None],
    fragments: list[str],
    trtforge: Command,
    bucket: Any,
    model: Path,
    tmp_path: Path,
) -> None:
    harm(model)
    spec = write_spec(tmp_path / "spec.yaml", model)
    trtforge("plan", spec).is_one_line(2, *fragments)
    assert keys(bucket) == set()


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (None, ["cannot be read", "No such file"]),
        ("model: [", ["cannot be read", "Give a readable YAML file"]),
        ("- model", ["must be a YAML mapping", "Begin with 'model:'"]),
        ("", ["must be a YAML mapping"]),
        ("{}", ["model = None", "required"]),
        ("model: {name: tiny}", ["model.source = None", "required", "hf://"]),
    ],
)
@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_file_that_is_no_spec(
    command: str, text: str | None, fragments: list[str], trtforge: Command, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    if text is not None:
        spec.write_text(text)
    # Storage is not even asked for.
    trtforge(command, spec).is_one_line(2, *fragments)


@pytest.mark.parametrize("command", [["plan"], ["build"], ["list"], ["show", "0123456"]])
def test_without_storage_it_says_how_to_get_some(
    command: list[str], trtforge: Command, model: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "spec.yaml", model)
    arguments = [*command, spec] if command[0] in ("plan", "build") else command
    trtforge(*arguments).is_one_line(
        2, "no object storage is configured", "trtforge up", "TRTFORGE_S3_BUCKET"
    )


def test_without_a_prefect_server_it_says_how_to_get_one(
    trtforge: Command, bucket: Any, model: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "spec.yaml", model)
    trtforge("build", spec).is_one_line(
        2, "no Prefect server is configured", "trtforge up", "TRTFORGE_PREFECT_API_URL"
    )
    assert keys(bucket) == set()


def test_storage_that_does_not_answer_is_a_failed_service(
    trtforge: Command,
    bucket: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRTFORGE_S3_ENDPOINT_URL", CLOSED_PORT)
    spec = write_spec(tmp_path / "spec.yaml", model)
    trtforge("plan", spec).is_one_line(3, CLOSED_PORT, "no answer", "trtforge up", bucket.bucket)


@pytest.mark.parametrize(
    ("variable", "value", "fragments"),
    [
        ("TRTFORGE_S3_BUCKET", "no-such-bucket-here", ["no such bucket", "Create it"]),
        ("TRTFORGE_S3_SECRET_ACCESS_KEY", "wrong", ["does not accept the credentials"]),
    ],
)
def test_storage_that_refuses_is_a_failed_service(
    variable: str,
    value: str,
    fragments: list[str],
    trtforge: Command,
    bucket: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    answer = trtforge("list")
    answer.is_one_line(3, *fragments)
    assert bucket.secret_access_key not in answer.err


def test_a_toolchain_that_is_not_there_cannot_build(
    trtforge: Command,
    bucket: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRTFORGE_TOOLCHAIN_PYTHON", "/no/such/python")
    spec = write_spec(tmp_path / "spec.yaml", model)
    trtforge("plan", spec).is_one_line(4, "TRTFORGE_TOOLCHAIN_PYTHON = '/no/such/python'")
    assert keys(bucket) == set()


def test_a_prefect_server_that_does_not_answer_is_a_failed_service(
    s3: Any, model: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "spec.yaml", model)
    done = subprocess.run(
        [sys.executable, "-m", "trtforge.cli", "build", spec],
        env={
            **os.environ,
            **storage(s3),
            "TRTFORGE_HOME": str(tmp_path / "home"),
            "TRTFORGE_PREFECT_API_URL": f"{CLOSED_PORT}/api",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    answer.is_one_line(3, f"{CLOSED_PORT}/api", "no answer from the Prefect server", "trtforge up")
    assert keys(s3) == set()


def test_a_bad_model_ends_a_run_of_the_flow_with_the_same_line(
    forge: Forge, model: Path, tmp_path: Path
) -> None:
    lose_a_tensor(model)
    spec = write_spec(tmp_path / "spec.yaml", model)
    before = forge.listing()
    done = forge.run("build", spec, "--json")
    answer = Answer(done.returncode, done.stdout, done.stderr)
    answer.is_one_line(2, "model.layers.0.mlp.up_proj.weight")
    assert forge.run("plan", spec).stderr == done.stderr
    assert forge.listing() == before


def test_a_gpu_that_is_not_there_is_a_wrong_spec(
    trtforge: Command, bucket: Any, model: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    spec = write_spec(tmp_path / "spec.yaml", model, engine={"options": {"device": "cuda"}})
    trtforge("plan", spec).is_one_line(2, "engine.options.device = 'cuda'", "Set", "cpu")
    assert keys(bucket) == set()
