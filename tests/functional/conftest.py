"""One stack, and the first engine built on it, for all tests of the whole build."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import docker_images
import prefect.settings as prefect_settings
import pytest
from docker_engine import DockerEngine, NoDockerError
from docker_engine import docker_engine as started_engine
from docker_images import WorkerImage
from forge import Build, Forge, tiny_spec, write_spec
from models import write_tiny_model
from platform_crew import Crew
from platform_start import crew_of_its_own
from prefect.client.orchestration import SyncPrefectClient, get_client
from pydantic import SecretStr

from trtforge.settings import load_settings, prefect_environment
from trtforge.stack import StackInfo
from trtforge.stack import state as stack_state
from trtforge.store import Store
from trtforge.store.client import make_client


@pytest.fixture(scope="session")
def forge(stack: StackInfo, tmp_path_factory: pytest.TempPathFactory) -> Forge:
    state = stack_state.read(stack.home)
    assert state is not None
    client = make_client(
        endpoint_url=state.s3.endpoint_url,
        region=state.s3.region,
        access_key_id=state.s3.access_key_id,
        secret_access_key=SecretStr(state.s3.secret_access_key),
    )
    cache = tmp_path_factory.mktemp("cache")
    return Forge(stack.home, stack, client, Store(client, state.s3.bucket, cache))


@pytest.fixture(scope="module")
def prefect_client(stack: StackInfo) -> Iterator[SyncPrefectClient]:
    """This process as a client of the stack's server: its flows run there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTFORGE_HOME", str(stack.home))
        environment = prefect_environment(load_settings())
    # Prefect makes no parents.
    Path(environment["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    names = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME")
    told: dict[Any, Any] = {
        getattr(prefect_settings, name): environment[name] for name in names if name in environment
    }
    told[prefect_settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
    told[prefect_settings.PREFECT_LOGGING_TO_API_ENABLED] = False
    with prefect_settings.temporary_settings(told), get_client(sync_client=True) as found:
        yield found


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """A stack with workers that the crash matrix kills piece by piece."""
    with crew_of_its_own() as crew:
        yield crew


@pytest.fixture(scope="session")
def built(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The first engine of the session, compiled without a timing cache."""
    pytest.importorskip("torch")
    directory = tmp_path_factory.mktemp("first")
    model = write_tiny_model(directory / "tiny-first", seed=1)
    spec_file = write_spec(directory / "spec.yaml", model)
    return Build(model, tiny_spec(model), spec_file, forge.json("build", spec_file))


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """A Docker engine: the machine's, or one of the tests' own."""
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(started_engine())
        except NoDockerError as error:
            pytest.skip(str(error))
        yield engine


@pytest.fixture(scope="session")
def cpu_image(docker_engine: DockerEngine) -> WorkerImage:
    """The image of docker/Dockerfile.cpu, built once for all tests."""
    return _image(docker_images.cpu_image, docker_engine)


@pytest.fixture(scope="session")
def machine_image(docker_engine: DockerEngine) -> WorkerImage:
    """A stand-in for it that shows this machine's own files."""
    return _image(docker_images.machine_image, docker_engine)


def _image(make: Callable[[DockerEngine], WorkerImage], engine: DockerEngine) -> WorkerImage:
    try:
        return make(engine)
    except NoDockerError as error:
        pytest.skip(str(error))
