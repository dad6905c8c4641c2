"""What upstream's builder.py has of the same names, as far as a build needs it."""

import json
import time
from pathlib import Path

import tensorrt as trt

from tensorrt_llm import faults
from tensorrt_llm.logger import logger
from tensorrt_llm.version import __version__


class BuilderConfig:
    def __init__(self, timing_cache):
        self.trt_builder_config = trt.Builder(trt.Logger()).create_builder_config()
        cache = None
        if timing_cache is not None and Path(timing_cache).exists():
            data = Path(timing_cache).read_bytes()
            cache = self.trt_builder_config.create_timing_cache(data)
        if cache is None:
            logger.warning("Invalid timing cache, using freshly created one")
            cache = self.trt_builder_config.create_timing_cache(b"")
        if faults.asked("cache-mismatch"):
            print(
                "[11/22/2026-10:11:12] [TRT] [W] The timing cache does not match the device: "
                "entries of a different device are not used.",
                flush=True,
            )
        self.trt_builder_config.set_timing_cache(cache, ignore_mismatch=False)


class Builder:
    def create_builder_config(self, timing_cache):
        return BuilderConfig(timing_cache)

    def build_engine(self, network, builder_config, managed_weights=None):
        del managed_weights
        started = time.time()
        logger.info(
            f"Total time to initialize the weights in network Unnamed Network 0: {_clock(0)}"
        )
        logger.info("Build TensorRT engine Unnamed Network 0")
        if not faults.while_compiling():
            raise AssertionError("Engine building failed, please check the error log.")
        builder_config.trt_builder_config.get_timing_cache().entries.update(network["shapes"])
        logger.info(f"Total time of building Unnamed Network 0: {_clock(time.time() - started)}")
        return network["engine_bytes"]

    @staticmethod
    def save_timing_cache(builder_config, out_path):
        cache = builder_config.trt_builder_config.get_timing_cache()
        with cache.serialize() as buffer, Path(out_path).open("wb") as file:
            faults.disk_full("disk-full-cache")
            file.write(buffer)
        logger.info(f"Timing cache serialized to {out_path}")
        return True


def save_engine(directory, rank, size_bytes, header):
    path = Path(directory) / f"rank{rank}.engine"
    logger.info(f"Serializing engine to {path}...")
    started = time.time()
    head = b"trtforge stand-in\n" + json.dumps({**header, "version": __version__}).encode() + b"\n"
    with path.open("wb") as file:
        file.write(head)
        faults.disk_full("disk-full")
        file.truncate(max(size_bytes, len(head)))
    logger.info(f"Engine serialized. Total time: {_clock(time.time() - started)}")


def _clock(seconds):
    return time.strftime("%H:%M:%S", time.gmtime(seconds))
