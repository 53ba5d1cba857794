"""A pretended CUDA device on a CPU, for machines without one: `with fake_cuda() as waits: ...`.

A tensor "on cuda" wraps one on the CPU. What a GPU would refuse is refused: operations on tensors
of both. What would make the host wait for the device is counted in `waits`, {"file.py:line  what":
times}: item(), tolist(), a mask as an index, copies in either direction that are not asynchronous.

Not imitated: speed, memory, the generator's numbers, compilation; and of autocast only the
functions in LOW and HIGH. Autograd's own thread (--recompute) sees the tensors but not the modes.

PyTorch lets a Python program be a device, "PrivateUse1", here renamed to gpu. Modes turn "cuda"
into it on the way in, and say "cuda" where somebody asks.
"""

import collections
import contextlib
import functools
import os
import traceback
from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

HERE = os.path.abspath(__file__)
ROOT = os.path.dirname(os.path.dirname(HERE))
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
         aten.equal.default, aten._unique2.default}
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
           aten._index_put_impl_.default}
# what autocast computes in bf16, and what in fp32
LOW = {F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm,
       torch.baddbmm, torch.addmm, torch.mm, F.scaled_dot_product_attention}
HIGH = {F.softmax, torch.softmax, torch.Tensor.softmax, F.log_softmax, torch.log_softmax,
        F.cross_entropy, F.layer_norm, torch.Tensor.exp, torch.Tensor.log, torch.Tensor.cumsum,
        torch.Tensor.sum}

waits = collections.Counter()


class Backend:
    """What PyTorch asks of a device's module, torch.gpu."""
    is_initialized = is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed_all = staticmethod(lambda seed: None)
    is_autocast_enabled = _is_in_bad_fork = staticmethod(lambda: False)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    get_rng_state = staticmethod(lambda device=None: torch.empty(4, device="gpu"))


@functools.cache
def gpu():
    """The device, once it is registered."""
    _setup_privateuseone_for_python_backend("gpu", backend_module=Backend())
    return torch.device("gpu:0")


def is_gpu(device):
    return device is not None and torch.device(device).type in ("gpu", "cuda")


def note(what):
    """Count a wait of the line of this project that caused it."""
    for frame in reversed(traceback.extract_stack()):
        path = os.path.relpath(frame.filename, ROOT)
        if not path.startswith(("..", "<", ".venv")) and frame.filename != HERE:
            waits[f"{path}:{frame.lineno}  {what}: {frame.line}"] += 1
            return
    waits[what] += 1


# ---- tensors ------------------------------------------------------------------------------------

class OnGPU(torch.Tensor):
    """A tensor on the device; `host` is what it wraps."""

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(),
            dtype=host.dtype, device=gpu())

    def __init__(self, host):
        self.host = host

    def __repr__(self):
        return f"OnGPU({self.host})"

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None):
        return run(f, args, kwargs or {})


def check(f, args, kwargs, tensors, ours):
    """Raise RuntimeError where a GPU would, and count what waits for it."""
    others = [x for x in tensors if not isinstance(x, OnGPU) and x.dim() > 0]
    if f in INDEXES:
        indices = [i for i in args[1] if i is not None]
        if not isinstance(args[0], OnGPU) and any(isinstance(i, OnGPU) for i in indices):
            raise RuntimeError("indices on cuda, tensor on cpu")
        if ours and any(not isinstance(i, OnGPU) for i in indices):
            note("an index is copied")
            others = [x for x in others if all(x is not i for i in indices)]
        if any(isinstance(i, OnGPU) and i.dtype == torch.bool for i in indices):
            note("a mask as index")
    if ours and others and f not in COPIES:
        raise RuntimeError(f"{f} on tensors of cuda and of the cpu")
    if ours and f in READS:
        note(f.overloadpacket.__name__)
    if f is aten.copy_.default and len(ours) == 1 and not (len(args) > 2 and args[2]):
        note("copied")
    if f is aten._to_copy.default and kwargs.get("device") is not None:
        there = is_gpu(kwargs["device"])
        if ours and not there:
            note("copied")
        if there and not ours and tensors[0].dim() and not kwargs.get("non_blocking"):
            note("copied")


def run(f, args, kwargs):
    """An operation, on what the tensors wrap."""
    leaves, tree = tree_flatten((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, OnGPU)]
    check(f, args, kwargs, tensors, ours)
    if f is aten._fused_sdp_choice.default:
        return 0                                             # the plain one
    if f is aten.is_pinned.default:
        return True
    device = kwargs.get("device")
    hosts = [x.host if isinstance(x, OnGPU) else x for x in leaves]
    there, plain = tree_unflatten(hosts, tree)
    if device is not None:
        plain["device"] = "cpu"
    plain.pop("pin_memory", None)
    out = f(*there, **plain)
    if f is aten.copy_.default:
        return args[0]
    if not (ours if device is None else is_gpu(device)):
        return out
    wrappers = {id(x.host): x for x in ours}                 # in place: the very same

    def wrapped(x):
        if isinstance(x, list | tuple):
            return type(x)(map(wrapped, x))
        if not isinstance(x, torch.Tensor):
            return x
        return wrappers[id(x)] if id(x) in wrappers else OnGPU(x)

    return wrapped(out)


class Dispatch(TorchDispatchMode):
    """Sees what no OnGPU takes part in: torch.zeros(..., device="cuda")."""

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        return run(f, args, kwargs or {})


# ---- names --------------------------------------------------------------------------------------

class Autocast(contextlib.ContextDecorator):
    """torch.autocast("cuda", ...)"""
    dtype = None        # now

    def __init__(self, device_type, dtype=torch.bfloat16, enabled=True, cache_enabled=True):
        assert device_type == "cuda", device_type
        self.wanted, self.before = dtype if enabled else None, []

    def __enter__(self):
        self.before.append(Autocast.dtype)
        Autocast.dtype = self.wanted

    def __exit__(self, *_):
        Autocast.dtype = self.before.pop()


class Function(TorchFunctionMode):
    """Takes "cuda" for the device, and calls it so; what reads it counts as a wait."""

    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = bool(args) and isinstance(args[0], OnGPU)
        if ours and f == torch.Tensor.device.__get__:
            return torch.device("cuda:0")
        if ours and f == torch.Tensor.is_cuda.__get__:
            return True
        if f is torch.Tensor.pin_memory:
            return args[0]
        if ours and f is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if ours and f is torch.Tensor.tolist:
            note("tolist")
            return args[0].host.tolist()
        if ours and f in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], tree_map(as_index, args[1], is_leaf=is_numbers), *args[2:])
        if f in (torch.tensor, torch.as_tensor) and is_gpu(kwargs.get("device")):
            note("tensor()")
            return OnGPU(f(*args, **kwargs | {"device": "cpu"}))
        if Autocast.dtype is not None and f in LOW | HIGH:
            to = Autocast.dtype if f in LOW else torch.float32
            args, kwargs = tree_map_only(OnGPU, functools.partial(cast, to), (args, kwargs))
        args = [as_gpu(x) for x in args]
        kwargs = {name: as_gpu(x) for name, x in kwargs.items()}
        return f(*args, **kwargs)


def cast(dtype, x):
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


def is_numbers(x):
    return isinstance(x, list) and all(isinstance(i, int) for i in x)


def as_index(x):
    """A list of numbers as an index is copied to the device."""
    if not is_numbers(x):
        return x
    note("an index is copied")
    return OnGPU(torch.tensor(x, dtype=torch.long))


def as_gpu(x):
    """"cuda" as a device or its name -> gpu; anything else as it is."""
    named = isinstance(x, str) and (x == "cuda" or x.startswith("cuda:"))
    return gpu() if named or isinstance(x, torch.device) and x.type == "cuda" else x


class Generator(torch.Generator):
    """torch.Generator("cuda"), which draws the CPU's numbers."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        super().__init__()


@contextlib.contextmanager
def fake_cuda():
    """A CUDA device while this lasts -> `waits`, empty."""
    gpu()
    waits.clear()
    with contextlib.ExitStack() as stack:
        for name, value in {
            "is_available": lambda: True, "device_count": lambda: 1, "set_device": lambda *a: None,
            "is_bf16_supported": lambda *a, **k: True, "synchronize": lambda *a: None,
        }.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in {
            "Generator": Generator, "autocast": Autocast,
            "is_autocast_enabled": lambda kind="cuda": kind == "cuda" and bool(Autocast.dtype),
            "get_autocast_dtype": lambda kind: Autocast.dtype or torch.bfloat16,
        }.items():
            stack.enter_context(mock.patch.object(torch, name, value))
        stack.enter_context(Dispatch())
        stack.enter_context(Function())
        yield waits
