"""A pretended GPU: tensors that say ``cuda:0``, hold the CPU's numbers, and fail where a GPU would.

Inside ``with PretendedGPU() as gpu`` torch believes in one GPU. A tensor is on it if its storage is marked so. Every operator
is seen by a `TorchDispatchMode`, which marks what comes out of marked inputs. It

* raises where an operator mixes devices, as CUDA does;
* raises where random numbers are drawn on the GPU, since they would differ from the CPU's;
* counts kernels (``gpu.kernels``): operators that compute something, without views and allocations;
* notes each wait of the host for the GPU (``gpu.waits``) with the line of the project that causes it: numbers read back,
  operators whose output size depends on values, copies from memory that is not pinned, and `torch.cuda.synchronize`.

There is nothing compiled, and nothing outside the ``with`` changes. Not covered: CUDA's kernels and their rounding, time,
streams, memory, and CUDA's own list of autocast operators: autocast follows the CPU's list, so its numbers are the CPU's.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
PROJECT = tuple(f"{ROOT / folder}/" for folder in ("fedbench", "methods"))
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# NEUTRAL: made inside an operator of torch, such as the zeros of a backward pass. It is where it is used.
HOST, PINNED, NEUTRAL, DEVICE = "host", "pinned", "neutral", "device"

FACTORIES = (
    "arange", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace", "ones", "ones_like", "rand",
    "rand_like", "randint", "randn", "randn_like", "randperm", "scalar_tensor", "tril_indices", "triu_indices", "zeros",
    "zeros_like",
)  # fmt: skip
NEW = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
NO_KERNEL = {
    "_local_scalar_dense", "_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty",
    "new_empty_strided", "resize_", "set_", "_fused_sdp_choice", "_has_compatible_shallow_copy_type",
}  # fmt: skip
READS = {
    "_linalg_check_errors", "_local_scalar_dense", "_unique2", "bincount", "equal", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
NO_SCALAR = {
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "cat",
    "stack",
    "index_select",
    "gather",
    "scatter",
    "scatter_",
    "embedding",
}


@dataclass(frozen=True)
class Wait:
    """The host waits for the GPU: why, and the line of the project that makes it wait."""

    why: str
    line: str


def base(tensor):
    """The tensor inside the wrappers of `torch.func`."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def place(tensor) -> str:
    """Where a tensor pretends to be."""
    return getattr(base(tensor).untyped_storage(), "pretended_place", HOST)


def put(tensor, where: str):
    """Mark a tensor's storage."""
    base(tensor).untyped_storage().pretended_place = where
    return tensor


def is_real(leaf) -> bool:
    """Whether a leaf is a tensor with values."""
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided and not leaf.is_meta


def on_gpu(tensor) -> bool:
    """Whether a tensor pretends to be on the GPU."""
    return is_real(tensor) and place(tensor) == DEVICE


def means_gpu(device) -> bool:
    """Whether the argument `device` names the GPU."""
    if device is None or isinstance(device, torch.Tensor | torch.dtype):
        return False
    return device == 0 if isinstance(device, int) else torch.device(device).type == "cuda"


def line_of_project() -> str:
    """``folder/file.py:line`` of the innermost frame that is in the package or in a method."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PROJECT):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


class PretendedGPU(TorchDispatchMode):
    """The mode; see the module."""

    def __init__(self):
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: list[Wait] = []
        self._quiet = False  # inside an operation of this class
        self._creating: str | None = None  # where the factory that was called from Python creates
        self._last_on_gpu = False
        self._composite: dict[object, bool] = {}
        self._patches = ExitStack()
        self._depth = 0

    @property
    def count(self) -> int:
        """Kernels so far."""
        return self.kernels.total()

    def __enter__(self):
        if not self._depth:
            # ``with torch.device("meta")`` asks a list of factories that torch makes once: of torch's functions, not of ours.
            torch.utils._device._device_constructors()
            for owner, name, new in _patches(self):
                self._patches.enter_context(mock.patch.object(owner, name, new))
        self._depth += 1
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._depth -= 1
        if not self._depth:
            self._patches.close()

    def wait(self, why: str) -> None:
        """Note that the host waits."""
        if not self._quiet:
            self.waits.append(Wait(why, line_of_project()))

    @contextmanager
    def quiet(self):
        """Inside, operators are run as they are."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    @contextmanager
    def creating(self, where: str):
        """Inside, factories create there."""
        before, self._creating = self._creating, where
        try:
            yield
        finally:
            self._creating = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._quiet:
            return func(*args, **kwargs)
        if self._decomposes(func):
            with self:
                return func.decompose(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if is_real(leaf)]
        places = [place(tensor) for tensor in tensors]
        if DEVICE not in places:
            out = func(*args, **kwargs)
            if not tensors and name not in ("lift_fresh",):
                self._created(name, func, out)
            self._last_on_gpu = self._creating == DEVICE or (self._last_on_gpu and not tensors)
            return out
        self._check(name, func, args, [t for t, p in zip(tensors, places, strict=True) if p in (HOST, PINNED)])
        self._note_waits(name, args, kwargs)
        out = func(*args, **kwargs)
        self._last_on_gpu = True
        if not (name in ("copy_", "_to_copy") and not on_gpu(args[0])):
            for leaf in pytree.tree_leaves(out):
                if is_real(leaf):
                    put(leaf, DEVICE)
        if name not in NO_KERNEL and not _is_view(func) and func.namespace != "profiler":
            self.kernels[name] += 1
        return out

    def _decomposes(self, func) -> bool:
        """Whether an operator is made of others; in inference mode torch has not taken it apart yet."""
        if func not in self._composite:
            self._composite[func] = func._can_decompose() and func.namespace == "aten"
        return self._composite[func] and torch.is_inference_mode_enabled()

    def _created(self, name: str, func, out) -> None:
        where = self._creating or NEUTRAL
        if where == DEVICE:
            _refuse_draws(name, func)
        for leaf in pytree.tree_leaves(out):
            if is_real(leaf):
                put(leaf, where)
        if (where == DEVICE or (where == NEUTRAL and self._last_on_gpu)) and name not in NO_KERNEL:
            self.kernels[name] += 1

    def _check(self, name: str, func, args, host) -> None:
        """Raise RuntimeError for an operator that CUDA refuses, or that gives other numbers there."""
        if name in INDEXED and not on_gpu(args[0]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        _refuse_draws(name, func)
        refused = [t for t in host if t.dim() or name in NO_SCALAR or name.startswith("_foreach")]
        if name in ("copy_",):
            refused = []
        if name in INDEXED and on_gpu(args[0]):  # the index itself may be on the host: it is copied
            index = {id(part) for part in args[1] if part is not None}
            refused = [t for t in refused if id(t) not in index]
        if refused:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"(aten::{name}, {[list(t.shape) for t in refused]})"
            )

    def _note_waits(self, name: str, args, kwargs) -> None:
        if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.wait(f"aten::{name} needs values")
        elif name == "copy_" and not on_gpu(args[1]) and place(args[1]) != NEUTRAL and args[1].dim():
            if not (place(args[1]) == PINNED and (len(args) > 2 and args[2])):
                self.wait("copy from the host")
        elif name == "copy_" and not on_gpu(args[0]):
            self.wait("copy to the host")
        elif name in INDEXED:
            parts = [part for part in args[1] if part is not None]
            one_value = name != "index" and args[2].numel() == 1  # becomes masked_fill
            if any(part.dtype in (torch.bool, torch.uint8) for part in parts) and not one_value:
                self.wait("index by a mask")
            if any(place(part) in (HOST, PINNED) for part in parts):
                self.wait("index on the host")

    def move(self, tensor, to_gpu: bool, non_blocking: bool = False):
        """A copy of `tensor` on the other side."""
        if tensor.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("no gradient goes through a copy between devices")
        if not to_gpu:
            self.wait("copy to the host")
        elif not (non_blocking and place(tensor) == PINNED):
            self.wait("copy from the host")
        with self.quiet():
            return put(tensor.detach().clone(), DEVICE if to_gpu else HOST)


def _refuse_draws(name: str, func) -> None:
    """Raise RuntimeError for an operator that draws; attention has the tag for its dropout, which is not used."""
    if torch.Tag.nondeterministic_seeded in func.tags and "dot_product" not in name:
        raise RuntimeError(f"aten::{name} draws other numbers on a GPU than on a CPU")


def _is_view(func) -> bool:
    """Whether an operator returns a view of an argument, or turns it into one."""
    if torch.Tag.inplace_view in func.tags:
        return True
    aliases = [returned.alias_info for returned in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _patches(gpu: PretendedGPU):
    """(owner, name, replacement) of what torch's Python side says about devices."""
    tensor, cuda = torch.Tensor, torch.cuda
    old = {name: getattr(tensor, name) for name in ("to", "numpy", "tolist", "__array__", "__deepcopy__", "pin_memory")}
    device_of = torch._C.TensorBase.device.__get__

    def to(self, *args, **options):
        args, options = list(args), dict(options)
        target = options.pop("device", None)
        if args and not isinstance(args[0], torch.dtype):
            target = args.pop(0)
            if isinstance(target, torch.Tensor):
                args, target = [target.dtype, *args], target.device
        if target is None:
            return old["to"](self, *args, **options)
        if not (is_real(base(self))) or torch.device(target).type == "meta":
            return old["to"](self, target, *args, **options)
        source, to_gpu = on_gpu(self) or place(self) == NEUTRAL, means_gpu(target)
        args = [arg for arg in args if arg is not None]
        if source == to_gpu:
            return old["to"](self, *args, **options) if args or options else self
        non_blocking = options.pop("non_blocking", False) or any(a is True for a in args)
        moved = gpu.move(self, to_gpu, non_blocking)
        args = [arg for arg in args if not isinstance(arg, bool)]
        with gpu.quiet():
            where = place(moved)
            return put(old["to"](moved, *args, **options), where) if args or options else moved

    def read(name):
        def method(self, *args, **options):
            if on_gpu(self):
                if name != "tolist":
                    raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
                gpu.wait("tolist")
            return old[name](self, *args, **options)

        return method

    def pin_memory(self, *args):
        if on_gpu(self):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        with gpu.quiet():
            return put(self.detach().clone(), PINNED)

    def deepcopy(self, memo):
        return put(old["__deepcopy__"](self, memo), place(self)) if is_real(self) else old["__deepcopy__"](self, memo)

    def device(self):
        real = base(self)
        if not is_real(real):
            return device_of(real)
        where = place(real)
        return CUDA if where == DEVICE or (where == NEUTRAL and gpu._last_on_gpu) else CPU

    def factory(make, copies=False):
        def made(*args, **options):
            target = options.get("device")
            if target is None:
                inherits = any(isinstance(a, torch.Tensor) for a in args[:1])  # zeros_like(x), x.new_zeros()
                if inherits:
                    return make(*args, **options)
                with gpu.creating(HOST):
                    return make(*args, **options)
            if not means_gpu(target):
                with gpu.creating(HOST):
                    return make(*args, **options)
            if copies:
                del options["device"]
                return made(*args, **options).to(target)
            with gpu.creating(DEVICE):
                return put(make(*args, **(options | {"device": "cpu"})), DEVICE)

        return made

    class Autocast(torch.autocast):
        def __init__(self, device_type, *args, **options):
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **options)

    one_hot_of, parse_to = F.one_hot, torch._C._nn._parse_to

    def parsed_to(*args, **options):  # of Module.to(tensor)
        like = args[0] if args and isinstance(args[0], torch.Tensor) else options.get("tensor")
        return parse_to(*args, **options) if like is None else parse_to(device=like.device, dtype=like.dtype)

    def one_hot(index, num_classes=-1):
        if num_classes < 0 or not on_gpu(index):  # on a CPU it also reads the largest index
            return one_hot_of(index, num_classes)
        return index.new_zeros(*index.shape, num_classes).scatter(-1, index[..., None], 1)

    yield from ((tensor, name, read(name)) for name in ("numpy", "tolist", "__array__"))
    yield from ((torch, name, factory(getattr(torch, name))) for name in FACTORIES)
    yield from ((torch, name, factory(getattr(torch, name), copies=True)) for name in ("tensor", "as_tensor"))
    yield from ((tensor, name, factory(getattr(tensor, name))) for name in NEW)
    yield tensor, "to", to
    yield tensor, "cpu", lambda self: self.to("cpu")
    yield tensor, "cuda", lambda self, device=0, non_blocking=False: self.to(CUDA, non_blocking=non_blocking)
    yield tensor, "pin_memory", pin_memory
    yield tensor, "is_pinned", lambda self: place(self) == PINNED
    yield tensor, "__deepcopy__", deepcopy
    yield tensor, "device", property(device)
    yield tensor, "is_cuda", property(lambda self: self.device.type == "cuda")
    yield tensor, "is_cpu", property(lambda self: self.device.type == "cpu")
    yield tensor, "get_device", lambda self: 0 if self.device.type == "cuda" else -1
    yield torch, "autocast", Autocast
    yield torch._C._nn, "_parse_to", parsed_to
    yield F, "one_hot", one_hot
    yield cuda, "is_available", lambda: True
    yield cuda, "device_count", lambda: 1
    yield cuda, "current_device", lambda: 0
    yield cuda, "get_device_name", lambda *device: "pretended GPU"
    yield cuda, "synchronize", lambda *device: gpu.wait("torch.cuda.synchronize")
    yield cuda, "empty_cache", lambda: None
    yield cuda, "reset_peak_memory_stats", lambda *device: None
    yield cuda, "max_memory_allocated", lambda *device: 0
    for name in (
        "_accelerator_graph_capture_health_check",
        "_cuda_graph_capture_health_check",
    ):  # depends on the version
        if hasattr(torch.optim.Optimizer, name):
            yield torch.optim.Optimizer, name, lambda self: None
