"""Edges of a recorded CUDA graph that let a kernel be launched before the one before it is flushed.

Recording makes edges that wait until the kernel before has ended and what it wrote is flushed. A
kernel that itself waits for its input (`griddepcontrol.wait`) can be launched when all programs of
the one before have ended, by a programmatic edge (CUDA Programming Guide, Programmatic Dependent
Launch, Use in CUDA Graphs): 1 to 2 % of a step (`docs/gpu-notes.md`). PyTorch cannot record such
edges for the kernels of AOTInductor, so the driver's own functions put them in afterwards (CUDA
12.3 and later).
"""

import ctypes
from collections.abc import Collection

import torch

_KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL


class _EdgeData(ctypes.Structure):
    """CUgraphEdgeData: `port` 1 is when every program has triggered or ended; `kind` 1 means so."""

    _fields_ = (
        ("port", ctypes.c_ubyte),
        ("to_port", ctypes.c_ubyte),
        ("kind", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte * 5),
    )


class _KernelParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("sizes", ctypes.c_uint * 7),
        ("params", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


def start_early(graph: torch.cuda.CUDAGraph, waiting: Collection[str]) -> int:
    """Make edges programmatic where the later kernel waits for its input itself.

    Args:
        graph: Recorded with `keep_graph=True`, not instantiated yet.
        waiting: What the names of kernels that wait begin with.

    Returns:
        How many edges were changed; 0 where the driver is too old.

    Raises:
        RuntimeError: The driver refused a change.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        get_edges = driver.cuGraphGetEdges_v2
        remove, add = driver.cuGraphRemoveDependencies_v2, driver.cuGraphAddDependencies_v2
        name_of = driver.cuFuncGetName
    except (OSError, AttributeError):
        return 0
    handle = ctypes.c_void_p(graph.raw_cuda_graph())
    count = ctypes.c_size_t()
    _check(get_edges(handle, None, None, None, ctypes.byref(count)))
    sources = (ctypes.c_void_p * count.value)()
    targets = (ctypes.c_void_p * count.value)()
    data = (_EdgeData * count.value)()
    _check(get_edges(handle, sources, targets, data, ctypes.byref(count)))

    def function(node: int) -> str | None:
        kind = ctypes.c_int()
        _check(driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
        if kind.value != _KERNEL_NODE:
            return None
        params = _KernelParams()
        get_params = driver.cuGraphKernelNodeGetParams_v2
        _check(get_params(ctypes.c_void_p(node), ctypes.byref(params)))
        if not params.function:
            return ""
        name = ctypes.c_char_p()
        _check(name_of(ctypes.byref(name), ctypes.c_void_p(params.function)))
        return (name.value or b"").decode()

    names = {node: function(node) for node in {*sources, *targets}}
    changed = 0
    for source, target, edge in zip(sources, targets, data, strict=True):
        later = names[target]
        if edge.kind or names[source] is None or not later or not later.startswith(tuple(waiting)):
            continue
        ends = [ctypes.byref(ctypes.c_void_p(end)) for end in (source, target)]
        _check(remove(handle, *ends, ctypes.byref(edge), ctypes.c_size_t(1)))
        programmatic = _EdgeData(port=1, kind=1)
        _check(add(handle, *ends, ctypes.byref(programmatic), ctypes.c_size_t(1)))
        changed += 1
    return changed


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"the CUDA driver answered {code} to a change of a recorded graph")
