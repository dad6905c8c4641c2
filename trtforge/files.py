"""What a stage hands to the next one: a set of files, known by content."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trtforge.canonical import digest, sha256_file
from trtforge.errors import InputError


class UnsafePathError(InputError):
    """A file name that would leave its directory."""


@dataclass(frozen=True, order=True)
class FileRef:
    """One file of a set: relative POSIX `path`, `size_bytes` and `sha256` (hex)."""

    path: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        # One file has one name: "a//b" and "./a" would give the same files another digest.
        unusual = str(path) != self.path or "\\" in self.path or "\0" in self.path
        if not path.parts or path.is_absolute() or ".." in path.parts or unusual:
            raise UnsafePathError(
                "a file of a set must lie inside its directory",
                field="path",
                value=self.path,
                remedy="Use a plain relative path, without '..', '.', '//' or a backslash",
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FileRef":
        return cls(data["path"], data["size_bytes"], data["sha256"])


def files_digest(files: Sequence[FileRef]) -> str:
    """Content digest of a file set: the same names and bytes give the same digest, in any order."""
    return digest([f.to_json() for f in sorted(files)])


def describe_directory(directory: Path, names: Sequence[str] | None = None) -> list[FileRef]:
    """Hash the files of `directory` (all regular files below it, or just `names`)."""
    if names is None:
        names = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()]
    return [
        FileRef(name, (directory / name).stat().st_size, sha256_file(directory / name))
        for name in sorted(names)
    ]
