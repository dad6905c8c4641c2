"""A workshop from the settings of this process."""

from pydantic import SecretStr

from trtforge.settings import Settings, load_settings
from trtforge.stages.stage import Workshop
from trtforge.store import Store


def open_workshop(
    settings: Settings | None = None,
    *,
    hub_token: SecretStr | None = None,
    force: bool = False,
) -> Workshop:
    """Open the store and the scratch space below `TRTFORGE_HOME`.

    Raises:
        StorageNotConfiguredError: Nothing says where the store is.
    """
    settings = settings or load_settings()
    key = settings.s3_access_key_id
    store = Store.from_settings(
        endpoint_url=settings.s3_endpoint_url,
        bucket=settings.require_bucket(),
        region=settings.s3_region,
        access_key_id=key.get_secret_value() if key else None,
        secret_access_key=settings.s3_secret_access_key,
        cache_dir=settings.home / "cache",
    )
    return Workshop(
        store=store,
        work_root=settings.home / "work",
        python=settings.toolchain_python,
        hub_token=hub_token,
        force=force,
    )
