"""How a decode kernel meets the one before and the one after it; parts of Triton kernels.

With the edges of `graph_edges` a kernel may be launched while the one before it still runs, and
waits for its input itself (CUDA Programming Guide, Programmatic Dependent Launch).
"""

# Triton compiles these functions; Python never runs them.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def wait_for_input():
    """Wait until what the kernel before this one made is there.

    To the compiler it is a number that an instruction computes: PyTorch's analysis of what a kernel
    changes takes nothing with side effects. What must come after the wait has to use it.

    Returns:
        0, to be added to the addresses of what the kernel before this one makes.
    """
    nothing = tl.inline_asm_elementwise(
        "griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=True, pack=1
    )
    # Else what it is added to would count as unaligned, and be read two bytes at a time.
    return tl.multiple_of(nothing, 16)


@triton.jit
def let_next_start():
    """Let the kernel after this one be launched: its programs start where there is room for them.

    Returns:
        0, to be added to some address: see `wait_for_input`.
    """
    nothing = tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.u32 $0, 0;",
        "=r",
        [],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )
    return tl.multiple_of(nothing, 16)


@triton.jit
def let_next_start_after(sums):
    """`let_next_start` when `sums`, in fp32, are there; they are given back."""
    return tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.b32 $0, $1;",
        "=f,f",
        [sums],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )
