"""One stack, and the first engine built on it, for all tests of the whole build."""

import pytest
from forge import Build, Forge, tiny_spec, write_spec
from models import write_tiny_model
from pydantic import SecretStr

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


@pytest.fixture(scope="session")
def built(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The first engine of the session, compiled without a timing cache."""
    pytest.importorskip("torch")
    directory = tmp_path_factory.mktemp("first")
    model = write_tiny_model(directory / "tiny-first", seed=1)
    spec_file = write_spec(directory / "spec.yaml", model)
    return Build(model, tiny_spec(model), spec_file, forge.json("build", spec_file))
