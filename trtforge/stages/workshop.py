"""A workshop from the settings of this process."""

from pydantic import SecretStr

from trtforge.settings import Settings, load_settings
from trtforge.stages.stage import Workshop
from trtforge.store.connect import store_of


def open_workshop(
    settings: Settings | None = None,
    *,
    hub_token: SecretStr | None = None,
    force: bool = False,
    run_id: str | None = None,
) -> Workshop:
    """Open the store and the scratch space below `TRTFORGE_HOME`.

    Args:
        run_id: Of the flow run that builds, where there is one.

    Raises:
        StorageNotConfiguredError: Nothing says where the store is.
    """
    settings = settings or load_settings()
    return Workshop(
        store=store_of(settings),
        work_root=settings.home / "work",
        python=settings.toolchain_python,
        trtllm_python=settings.trtllm_python,
        hub_token=hub_token,
        force=force,
        run_id=run_id,
    )
