"""A CUDA device without one: tensors that have shapes, dtypes and devices but no numbers.

PyTorch's fake tensors run the code of a GPU on any machine and at any size; `FakeCuda` counts what
the host would ask of the device. A mismatch of devices or dtypes raises, as it does on a GPU.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nvila_core.kernels import attention, fp8, layer, linear
from nvila_core.models.kernels import Switch

WITHOUT_LAUNCH = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "lift_fresh"}
KERNELS = {
    attention: ("paged_attention", "combine_splits", "combine_splits_to_fp8"),
    fp8: ("rows_to_fp8",),
    layer: ("sum_and_norm", "silu_mul", "rotate_and_store"),
    linear: ("multiply_8_bits", "multiply_4_bits", "widen_4_bits"),
}
"""The kernels that are launched, by module."""

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item"}


class FakeCuda(TorchDispatchMode):
    """Counts launches, copies and waits.

    Attributes:
        launches: by name.
        copies_in, copies_out: copies between host and device.
        order: graphs that the host started and results that it waited for.
        waits: times that the host waits for the device.
        host_bytes: size of the largest tensor made on the host.
        bytes_in, bytes_out: bytes that were copied to the device, and back.
        operations: what was asked of the device, in order: each launch and copy, with the dtypes,
            shapes and strides of its tensors and with its other arguments.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.launches: Counter[str] = Counter()
        self.order: list[str] = []
        self.operations: list[str] = []
        self.copies_in = self.copies_out = self.waits = self.host_bytes = 0
        self.bytes_in = self.bytes_out = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation of PyTorch, and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        made = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if is_tensor(t)]
        given = [t for t in (*args, *kwargs.values()) if is_tensor(t)]
        if name in ("_to_copy", "copy"):
            source = given[-1] if name == "copy" else given[0]
            self._count_copy(source, made[0].device.type)
        elif name in WAITING:
            self.waits += 1
        elif any(t.is_cuda for t in made) and not is_view(func) and name not in WITHOUT_LAUNCH:
            self.launches[name] += 1
        if any(t.is_cuda for t in (*made, *given)) and not is_view(func):
            self.note(name, *args, *kwargs.items())
        if any(not t.is_cuda for t in made) and not is_view(func):
            self.host_bytes = max(self.host_bytes, *(t.nbytes for t in made))
        return out

    def note(self, name: str, *args: Any) -> None:
        """Add an operation to `operations`."""
        self.operations.append(f"{name}({', '.join(map(described, args))})")

    def copy(self, memory: Tensor, target: str) -> None:
        """Count a copy between the device and the host."""
        self.copies_in += target == "cuda"
        self.copies_out += target == "cpu"
        self.bytes_in += memory.nbytes * (target == "cuda")
        self.bytes_out += memory.nbytes * (target == "cpu")

    def _count_copy(self, source: Tensor, target: str) -> None:
        """Count a copy of memory that is not pinned: the host waits for it."""
        if source.device.type == target:
            self.launches["copy"] += target == "cuda"
            return
        self.copy(source, target)
        self.waits += 1

    def kernel(self, name: str) -> Any:
        """Return what stands in for a Triton kernel."""

        def launch(grid: Any, *args: Any, **options: Any) -> None:
            tensors = [t for t in args if isinstance(t, Tensor)]
            assert all(t.is_cuda for t in tensors), f"{name} gets a tensor of the host"
            floats = {t.dtype for t in tensors if t.is_floating_point()}
            floats -= {torch.float32, torch.float8_e4m3fn}
            assert len(floats) <= 1, f"{name} gets {floats}"
            self.launches[name] += 1
            self.note(name, grid, *args, *options.items())

        return SimpleKernel(launch)


class Substitutes(TorchFunctionMode):
    """Replaces what PyTorch does with CUDA tensors only if it is built for CUDA."""

    def __init__(self, device: FakeCuda) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Index by operations, and copy between the device and memory that has numbers."""
        if func is Tensor.__getitem__ and args[0].is_cuda:
            return part_of(*args)
        if func is Tensor.__getitem__ and is_pinned(args[0]):
            with unset_fake_temporarily():
                part: Any = args[0][args[1]]
            part.pinned = True
            return part
        if func is Tensor.__setitem__ and args[0].is_cuda and is_tensor(args[1]):
            return args[0].index_copy_(0, *args[1:])
        if func is Tensor.__setitem__ and args[0].is_cuda:
            part, value = part_of(*args[:2]), args[2]
            if not is_tensor(value):
                return part.fill_(value)
            if not value.is_cuda:
                return part.copy_(value)
            self._device.launches["copy"] += 1
            self._device.note("copy", part, value.expand(part.shape))
            return None
        if func is Tensor.contiguous and args[0].is_cuda:
            same = args[0].is_contiguous()
            return args[0] if same else args[0].clone(memory_format=torch.contiguous_format)
        if func is Tensor.to and is_pinned(args[0]):
            self._device.copy(args[0], "cuda")
            return torch.empty(args[0].shape, dtype=args[0].dtype, device=args[1])
        if func is Tensor.copy_ and is_pinned(args[1]):
            self._device.copy(args[1], "cuda")
            return args[0]
        if func is Tensor.copy_ and is_pinned(args[0]):
            self._device.copy(args[0], "cpu")
            return args[0]
        if func is Tensor.copy_ and args[0].is_cuda and args[1].is_cuda:
            self._device.launches["copy"] += 1
            self._device.note("copy", *args)
            return args[0]
        if func is torch._foreach_copy_ and all(t.is_cuda for t in (*args[0], *args[1])):
            self._device.launches["foreach_copy"] += 1
            return None
        return func(*args, **(kwargs or {}))


def part_of(tensor: Tensor, index: Any) -> Tensor:
    """Return `tensor[index]` for numbers, slices, None and an ellipsis."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        rest = tensor.ndim - sum(item is not None for item in items) + 1
        items[at : at + 1] = [slice(None)] * rest
    dim = 0
    for item in items:
        if item is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(item, slice):
            start, stop, step = item.indices(tensor.shape[dim])
            tensor = torch.ops.aten.slice(tensor, dim, start, stop, step)
        else:
            assert isinstance(item, int), f"an index that launches kernels: {item}"
            tensor = tensor.select(dim, item)
            continue
        dim += 1
    return tensor


class SimpleKernel:
    """A function that is called as Triton's kernels are: `kernel[grid](...)`."""

    def __init__(self, launch: Any) -> None:
        self._launch = launch

    def __getitem__(self, grid: Any) -> Any:
        assert all(isinstance(size, int) and 0 < size < 2**31 for size in grid)
        return partial(self._launch, grid)


class FakeGraph:
    """A CUDA graph, whose replay is one launch."""

    def __init__(self, device: FakeCuda) -> None:
        self._device = device

    def pool(self) -> int:
        """Return the memory that graphs share."""
        return 1

    def replay(self) -> None:
        """Launch it."""
        self._device.launches["graph"] += 1
        self._device.order.append("graph")


class FakeStream:
    """A stream of launches."""

    def __init__(self, device: FakeCuda, priority: int = 0) -> None:
        self._device, self.priority = device, priority

    def wait_stream(self, other: object) -> None:
        """Let the device wait; the host does not."""

    def wait_event(self, event: "FakeEvent") -> None:
        """Let the device wait; the host does not."""

    def synchronize(self) -> None:
        """Wait for a copy to the host, which is counted as such."""


class FakeEvent:
    """A moment in a stream, which has come when somebody asks."""

    def __init__(self, device: FakeCuda) -> None:
        self._device = device

    def record(self, stream: object = None) -> None:
        """Set the moment."""

    def query(self) -> bool:
        """Return whether it has come."""
        return True

    def synchronize(self) -> None:
        """Wait for a copy to the host, which is counted as such."""
        self._device.order.append("read")


def described(value: Any) -> str:
    """Return what an operation depends on: of a tensor all but its numbers."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(described, value))})"
    if is_tensor(value):
        return f"{value.device.type} {value.dtype} {tuple(value.shape)} by {value.stride()}"
    return repr(value)


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor, "pinned", False)


def is_view(func: Any) -> bool:
    """Return whether an operation of PyTorch returns a part of its input, without a launch."""
    returns = func._schema.returns
    views = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
    return (bool(views) and all(views)) or func._schema.name in ("aten::_unsafe_view",)


@contextmanager
def fake_cuda(processors: int = 132) -> Iterator[FakeCuda]:
    """Give this process a GPU of compute capability 9.0, without numbers."""
    device = FakeCuda()
    empty = {name: getattr(torch, name) for name in ("empty", "zeros")}

    def on_host(name: str) -> Any:
        def make(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
            if not pin_memory:
                made: Tensor = empty[name](*size, **options)
                return made
            with unset_fake_temporarily():
                host = torch.ones(*size, **options)
            host.pinned = True  # type: ignore[attr-defined]
            device.host_bytes = max(device.host_bytes, host.nbytes)
            return host

        return make

    def nothing(*args: Any, **options: Any) -> Any:
        return nullcontext()

    properties = SimpleNamespace(multi_processor_count=processors, major=9, minor=0)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name in empty:
            patch.setattr(torch, name, on_host(name))
        patch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
        patch.setattr(torch.cuda, "current_stream", lambda *_: FakeStream(device))
        patch.setattr(torch.cuda, "Stream", lambda *_, priority=0: FakeStream(device, priority))
        patch.setattr(torch.cuda, "Event", lambda **_: FakeEvent(device))
        patch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(device))
        for name in ("device_of", "device", "stream", "graph"):
            patch.setattr(torch.cuda, name, nothing)
        for module, names in KERNELS.items():
            for name in names:
                patch.setattr(module, name, device.kernel(name))
        patch.setattr(Switch, "disabled", False)
        stack.enter_context(Substitutes(device))
        stack.enter_context(device.fake)
        stack.enter_context(device)
        yield device
