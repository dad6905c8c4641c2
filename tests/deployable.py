"""A flow for the tests of deploying: cheap to import, and with every kind of parameter."""

from typing import Literal

from prefect import flow


@flow(name="deployable")
def deployable(text: str, count: int = 1, colour: Literal["red", "green"] = "red") -> str:
    """Say something.

    Args:
        text: What to say.
        count: How often.
        colour: In which colour.
    """
    return f"{colour} {text * count}"
