"""The files: those that trtforge comes with are right, and wrong ones are named in one line."""

import importlib
import pkgutil
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import Flow

from deployments import errors
from deployments.desired import Desired, desired
from deployments.files import HERE, read
from flows import __path__ as flows_path
from trtforge.errors import InputError
from trtforge.spec import parse_spec

Edit = Callable[[Any], None]


def load(name: str) -> Any:
    return yaml.safe_load((HERE / name).read_text())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the files, and of their deployments those of build-engine."""
    copy = tmp_path / "deployments"
    shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    content = load("prefect.yaml")
    of_builds = [d for d in content["deployments"] if ".build_engine." in d["entrypoint"]]
    (copy / "prefect.yaml").write_text(yaml.safe_dump({**content, "deployments": of_builds}))
    content = load("automations.yaml")
    content["automations"] = [a for a in content["automations"] if "weights" not in a["name"]]
    (copy / "automations.yaml").write_text(yaml.safe_dump(content))
    return copy


def edit(directory: Path, name: str, change: Edit) -> None:
    path = directory / name
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def ours() -> Desired:
    return desired(read())


def test_every_gpu_pool_has_a_deployment_of_its_name(ours: Desired) -> None:
    """That is how build-engine finds it."""
    pools = {pool.name for pool in ours.pools if pool.name.startswith("gpu-")}
    stages = {d.name: d for d in ours.deployments if d.flow_name == "gpu-stage"}
    assert stages.keys() == pools
    assert all(d.body["work_pool_name"] == name for name, d in stages.items())


def test_every_deployment_has_what_keeps_a_run_alive_and_its_results_json(ours: Desired) -> None:
    for deployment in ours.deployments:
        environment = deployment.body["job_variables"]["env"]
        assert environment["PREFECT_CLIENT_MAX_RETRIES"] == "8", deployment.full_name
        assert environment["TRTFORGE_S3_PATIENCE_S"] == "480", deployment.full_name
        assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
        assert environment["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"
        assert deployment.body["pull_steps"] == []


def test_every_deployment_and_parameter_is_described(ours: Desired) -> None:
    for deployment in ours.deployments:
        assert deployment.body["description"], deployment.full_name
        properties = deployment.body["parameter_openapi_schema"]["properties"]
        for name, schema in properties.items():
            assert schema.get("description"), f"{deployment.full_name}: {name}"
        positions = [schema["position"] for schema in properties.values()]
        assert positions == sorted(positions)


def test_presets_are_complete_and_build_on_a_pool_that_there_is(ours: Desired) -> None:
    presets = [d for d in ours.deployments if "preset" in d.body["tags"]]
    assert "llama-2-7b-chat-h100-bf16" in {d.name for d in presets}
    stages = {d.full_name for d in ours.deployments}
    for preset in presets:
        spec = parse_spec(preset.body["parameters"]["spec"])
        assert spec.checkpoint.dtype == "bfloat16"
        assert f"gpu-stage/{preset.body['parameters']['gpu_pool']}" in stages


def test_the_preset_of_the_original_recipe_takes_the_plugins_types_from_the_checkpoint() -> None:
    [preset] = [d for d in read().deployments if d.name == "llama-2-7b-chat-h100-bf16"]
    engine = parse_spec(preset.parameters["spec"]).engine
    assert (engine.backend, engine.version) == ("trtllm", "1.2.1")
    assert engine.options == {"gpt_attention_plugin": "auto", "gemm_plugin": "auto"}


def test_no_announced_change_of_weights_is_dropped(ours: Desired) -> None:
    by_name = {d.full_name: d for d in ours.deployments}
    on_change = by_name["rebuild-catalog/on-change"].body
    assert on_change["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_zombies_are_waited_for_longer_than_clients_wait_for_the_server() -> None:
    """8 retries last 8.5 minutes, and a beat comes each minute."""
    by_name = {automation.name: automation for automation in read().automations}
    trigger = by_name["crash zombie runs"].trigger
    assert trigger.within == 600
    assert trigger.after <= trigger.expect
    never_start = by_name["crash runs that never start"].trigger
    assert never_start.within > trigger.within
    assert "prefect.flow-run.Pending" not in never_start.expect


def test_every_flow_that_runs_on_a_pool_is_watched_over(ours: Desired) -> None:
    """Automations know our flows by name: one that is left out would be a zombie for ever."""
    modules = [importlib.import_module(f"flows.{m.name}") for m in pkgutil.iter_modules(flows_path)]
    flows = {v.name for module in modules for v in vars(module).values() if isinstance(v, Flow)}
    deployed = {deployment.flow_name for deployment in ours.deployments}
    assert deployed == flows
    by_name = {automation.name: automation for automation in read().automations}
    for name in ("crash zombie runs", "crash runs that never start", "notify of failed runs"):
        related = by_name[name].trigger.match_related
        assert related["prefect.resource.role"] == "flow"
        assert set(related["prefect.resource.name"]) == deployed, name


def _set(*path: Any, to: Any) -> Edit:
    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = to

    return change


def _add(*path: Any, entry: Any) -> Edit:
    def change(content: Any) -> None:
        for part in path:
            content = content[part]
        content.append(entry)

    return change


_POOL = ("deployments", 0, "work_pool")
_SCHEDULE = {"slug": "a", "cron": "0 2 * * *", "parameters": {"spec": {"model": {"source": "x"}}}}


@pytest.mark.parametrize(
    ("file", "change", "error", "said"),
    [
        (
            "prefect.yaml",
            _set("deployments", 0, "work_pol", to={}),
            errors.FileInvalidError,
            "prefect.yaml: deployments.0.work_pol = '<dict>': unknown key. "
            "Did you mean 'work_pool'?",
        ),
        (
            "prefect.yaml",
            _set(*_POOL, "name", to="gpu-dokcer"),
            errors.UnknownNameError,
            "prefect.yaml: deployment cpu.work_pool.name = 'gpu-dokcer': no such pool in "
            "pools.yaml. Did you mean 'gpu-docker'?",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "entrypoint", to="flows.build_engin.build_engine"),
            errors.EntrypointError,
            "deployment cpu.entrypoint = 'flows.build_engin.build_engine': there is no such "
            "module. Did you mean 'flows.build_engine'?",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "entrypoint", to="flows.build_engine.build_engin"),
            errors.EntrypointError,
            "the module has no flow of that name. Did you mean 'build_engine'?",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "entrypoint", to="flows/build_engine.py:build_engine"),
            errors.EntrypointError,
            "this is not a module path",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "parameters", to={"forse": True}),
            errors.ParameterError,
            "deployment cpu.parameters = 'forse': the flow build-engine has no such parameter. "
            "Did you mean 'force'?",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "parameters", to={"force": "perhaps"}),
            errors.ParameterError,
            "deployment cpu.parameters.force = 'perhaps'",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "parameters", to={"force": "true"}),
            errors.ParameterError,
            "'true' is not of type 'boolean'",
        ),
        (
            "prefect.yaml",
            _set("deployments", 2, "parameters", "spec", "engine", "max_batchsize", to=4),
            errors.ParameterError,
            "parameters.spec.engine.max_batchsize = 4: unknown key. Did you mean 'max_batch_size'?",
        ),
        (
            "prefect.yaml",
            _set(*_POOL, "job_variables", "evn", to={}),
            errors.JobVariableError,
            "job_variables = 'evn': the job template has no such job variable. Did you mean 'env'?",
        ),
        (
            "prefect.yaml",
            _set(*_POOL, "job_variables", "stream_output", to="yes"),
            errors.JobVariableError,
            "job_variables.stream_output = 'yes'",
        ),
        (
            "prefect.yaml",
            _set(*_POOL, "job_variables", "env", "HF_TOKEN", to="hf_abc"),
            errors.SecretInFileError,
            "'HF_TOKEN': this looks like a secret",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "schedules", to=[{**_SCHEDULE, "cron": "0 2 * *"}]),
            errors.FileInvalidError,
            "schedules.a.cron = '0 2 * *'",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "schedules", to=[{**_SCHEDULE, "timezone": "Europe/Berlln"}]),
            errors.FileInvalidError,
            "schedules.a.timezone = 'Europe/Berlln'",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "schedules", to=[{**_SCHEDULE, "interval": 3600}]),
            errors.FileInvalidError,
            "give exactly one of cron, interval and rrule",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "schedules", to=[_SCHEDULE, _SCHEDULE]),
            errors.NameTakenError,
            "cpu.schedules = 'a': there are two of that name",
        ),
        (
            "prefect.yaml",
            _set("deployments", 0, "schedules", to=[{**_SCHEDULE, "parameters": {}}]),
            errors.FileInvalidError,
            "a run by this schedule lacks the parameter spec",
        ),
        (
            "prefect.yaml",
            _set("deployments", 1, "name", to="cpu"),
            errors.NameTakenError,
            "= 'cpu': the flow build-engine has two deployments of that name",
        ),
        (
            "prefect.yaml",
            _set("pull", to=[{"prefect.deployments.steps.git_clone": {}}]),
            errors.FileInvalidError,
            "prefect.yaml: pull",
        ),
        (
            "pools/pools.yaml",
            _set("pools", 0, "type", to="dokcer"),
            errors.FileInvalidError,
            "pools.yaml: pools.0.type = 'dokcer': unknown value. Use one of 'process', 'docker'",
        ),
        (
            "pools/pools.yaml",
            _set("pools", 0, "template", to="proces.json"),
            errors.FileUnreadableError,
            "proces.json': it cannot be read",
        ),
        (
            "pools/pools.yaml",
            _set("pools", 1, "name", to="cpu"),
            errors.NameTakenError,
            "pools.yaml: pools = 'cpu'",
        ),
        (
            "automations.yaml",
            _set("automations", 0, "trigger", "whitin", to=3),
            errors.FileInvalidError,
            "automations.0.trigger.whitin = 3: unknown key. Did you mean 'within'?",
        ),
        (
            "automations.yaml",
            _set("automations", 0, "actions", 0, "type", to="change-state"),
            errors.FileInvalidError,
            "automations.0.actions.0 = '<dict>': unknown value. Use one of 'run-deployment'",
        ),
        (
            "automations.yaml",
            _set("automations", 0, "actions", 0, "mesage", to="x"),
            errors.FileInvalidError,
            "mesage = 'x': unknown key. Did you mean 'message'?",
        ),
        (
            "automations.yaml",
            _set("automations", 2, "actions", 0, "block", to="trtforge-notification"),
            errors.UnknownNameError,
            "no such webhook block in platform.yaml. Did you mean 'trtforge-notifications'?",
        ),
        (
            "automations.yaml",
            _set("automations", 2, "actions", 0, "payload", to="{{ flow.name"),
            errors.FileInvalidError,
            "payload = '{{ flow.name': this is not a Jinja template",
        ),
        (
            "automations.yaml",
            _set(
                "automations", 2, "actions", 0, to={"type": "run-deployment", "deployment": "b/cpu"}
            ),
            errors.UnknownNameError,
            "no such deployment in prefect.yaml. ",
        ),
        (
            "automations.yaml",
            _set("automations", 0, "trigger", "within", to=5),
            errors.FileInvalidError,
            "trigger.within = 5.0: Prefect waits for what does not come for ten seconds or more",
        ),
        (
            "platform.yaml",
            _add("limits", entry={"name": "hub", "limit": -1}),
            errors.FileInvalidError,
            "platform.yaml: limits.0.limit = -1",
        ),
        (
            "platform.yaml",
            _add("variables", entry={"name": "hub_token", "value": "hf_abc"}),
            errors.SecretInFileError,
            "platform.yaml: variables = 'hub_token': this looks like a secret",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_file_field_value_and_remedy(
    directory: Path, file: str, change: Edit, error: type[InputError], said: str
) -> None:
    edit(directory, file, change)
    with pytest.raises(error) as caught:
        desired(read(directory))
    line = str(caught.value)
    assert said in line
    assert "\n" not in line
    assert "hf_abc" not in line


def test_a_missing_file_is_named(directory: Path) -> None:
    (directory / "platform.yaml").unlink()
    with pytest.raises(errors.FileUnreadableError, match=r"platform\.yaml.*it cannot be read"):
        read(directory)


def test_a_file_that_is_no_mapping_is_named(directory: Path) -> None:
    (directory / "prefect.yaml").write_text("- deployments\n")
    with pytest.raises(errors.FileUnreadableError, match=r"prefect\.yaml.*not hold a mapping"):
        read(directory)


def test_only_some_pools_take_their_deployments_with_them(directory: Path) -> None:
    wanted = desired(read(directory), only_pools=["cpu-docker"])
    assert [pool.name for pool in wanted.pools] == ["cpu-docker"]
    assert [d.full_name for d in wanted.deployments] == ["build-engine/cpu-docker"]
    assert "cpu" in wanted.pools_elsewhere


def test_a_pool_to_be_chosen_has_to_be_in_the_files(directory: Path) -> None:
    with pytest.raises(errors.UnknownNameError, match=r"only_pools = 'cp'.*Did you mean 'cpu'\?"):
        desired(read(directory), only_pools=["cp"])


def test_an_own_entrypoint_that_fails_to_import_is_told_apart(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_flows.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "wrong_flows.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, said in (
        ("broken_flows", "importing it needs the module not_installed_anywhere"),
        ("wrong_flows", r"importing it fails \(RuntimeError: no\)"),
    ):
        change = _set("deployments", 0, "entrypoint", to=f"{module}.flow")
        edit(directory, "prefect.yaml", change)
        with pytest.raises(errors.EntrypointError, match=said):
            desired(read(directory))
