"""Driver: how quickly this device copies memory and multiplies bfloat16 matrices, at its best.

The yardstick for "a fraction of the hardware limit": measured, on the device and with the threads
that the engine has, since data sheets promise what no program gets.

Request:  device (cpu or cuda), threads (0: all), seconds (for each of the two)
Result:   copy_bytes_per_s (read and written bytes together), matmul_flops_per_s
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from trtforge.engines.driver_main import Report, drive

# Far larger than any cache; and matrices that occupy the device, without minutes on a laptop.
_COPIED_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
_MATRIX = {"cpu": 1536, "cuda": 8192}


def measure(request: dict[str, Any], report: Report) -> dict[str, Any]:
    import torch

    device, seconds = request["device"], request["seconds"]
    if request["threads"]:
        torch.set_num_threads(request["threads"])

    def best_s(work: Callable[[], Any]) -> float:
        """The quickest of as many tries as fit."""
        work()
        quickest, until = float("inf"), time.perf_counter() + seconds
        while True:
            _wait(torch, device)
            started = time.perf_counter()
            work()
            _wait(torch, device)
            now = time.perf_counter()
            quickest = min(quickest, now - started)
            if now > until:
                return quickest

    with torch.inference_mode():
        report("measuring the memory's bandwidth", 0, 2)
        size_bytes = _COPIED_BYTES[device]
        source = torch.ones(size_bytes // 2, dtype=torch.bfloat16, device=device)
        target = torch.empty_like(source)
        copy_s = best_s(partial(target.copy_, source))
        report("measuring the rate of matrix products", 1, 2)
        n = _MATRIX[device]
        left = torch.randn(n, n, device=device).to(torch.bfloat16)
        right = torch.randn(n, n, device=device).to(torch.bfloat16)
        product = torch.empty(n, n, dtype=torch.bfloat16, device=device)
        matmul_s = best_s(partial(torch.mm, left, right, out=product))
    return {
        "copy_bytes_per_s": 2 * size_bytes / copy_s,
        "matmul_flops_per_s": 2 * n**3 / matmul_s,
    }


def _wait(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    drive(measure)
