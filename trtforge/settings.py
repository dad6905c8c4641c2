"""Where trtforge works: its home, the object storage, the Prefect server, the toolchain.

The environment decides (`TRTFORGE_…`). What it leaves open comes from the embedded stack of the
home, if `trtforge up` ever ran there.
"""

import sys
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from trtforge.errors import InputError
from trtforge.stack import state as stack_state


class StorageNotConfiguredError(InputError):
    """Neither the environment nor an embedded stack says where the store is."""


class PrefectNotConfiguredError(InputError):
    """Neither the environment nor an embedded stack says where the Prefect server is."""


class Settings(BaseSettings):
    """The settings of this process. Each field is `TRTFORGE_<FIELD>` in the environment.

    Attributes:
        home: Data of the embedded stack, caches and Prefect's own files; absolute.
        s3_endpoint_url: Object storage; None is AWS.
        s3_bucket: Bucket of the store.
        s3_region: None: whatever boto3 finds.
        s3_access_key_id: None, as the secret key: boto3's own chain of credentials.
        s3_secret_access_key: See there.
        prefect_api_url: API of the Prefect server; `PREFECT_API_URL` is understood too.
        toolchain_python: Interpreter that has the engine backend's toolchain.
    """

    model_config = SettingsConfigDict(
        env_prefix="TRTFORGE_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    home: Path = Field(default=Path(".trtforge"), validate_default=True)
    s3_endpoint_url: str | None = None
    s3_bucket: str | None = None
    s3_region: str | None = None
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    prefect_api_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "prefect_api_url", "TRTFORGE_PREFECT_API_URL", "PREFECT_API_URL"
        ),
    )
    toolchain_python: Path = Path(sys.executable)

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    def require_bucket(self) -> str:
        """The bucket of the store.

        Raises:
            StorageNotConfiguredError: None is set and `trtforge up` never ran for this home.
        """
        if self.s3_bucket is None:
            raise StorageNotConfiguredError(
                "no object storage is configured",
                field="s3_bucket",
                value=None,
                remedy="Run `trtforge up`, or set TRTFORGE_S3_ENDPOINT_URL (not needed for AWS) "
                "and TRTFORGE_S3_BUCKET",
            )
        return self.s3_bucket


def load_settings() -> Settings:
    """Read the environment, then fill in the embedded stack.

    The storage is taken from one of the two as a whole: credentials of the embedded server are
    never sent to an endpoint that the environment names.
    """
    settings = Settings()
    stack = stack_state.read(settings.home)
    if stack is None:
        return settings
    filled: dict[str, object] = {}
    if not any(name.startswith("s3_") for name in settings.model_fields_set):
        filled |= {
            "s3_endpoint_url": stack.s3.endpoint_url,
            "s3_bucket": stack.s3.bucket,
            "s3_region": stack.s3.region,
            "s3_access_key_id": SecretStr(stack.s3.access_key_id),
            "s3_secret_access_key": SecretStr(stack.s3.secret_access_key),
        }
    if settings.prefect_api_url is None:
        filled["prefect_api_url"] = stack.prefect_api_url
    return settings.model_copy(update=filled)


def prefect_environment(settings: Settings) -> dict[str, str]:
    """The variables that a process talking to the Prefect server needs, beside its own.

    Raises:
        PrefectNotConfiguredError: No server is configured.
    """
    if settings.prefect_api_url is None:
        raise PrefectNotConfiguredError(
            "no Prefect server is configured",
            field="prefect_api_url",
            value=None,
            remedy="Run `trtforge up`, or set TRTFORGE_PREFECT_API_URL",
        )
    prefect_home = settings.home / "prefect-client"
    return {
        "PREFECT_API_URL": settings.prefect_api_url,
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_PROFILES_PATH": str(prefect_home / "profiles.toml"),
        # Otherwise a missing server is silently replaced by a temporary one.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # The library's warnings belong into the run's log.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "trtforge",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
