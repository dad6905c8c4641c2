"""How a file is cut up on its way: the parts of an upload, the ranges of a download."""

from dataclasses import dataclass

from trtforge.errors import InputError

# docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MOST_PARTS = 10_000
LEAST_PART_BYTES = 5 << 20
LARGEST_PART_BYTES = 5 << 30
_MIB = 1 << 20


class FileTooLargeError(InputError):
    """A file that S3 cannot hold as one object."""


@dataclass(frozen=True)
class Piece:
    """Some consecutive bytes of a file; `number` counts from 1, as S3's parts do."""

    number: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def split(size_bytes: int, piece_bytes: int, start: int = 0) -> list[Piece]:
    """Cut the bytes from `start` on into pieces; only the last one may be shorter."""
    return [
        Piece(number, offset, min(piece_bytes, size_bytes - offset))
        for number, offset in enumerate(range(start, size_bytes, piece_bytes), 1)
    ]


def part_size(size_bytes: int, wished_bytes: int) -> int:
    """The part size for a multipart upload: the one wished for, within the limits of S3.

    The same file and wish always give the same size, so that a later process can go on with the
    parts of an earlier one.

    Raises:
        FileTooLargeError: 10,000 parts of 5 GiB do not suffice.
    """
    if size_bytes > MOST_PARTS * LARGEST_PART_BYTES:
        raise FileTooLargeError(
            "S3 takes no object of this size",
            field="size_bytes",
            value=size_bytes,
            remedy=f"Split the file; {MOST_PARTS * LARGEST_PART_BYTES} bytes are the most",
        )
    needed = -(-size_bytes // MOST_PARTS)
    return max(LEAST_PART_BYTES, wished_bytes, -(-needed // _MIB) * _MIB)
