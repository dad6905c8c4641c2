"""The three ways to name weights, and how their text is read.

`hf://org/name[@revision]` is a repository of the Hugging Face Hub, `s3://bucket[/prefix]` a place
in object storage; anything else is a directory of this machine (`file:///absolute/path` too).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from trtforge.errors import InputError

FIELD = "model.source"

# https://huggingface.co/docs/huggingface_hub/package_reference/utilities, `validate_repo_id`.
_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
# What `git check-ref-format` forbids, as far as it can be said of one name without its siblings.
_REVISION = re.compile(
    r"(?!.*(?:\.\.|@\{|//))[^\s\x00-\x20\x7f~^:?*\[\\/@-][^\s\x00-\x20\x7f~^:?*\[\\]*"
)
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s]+/[^/\s?#]+)")


class MalformedSourceError(InputError):
    """The text follows none of the three forms."""


class UnknownSchemeError(InputError):
    """The text starts with a scheme that weights cannot come from."""


@dataclass(frozen=True)
class HubSource:
    """A model repository of the Hub at a branch, a tag or a commit."""

    repo_id: str
    revision: str = "main"

    @property
    def uri(self) -> str:
        return f"hf://{self.repo_id}@{self.revision}"


@dataclass(frozen=True)
class LocalSource:
    """A directory of this machine."""

    path: Path

    @property
    def uri(self) -> str:
        # The leading "./" keeps a directory called "~" from being read as the home directory.
        return self.path.as_uri() if self.path.is_absolute() else f"./{self.path}"


@dataclass(frozen=True)
class S3Source:
    """The objects directly below a prefix of a bucket; an empty prefix is the bucket's root."""

    bucket: str
    prefix: str = ""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def key(self, path: str) -> str:
        """The object key of the file `path`."""
        return f"{self.prefix}/{path}" if self.prefix else path


Source = HubSource | LocalSource | S3Source


def parse_source(text: str) -> Source:
    """Read the text of `model.source`.

    Raises:
        MalformedSourceError: The part after `hf://`, `s3://` or `file://` is not well-formed, or
            the text is empty.
        UnknownSchemeError: Another scheme, such as `https://`.
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _local(text)
    rest = text[scheme.end() :]
    match scheme.group(1).lower():
        case "hf":
            return _hub(text, rest)
        case "s3":
            return _s3(text, rest)
        case "file":
            return _file(text, rest)
    page = _HUB_PAGE.match(text)
    raise UnknownSchemeError(
        f"weights cannot be read from {scheme.group(0)}",
        field=FIELD,
        value=text,
        remedy=f"Write hf://{page.group(1)}"
        if page
        else "Use hf://org/name@revision, s3://bucket/prefix or the path of a directory",
    )


def _hub(text: str, rest: str) -> HubSource:
    repo_id, at, revision = rest.partition("@")
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(map(_is_repo_part, parts)):
        raise MalformedSourceError(
            "the part after hf:// is not a repository id",
            field=FIELD,
            value=text,
            remedy="Write hf://org/name or hf://org/name@revision, as in the address of the page",
        )
    if not at:
        return HubSource(repo_id)
    if not _REVISION.fullmatch(revision) or revision.endswith((".lock", "/", ".")):
        raise MalformedSourceError(
            "the part after @ is not the name of a branch, a tag or a commit",
            field=FIELD,
            value=text,
            remedy="Write a branch, a tag or a commit sha after @, or leave @ out for main",
        )
    return HubSource(repo_id, revision)


def _is_repo_part(part: str) -> bool:
    return bool(_REPO_PART.fullmatch(part)) and "--" not in part and ".." not in part


def _s3(text: str, rest: str) -> S3Source:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise MalformedSourceError(
            "the part after s3:// does not start with a bucket name",
            field=FIELD,
            value=text,
            remedy="Write s3://bucket/prefix; bucket names are 3 to 63 of a-z, 0-9, '.' and '-'",
        )
    if not prefix.isprintable():
        raise MalformedSourceError(
            "the prefix has characters that cannot be printed",
            field=FIELD,
            value=text,
            remedy="Write s3://bucket/prefix without control characters",
        )
    return S3Source(bucket, prefix.strip("/"))


def _file(text: str, rest: str) -> LocalSource:
    path = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    if not path.startswith("/"):
        raise MalformedSourceError(
            "a file:// source must be an absolute path of this machine",
            field=FIELD,
            value=text,
            remedy="Write file:///absolute/path, with three slashes, or just the path",
        )
    return _path(text, os.fsdecode(unquote_to_bytes(os.fsencode(path))))


def _local(text: str) -> LocalSource:
    if not text.strip():
        raise MalformedSourceError(
            "nothing is given",
            field=FIELD,
            value=text,
            remedy="Use hf://org/name@revision, s3://bucket/prefix or the path of a directory",
        )
    at_home = text == "~" or text.startswith("~/")
    return _path(text, os.path.expanduser(text) if at_home else text)  # noqa: PTH111


def _path(text: str, path: str) -> LocalSource:
    if "\0" in path:
        raise MalformedSourceError(
            "a path cannot hold a NUL character",
            field=FIELD,
            value=text,
            remedy="Write the path of a directory",
        )
    return LocalSource(Path(path))
