"""What can be wrong with the files, and with the server they are for."""

from trtforge.errors import InputError, ServiceError


class FileUnreadableError(InputError):
    """One of the files is missing, or is not YAML or JSON with a mapping at the top."""


class FileInvalidError(InputError):
    """A field of one of the files is unknown, missing, or has a value that cannot be."""


class NameTakenError(InputError):
    """Two entries of a file have the same name."""


class UnknownNameError(InputError):
    """A file names a pool, a deployment, a block or a variable that no file declares."""


class EntrypointError(InputError):
    """The entrypoint of a deployment is not a flow that can be imported here."""


class ParameterError(InputError):
    """A parameter of a deployment, or of its schedule, is not what its flow takes."""


class JobVariableError(InputError):
    """A job variable, or a change of one, is not what the pool's job template takes."""


class SecretInFileError(InputError):
    """A file holds what looks like a secret: the server would show it to everybody."""


class PoolTypeError(InputError):
    """The server has a pool of that name of another type, which cannot be changed."""


class ServerNotConfiguredError(InputError):
    """Prefect's settings of this process name no server."""


class ServerUnreachableError(ServiceError):
    """The Prefect server does not answer."""


class ServerLoginError(ServiceError):
    """The Prefect server answers, and does not accept the login."""


class ServerRefusedError(ServiceError):
    """The Prefect server refused one of the changes; those before it were made."""
