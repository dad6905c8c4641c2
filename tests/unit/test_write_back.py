"""Asking the disk to begin early changes nothing that a reader could see."""

import os
from pathlib import Path

from trtforge.write_back import begin_write_back


def test_a_file_is_as_it_was_written(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as stream:
        for piece in range(4):
            stream.write(bytes([piece]) * 100_000)
            begin_write_back(stream.fileno())
        os.fsync(stream.fileno())
    expected = b"".join(bytes([piece]) * 100_000 for piece in range(4))
    assert (tmp_path / "file").read_bytes() == expected


def test_what_cannot_be_written_back_is_no_error() -> None:
    reading, writing = os.pipe()
    begin_write_back(writing)
    os.close(reading)
    os.close(writing)
