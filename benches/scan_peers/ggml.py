"""ggml's operator `ggml_ssm_scan`, for Mamba-1 and Mamba-2, called from its shared libraries.

The libraries are looked for in the folder that the environment variable ``SENSORIUM_GGML`` names, where the
system keeps libraries, and in the package ``libggml-python``. A wheel is compiled for AVX2; for a fair row
build them for this machine, from the source archive of ``ggml-python`` for example:

    cmake -S vendor/ggml -B build -DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=native
    cmake --build build --target install && export SENSORIUM_GGML=native/lib
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

F32, I32 = 0, 26


class InitParams(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Plan(ctypes.Structure):
    """`ggml_cplan`, with room for what later versions add."""

    _fields_ = [("work_size", ctypes.c_size_t), ("work", ctypes.c_void_p), ("rest", ctypes.c_uint8 * 112)]


def folder() -> Path | None:
    """Where the libraries are."""
    if os.environ.get("SENSORIUM_GGML"):
        return Path(os.environ["SENSORIUM_GGML"])
    if ctypes.util.find_library("ggml-cpu"):
        return Path()
    spec = importlib.util.find_spec("libggml")
    if spec is not None and spec.origin is not None:
        return next((p.parent for p in Path(spec.origin).parent.glob("lib*/libggml-cpu.so")), None)
    return None


@functools.cache
def library() -> tuple[Any, Any] | None:
    """Load the base library and the one of the processor; None where there are none."""
    where = folder()
    if where is None:
        return None

    def load(name: str) -> Any:
        path = str(where / f"lib{name}.so") if where != Path() else ctypes.util.find_library(name)
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)

    base, cpu = load("ggml-base"), load("ggml-cpu")
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    base.ggml_init.argtypes, base.ggml_init.restype = [InitParams], pointer
    base.ggml_free.argtypes, base.ggml_free.restype = [pointer], None
    base.ggml_new_tensor.argtypes = [pointer, ctypes.c_int, ctypes.c_int, ctypes.POINTER(size)]
    base.ggml_new_tensor.restype = pointer
    base.ggml_get_data.argtypes, base.ggml_get_data.restype = [pointer], pointer
    # Later versions take one more argument, how many states to keep; earlier ones do not look at it.
    base.ggml_ssm_scan.argtypes, base.ggml_ssm_scan.restype = [pointer] * 8 + [size], pointer
    base.ggml_new_graph.argtypes, base.ggml_new_graph.restype = [pointer], pointer
    base.ggml_build_forward_expand.argtypes = [pointer, pointer]
    base.ggml_build_forward_expand.restype = None
    cpu.ggml_graph_plan.argtypes, cpu.ggml_graph_plan.restype = [pointer, ctypes.c_int, pointer], Plan
    cpu.ggml_graph_compute.argtypes = [pointer, ctypes.POINTER(Plan)]
    cpu.ggml_graph_compute.restype = ctypes.c_int
    cpu.ggml_cpu_init.argtypes, cpu.ggml_cpu_init.restype = [], None
    cpu.ggml_cpu_init()
    return base, cpu


def version() -> str:
    """Version and instruction set of the libraries that were loaded."""
    loaded = library()
    if loaded is None:
        return "none"
    base, cpu = loaded
    base.ggml_version.restype = ctypes.c_char_p
    wide = "avx512" if cpu.ggml_cpu_has_avx512() else "avx2" if cpu.ggml_cpu_has_avx2() else "baseline"
    return f"{base.ggml_version().decode()} ({wide})"


def quickest(*arrays: Any, threads: int) -> Scan:
    """Make a graph that runs on one thread or on all, whichever is faster."""
    graphs = [Scan(*arrays, threads=n) for n in dict.fromkeys((1, threads))]
    seconds = []
    for graph in graphs:
        each = []
        for _ in range(20):
            time.sleep(0.002)
            start = time.perf_counter()
            for _ in range(5):
                graph.compute()
            each.append(time.perf_counter() - start)
        seconds.append(statistics.median(each))
    return graphs[seconds.index(min(seconds))]


class Scan:
    """A graph of the one operator over copies of the arrays.

    Parameters are in NumPy's order of axes: state ``(B, H, P, S)``, x ``(B, L, H, P)``, dt ``(B, L, H)``,
    A ``(H, S)`` or ``(H, 1)``, B and C ``(B, L, G, S)``, float32. The operator applies softplus to dt. `y`
    and `state` are views of its result.
    """

    def __init__(self, state: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, threads: int) -> None:
        loaded = library()
        assert loaded is not None
        self.base, self.cpu = loaded
        ids = np.arange(len(x), dtype=np.int32)
        given = [state, x, dt, A, B, C, ids]
        room = sum(a.nbytes + 1024 for a in given) + x.nbytes + state.nbytes + (1 << 20)
        self.context = self.base.ggml_init(InitParams(room, None, False))
        tensors = [self.tensor(a) for a in given]
        result = self.base.ggml_ssm_scan(self.context, *tensors, 1)
        self.graph = self.base.ggml_new_graph(self.context)
        self.base.ggml_build_forward_expand(self.graph, result)
        self.plan = self.cpu.ggml_graph_plan(self.graph, threads, None)
        self.work = np.empty(max(1, self.plan.work_size), np.uint8)
        self.plan.work = self.work.ctypes.data
        out = self.view(result, (x.size + state.size,), ctypes.c_float)
        self.y, self.state = out[: x.size].reshape(x.shape), out[x.size :].reshape(state.shape)

    def view(self, tensor: Any, shape: tuple[int, ...], kind: Any) -> Any:
        """Array over the memory of a tensor."""
        address = ctypes.cast(self.base.ggml_get_data(tensor), ctypes.POINTER(kind))
        return np.ctypeslib.as_array(address, shape)

    def tensor(self, array: Any) -> Any:
        """Copy an array into a tensor: ggml counts axes from the last."""
        kind, number = (ctypes.c_int32, I32) if array.dtype == np.int32 else (ctypes.c_float, F32)
        extents = (ctypes.c_int64 * array.ndim)(*reversed(array.shape))
        tensor = self.base.ggml_new_tensor(self.context, number, array.ndim, extents)
        self.view(tensor, array.shape, kind)[...] = array
        return tensor

    def compute(self) -> None:
        """Compute the graph."""
        status = self.cpu.ggml_graph_compute(self.graph, ctypes.byref(self.plan))
        assert status == 0, f"ggml says {status}"

    def __del__(self) -> None:
        self.base.ggml_free(self.context)
