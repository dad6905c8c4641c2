"""`trtforge image build` and `push`: the workers' container images."""

from pathlib import Path
from typing import Annotated

import typer

from trtforge.cli.bucket import bytes_bar
from trtforge.cli.output import AsJson, err, print_json, say
from trtforge.errors import InputError
from trtforge.images import (
    DOCKERFILES,
    build_image,
    default_tag,
    open_docker,
    push_image,
)
from trtforge.progress import Progress

app = typer.Typer()
_image = typer.Typer(help="Build and push the container images of the workers.")
app.add_typer(_image, name="image")


class BuildArgumentError(InputError):
    """A build argument is not NAME=VALUE."""


@_image.command()
def build(
    kind: Annotated[str, typer.Argument(metavar="IMAGE", help=f"One of {', '.join(DOCKERFILES)}")],
    tag: Annotated[str | None, typer.Option(help="[default: trtforge/IMAGE:VERSION]")] = None,
    build_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of the Dockerfile; may be repeated"),
    ] = None,
    context: Annotated[Path, typer.Option(help="The project's sources")] = Path(),
    network: Annotated[str | None, typer.Option(help="Of the build's steps, such as host")] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Look for a newer base image")] = False,
    as_json: AsJson = False,
) -> None:
    """Build an image from this project's sources.

    cpu: Prefect server, orchestrator, and a worker for aoti. gpu: a worker on NVIDIA's release
    image of TensorRT-LLM. gpu-from-cuda: the same from NVIDIA's CUDA image and the wheel.
    """
    arguments = dict(map(_split, build_arg or []))
    client = open_docker()
    with err.status("sending the sources") as status:

        def on_progress(progress: Progress) -> None:
            share = f"{progress.done}/{progress.total}"
            if progress.unit == "bytes" and progress.total:
                share = f"{progress.done / 1e9:.1f} of {progress.total / 1e9:.1f} GB"
            status.update(f"{share}  {progress.what}")

        def on_log(line: str) -> None:
            err.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

        built = build_image(
            client,
            kind,
            context=context.absolute(),
            tag=tag or default_tag(kind),
            build_args=arguments,
            network=network,
            pull=pull,
            on_progress=on_progress,
            on_log=on_log,
        )
    if as_json:
        print_json({"tag": built.tag, "image_id": built.image_id})
        return
    say(f"Image        {built.tag}")
    say(f"Digest       {built.image_id}")
    say("Start it with TRTFORGE_IMAGE_DIGEST set to that, or push it and take the registry's.")


@_image.command()
def push(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="registry/name:tag of a built image")],
    as_json: AsJson = False,
) -> None:
    """Push an image to its registry, and say the digest to start it by."""
    client = open_docker()
    with bytes_bar() as on_progress:
        reference = push_image(client, tag, on_progress=on_progress)
    if as_json:
        print_json({"reference": reference, "digest": reference.rpartition("@")[2]})
        return
    say(f"Image        {reference}")
    say(f"Set TRTFORGE_IMAGE_DIGEST={reference.rpartition('@')[2]} where it is started.")


def _split(argument: str) -> tuple[str, str]:
    name, equals, value = argument.partition("=")
    if not equals or not name:
        raise BuildArgumentError(
            "a build argument is NAME=VALUE",
            field="--build-arg",
            value=name,
            remedy="Write, for one, --build-arg EXTRAS=aoti",
        )
    return name, value
