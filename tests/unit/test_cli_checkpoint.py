"""`trtforge convert` and `inspect` as a person or a script uses them, without a store."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from trtforge.cli import main
from trtforge.files import describe_directory

MODELS = Path(__file__).parents[1] / "fixtures" / "hf-models"
LLAMA = MODELS / "llama31"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def trtforge(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """`trtforge(*arguments)`, with nothing configured."""
    for name in list(os.environ):
        if name.startswith(("TRTFORGE_", "PREFECT_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRTFORGE_HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["trtforge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run


def test_a_model_is_converted_and_the_line_says_what_came_of_it(
    trtforge: Run, tmp_path: Path
) -> None:
    out = tmp_path / "ckpt"
    ended = trtforge("convert", LLAMA, out, "--tp", 2, "--pp", 2)
    assert (ended.code, ended.err) == (0, "")
    line = ended.out.strip().splitlines()[-1]
    assert line.startswith("4 rank files, 385")
    assert line.endswith(f"MB/s, in {out}")
    with safe_open(out / "rank3.safetensors", "numpy") as rank:
        assert "lm_head.weight" in rank.keys()  # noqa: SIM118
    assert trtforge("inspect", out).code == 0
    assert not (tmp_path / "home").exists()


def test_json_names_every_file_with_its_digest(trtforge: Run, tmp_path: Path) -> None:
    out = tmp_path / "ckpt"
    ended = trtforge("convert", MODELS / "mistral", out, "--tp", 2, "--json")
    assert ended.code == 0
    said = ended.json
    assert said["directory"] == str(out)
    assert said["files"] == [ref.to_json() for ref in describe_directory(out)]
    assert said["size_bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert said["seconds"] > 0
    assert isinstance(said["notes"], list)


def test_every_option_reaches_the_checkpoint(trtforge: Run, tmp_path: Path) -> None:
    ended = trtforge(
        *("convert", LLAMA, tmp_path / "ckpt", "--tp", 2, "--target", "0.16", "--dtype", "float16"),
        *("--use-parallel-embedding", "--embedding-sharding-dim", 1),
    )
    assert ended.code == 0
    config = json.loads((tmp_path / "ckpt" / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert config["use_parallel_embedding"] is True
    assert config["embedding_sharding_dim"] == 1
    assert config["mapping"]["tp_size"] == 2
    assert trtforge("inspect", tmp_path / "ckpt", "--json").json["release"] == "0.16"


@pytest.mark.parametrize("flag", ["--plan", "--dry-run"])
def test_a_plan_writes_nothing(trtforge: Run, tmp_path: Path, flag: str) -> None:
    ended = trtforge("convert", LLAMA, tmp_path / "ckpt", "--tp", 2, flag)
    assert ended.code == 0
    assert "rank1.safetensors" in ended.out
    assert "nothing was written" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_in_json_has_the_sizes_that_conversion_gives(trtforge: Run, tmp_path: Path) -> None:
    plan = trtforge("convert", LLAMA, tmp_path / "a", "--tp", 2, "--plan", "--json").json
    done = trtforge("convert", LLAMA, tmp_path / "a", "--tp", 2, "--json").json
    sizes = {file["path"]: file["size_bytes"] for file in done["files"]}
    assert {rank["file"]: rank["size_bytes"] for rank in plan["ranks"]} == {
        name: size for name, size in sizes.items() if name != "config.json"
    }
    assert plan["config"]["mapping"]["tp_size"] == 2


def test_notes_are_shown(trtforge: Run, tmp_path: Path) -> None:
    ended = trtforge("convert", LLAMA, tmp_path / "ckpt", "--dtype", "float16")
    assert "Note: " in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tp", 3], ["checkpoint.tp = 3", "1, 2, 4"]),
        (["--tp", 0], ["checkpoint.tp = 0"]),
        (["--target", "1.3"], ["checkpoint.target = '1.3'", "1.2"]),
        (["--dtype", "fp8"], ["checkpoint.dtype = 'fp8'", "bfloat16"]),
        (["--embedding-sharding-dim", 2], ["checkpoint.embedding_sharding_dim = 2"]),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    trtforge: Run, tmp_path: Path, arguments: list[Any], said: list[str]
) -> None:
    ended = trtforge("convert", LLAMA, tmp_path / "ckpt", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert len(ended.err.splitlines()) == 1
    assert [part for part in said if part not in ended.err] == []
    assert not (tmp_path / "ckpt").exists()


def test_a_directory_that_is_taken_is_left_alone(trtforge: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    ended = trtforge("convert", LLAMA, tmp_path)
    assert ended.code == 2
    assert "not empty" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class TestInspect:
    @pytest.fixture
    def checkpoint(self, trtforge: Run, tmp_path: Path) -> Path:
        assert trtforge("convert", LLAMA, tmp_path / "ckpt", "--tp", 2, "--pp", 2).code == 0
        return tmp_path / "ckpt"

    def test_a_sound_one(self, trtforge: Run, checkpoint: Path) -> None:
        ended = trtforge("inspect", checkpoint)
        assert ended.code == 0
        assert "LlamaForCausalLM, bfloat16, for TensorRT-LLM 1.2" in ended.out
        assert "tp 2 × pp 2, 3 layers" in ended.out
        assert "rank3.safetensors" in ended.out
        assert "4 rank files, 382.8 kB: sound" in ended.out
        assert "qkv" not in ended.out

    def test_tensors_are_listed_once_with_the_ranks_that_hold_them(
        self, trtforge: Run, checkpoint: Path
    ) -> None:
        ended = trtforge("inspect", checkpoint, "--tensors")
        rows = [line.replace(" ", "") for line in ended.out.splitlines()]
        assert any("lm_head.weight│BF16│130×64│2-3" in row for row in rows)
        assert any("layers.0.attention.qkv.weight│BF16│64×64│0-3" in row for row in rows)

    def test_a_broken_one_is_listed_and_exit_code_2(self, trtforge: Run, checkpoint: Path) -> None:
        (checkpoint / "rank1.safetensors").unlink()
        ended = trtforge("inspect", checkpoint)
        assert ended.code == 2
        assert "not sound\n  - missing: rank1.safetensors" in ended.out
        said = trtforge("inspect", checkpoint, "--json")
        assert said.code == 2
        assert said.json["problems"] == ["missing: rank1.safetensors"]
        assert said.json["sound"] is False

    def test_json_has_the_tensors_on_demand(self, trtforge: Run, checkpoint: Path) -> None:
        brief = trtforge("inspect", checkpoint, "--json").json
        assert [rank["tensors"] for rank in brief["ranks"]] == [15, 15, 9, 9]
        whole = trtforge("inspect", checkpoint, "--json", "--tensors").json
        assert len(whole["ranks"][0]["tensors"]) == 15
        assert whole["ranks"][0]["tensors"][0].keys() == {"name", "dtype", "shape", "size_bytes"}

    def test_a_hugging_face_model_is_told_apart(self, trtforge: Run) -> None:
        ended = trtforge("inspect", LLAMA)
        assert ended.code == 2
        assert "trtforge convert" in ended.err


# A conversion slow enough to be interrupted.
WAITING = """
import sys, time
from trtforge import checkpoint
from trtforge.cli import main
real = checkpoint.convert
def convert(model_dir, out_dir, target, *, on_progress):
    def wait(progress):
        print("working", flush=True)
        time.sleep(1)
    return real(model_dir, out_dir, target, on_progress=wait)
checkpoint.convert = convert
main()
"""


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "convert", str(LLAMA), str(tmp_path / "ckpt")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert err == "interrupted; nothing is left behind\n"
    assert list(tmp_path.iterdir()) == []


def test_the_commands_need_neither_prefect_nor_a_store_nor_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from trtforge.cli import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'prefect', 'boto3', 'botocore', 'torch', 'transformers'}\n"
        "    print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    for arguments in (
        ["convert", str(LLAMA), str(tmp_path / "ckpt")],
        ["inspect", str(tmp_path / "ckpt")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_bar_is_shown_on_a_terminal(tmp_path: Path) -> None:
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "trtforge.cli", "convert", str(LLAMA), str(tmp_path / "ckpt")],
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            piece = os.read(master, 4096)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait(timeout=60) == 0
    os.close(master)
    assert "━" in shown.decode()
    assert b"kB" in shown
