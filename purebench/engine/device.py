"""Device policy: float32, TF32 off, cuDNN deterministic, benchmark off; on CPU one thread a worker."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from purebench.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def setup(name: str = "auto", worker: int = 0) -> torch.device:
    """Sets the process up and returns its device; worker i takes GPU i modulo their number. UserError where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        # A name can be well formed and the device not there: only using it tells.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"the device `{name}` cannot be used: {str(error).splitlines()[0]}",
            "use `--device cpu`, or `--device auto`",
        ) from None
    if device.type == "cuda":
        # TF32 keeps 10 bits of a product, and sign attacks amplify what it drops; cuDNN's search picks by time, so differently each run.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        if device.index is None:
            device = torch.device("cuda", worker % torch.cuda.device_count())
    else:
        # The order in which threads add up changes the last bits; and workers, one per core, would fight for the cores.
        torch.set_num_threads(1)
        keep_pages()
    return device


def keep_pages() -> None:
    """On Linux, keeps freed pages in the process: to fault them in again costs stored graphs a third of their speed."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: torch.device, workers: int) -> int:
    """Bytes for one worker's states and graphs: 80 % of a GPU's free memory, or half of what the machine (and a container's limit)
    leaves, shared among the workers."""
    if device.type == "cuda":
        sharing = -(-workers // torch.cuda.device_count())
        return int(torch.cuda.mem_get_info(device)[0] * 0.8 / sharing)
    free = [2 << 30]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024]
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(int(min(free) * 0.5 / workers), 64 << 20)


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that the device, or the machine, has no memory left."""
    # Of the CPU torch raises a RuntimeError like any other.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate" in str(
        error
    )


def release() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def facts(device: torch.device) -> dict[str, object]:
    """What a record says of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "hardware": name,
        "torch": torch.__version__,
        "versions": {name: version(name) for name in ("purebench", "numpy", "torchsde", "pyautoattack")},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32),
        "cudnn_deterministic": bool(torch.backends.cudnn.deterministic),
    }
