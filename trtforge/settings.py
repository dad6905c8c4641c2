"""Where trtforge works: its home, the object storage, the Prefect server, the toolchain.

The environment decides (`TRTFORGE_…`). What it leaves open comes from the embedded stack of the
home, if `trtforge up` ever ran there.
"""

import sys
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from trtforge.errors import InputError
from trtforge.stack import state as stack_state


class StorageNotConfiguredError(InputError):
    """Neither the environment nor an embedded stack says where the store is."""


class PrefectNotConfiguredError(InputError):
    """Neither the environment nor an embedded stack says where the Prefect server is."""


class SettingInvalidError(InputError):
    """A variable of the environment has a value that cannot be."""


_STORAGE = {
    "s3_endpoint_url",
    "s3_bucket",
    "s3_region",
    "s3_access_key_id",
    "s3_secret_access_key",
    "s3_profile",
}
"""The settings that say which storage it is; the other ones only say how to speak to it."""


class Settings(BaseSettings):
    """The settings of this process. Each field is `TRTFORGE_<FIELD>` in the environment.

    Attributes:
        home: Data of the embedded stack, caches and Prefect's own files; absolute.
        s3_endpoint_url: Object storage; None is AWS.
        s3_bucket: Bucket of the store.
        s3_region: None: whatever boto3 finds.
        s3_access_key_id: None, as the secret key: boto3's own chain of credentials.
        s3_secret_access_key: See there.
        s3_profile: Section of the AWS configuration files to take credentials and region from.
        s3_addressing: `path` (http://host/bucket) or `virtual` (http://bucket.host); `auto` is
            `path` where an endpoint is set.
        s3_checksums: `when_required` for services that do not know checksum headers.
        s3_encryption: Server-side encryption of every object written; None is the bucket's own.
        s3_kms_key_id: Key of `aws:kms`; None is the account's.
        s3_proxy_url: HTTP proxy to the storage; None: HTTP_PROXY and HTTPS_PROXY.
        s3_ca_bundle: File of certificates (PEM) to trust there; None: the system's.
        s3_connect_timeout_s, s3_read_timeout_s: Of one try.
        s3_max_attempts: Tries of one request in all.
        s3_patience_s: How long a storage that has answered before is waited for.
        prefect_api_url: API of the Prefect server; `PREFECT_API_URL` is understood too.
        prefect_auth: `user:password` of that server; `PREFECT_API_AUTH_STRING` is understood too.
        toolchain_python: Interpreter that has PyTorch and transformers: the toolchain of aoti, and
            of the reference that every engine is compared with.
        trtllm_python: Interpreter that has TensorRT-LLM; None: there is none.
        catalog: File of the catalogue; None: the one that is installed with trtforge.
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
    s3_profile: str | None = None
    s3_addressing: Literal["auto", "path", "virtual"] = "auto"
    s3_checksums: Literal["when_supported", "when_required"] = "when_supported"
    s3_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    s3_kms_key_id: str | None = None
    s3_proxy_url: str | None = None
    s3_ca_bundle: Path | None = None
    s3_connect_timeout_s: float = Field(default=10.0, gt=0)
    s3_read_timeout_s: float = Field(default=60.0, gt=0)
    s3_max_attempts: int = Field(default=5, ge=1)
    s3_patience_s: float = Field(default=60.0, ge=0)
    prefect_api_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "prefect_api_url", "TRTFORGE_PREFECT_API_URL", "PREFECT_API_URL"
        ),
    )
    prefect_auth: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "prefect_auth", "TRTFORGE_PREFECT_AUTH", "PREFECT_API_AUTH_STRING"
        ),
    )
    toolchain_python: Path = Path(sys.executable)
    trtllm_python: Path | None = None
    catalog: Path | None = None

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @model_validator(mode="after")
    def _key_has_a_use(self) -> Self:
        if self.s3_kms_key_id and not (self.s3_encryption or "").startswith("aws:kms"):
            raise SettingInvalidError(
                "a KMS key is given, but encryption with KMS is not asked for",
                field="TRTFORGE_S3_ENCRYPTION",
                value=self.s3_encryption,
                remedy="Set it to aws:kms, or leave out TRTFORGE_S3_KMS_KEY_ID",
            )
        return self

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

    The storage is taken from one of the two as a whole, and so is the Prefect server: credentials
    of the embedded ones are never sent to an address that the environment names.

    Raises:
        SettingInvalidError: A variable has a value that cannot be.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        raise _invalid(error) from error
    stack = stack_state.read(settings.home)
    if stack is None:
        return settings
    filled: dict[str, object] = {}
    if not settings.model_fields_set & _STORAGE:
        filled |= {
            "s3_endpoint_url": stack.s3.endpoint_url,
            "s3_bucket": stack.s3.bucket,
            "s3_region": stack.s3.region,
            "s3_access_key_id": SecretStr(stack.s3.access_key_id),
            "s3_secret_access_key": SecretStr(stack.s3.secret_access_key),
        }
    named = settings.prefect_api_url
    if named is None or (named == stack.prefect_api_url and settings.prefect_auth is None):
        auth = stack.prefect_auth
        filled |= {
            "prefect_api_url": stack.prefect_api_url,
            "prefect_auth": None if auth is None else SecretStr(auth),
        }
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
    auth = settings.prefect_auth
    return {
        "PREFECT_API_URL": settings.prefect_api_url,
        # Empty is none: a variable of the caller's may be for another server.
        "PREFECT_API_AUTH_STRING": "" if auth is None else auth.get_secret_value(),
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_PROFILES_PATH": str(prefect_home / "profiles.toml"),
        # Otherwise a missing server is silently replaced by a temporary one.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        # What the server answers while its database is away.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # The library's warnings belong into the run's log.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "trtforge",
        # Prefect's own configuration, and the filters that take secrets out.
        "PREFECT_LOGGING_SETTINGS_PATH": str(Path(__file__).with_name("logging.yml")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _invalid(error: ValidationError) -> SettingInvalidError:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    secret = any(part in name for part in ("key_id", "secret", "auth"))
    return SettingInvalidError(
        first["msg"],
        field=f"TRTFORGE_{name.upper()}",
        value="***" if secret else first["input"],
        remedy="Correct the variable, or unset it for the default",
    )
