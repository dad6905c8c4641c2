"""Errors for the person who typed the spec: what was wrong, where, and what to do.

Every error of trtforge is one line: `field = value: problem. Remedy`. The five families below
carry the exit code of the command line; each cause has a class of its own, defined next to the
code that raises it.
"""

from typing import ClassVar


class TrtforgeError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: What is wrong, without a final full stop.
        remedy: What the reader should do about it.
        field: Dotted path of the spec field or the argument at fault, if one is.
        value: The offending value.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, remedy: str, field: str = "", value: object = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.field = field
        self.value = value

    def __str__(self) -> str:
        where = f"{self.field} = {self.value!r}: " if self.field else ""
        return f"{where}{self.problem}. {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling that Prefect applies to
        # exceptions that cross a process.
        return (_rebuild, (type(self), self.problem, self.remedy, self.field, self.value))


class InputError(TrtforgeError):
    """The spec, the arguments or the model given are wrong; nothing was changed."""

    exit_code = 2


class ServiceError(TrtforgeError):
    """A service (object storage, Prefect, the Hub) does not answer or refuses us."""

    exit_code = 3


class BuildError(TrtforgeError):
    """A stage could not produce what it promises."""

    exit_code = 4


class GateError(TrtforgeError):
    """The engine was built but did not pass a gate; it was not published."""

    exit_code = 5


def _rebuild(
    cls: type[TrtforgeError], problem: str, remedy: str, field: str, value: object
) -> TrtforgeError:
    return cls(problem, remedy=remedy, field=field, value=value)
