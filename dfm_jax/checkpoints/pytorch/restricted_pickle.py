"""Reads and writes the part of Python's pickle format that PyTorch checkpoints use. It cannot run code.

`pickle.Unpickler` imports and calls what a file names. Even with `find_class` overridden, its opcode BUILD sets
attributes of objects on its stack. This reader has only the harmless opcodes. It builds dicts, lists, tuples and
scalars, and asks its caller for tensors. It raises on any name that is not in the list below.
"""

import math
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_ORDERED_DICT = "collections.OrderedDict"
_NAMES = {_TENSOR, _PARAMETER, _ORDERED_DICT, *STORAGES}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
}


class _Name(NamedTuple):
    """A global that the file names: one of `_NAMES`. It is only the name, not the object."""

    name: str


class _Mark:
    """Marks on the stack where the items of a tuple, list or dict begin."""


_MARK = _Mark()


def loads(data: bytes, load_storage: Callable[[str, np.dtype, int], np.ndarray]) -> Any:
    """The value in `data`: dicts, lists, tuples, str, int, float, bool, None, and numpy arrays for tensors.

    Args:
        data: a pickle of protocol 2 to 5.
        load_storage: (key, dtype, number of elements) -> the flat array of which tensors are views.

    Raises:
        ValueError: the pickle is damaged, or names something else. The error says which name.
    """
    try:
        return _Machine(load_storage).run(data)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__}: {error})") from error


class _Machine:
    def __init__(self, load_storage: Callable[[str, np.dtype, int], np.ndarray]):
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _VALUES:
                self.stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]  # pyright: ignore[reportArgumentType]
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])  # pyright: ignore[reportArgumentType]
            elif name == "GLOBAL":
                self.stack.append(_allowed(str(argument).replace(" ", ".")))
            elif name not in ("PROTO", "FRAME"):
                handler = getattr(self, "_" + name.lower(), None)
                if handler is None:
                    raise ValueError(f"pickle opcode {name}: expected those of tensors, dicts, lists and scalars")
                handler()
        raise ValueError("damaged pickle (no end)")

    def _mark(self) -> None:
        self.stack.append(_MARK)

    def _items(self) -> list[Any]:
        """Removes the last mark and all above it from the stack, and returns what was above it."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("damaged pickle (no mark)")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _empty_list(self) -> None:
        self.stack.append([])

    def _empty_tuple(self) -> None:
        self.stack.append(())

    def _tuple(self) -> None:
        self.stack.append(tuple(self._items()))

    def _tuple1(self) -> None:
        self._take_tuple(1)

    def _tuple2(self) -> None:
        self._take_tuple(2)

    def _tuple3(self) -> None:
        self._take_tuple(3)

    def _take_tuple(self, size: int) -> None:
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def _append(self) -> None:
        item = self.stack.pop()
        _expect(self.stack[-1], list).append(item)

    def _appends(self) -> None:
        items = self._items()
        _expect(self.stack[-1], list).extend(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _expect(self.stack[-1], dict)[_expect(key, str, int)] = value

    def _setitems(self) -> None:
        items = self._items()
        if len(items) % 2:
            raise ValueError("damaged pickle (a key without a value)")
        target = _expect(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_expect(key, str, int)] = value

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_allowed(f"{module}.{name}"))

    def _binpersid(self) -> None:
        kind, storage, key, _location, size = self.stack.pop()
        if kind != "storage" or not isinstance(storage, _Name) or storage.name not in STORAGES:
            raise ValueError(f"damaged pickle (storage of {kind!r}, {storage!r})")
        self.stack.append(self.load_storage(_expect(key, str), STORAGES[storage.name], _expect(size, int)))

    def _reduce(self) -> None:
        arguments, function = _expect(self.stack.pop(), tuple), _expect(self.stack.pop(), _Name)
        if function.name == _ORDERED_DICT and not arguments:
            self.stack.append(OrderedDict())
        elif function.name == _TENSOR:
            self.stack.append(_tensor(*arguments[:4]))
        elif function.name == _PARAMETER:
            self.stack.append(_expect(arguments[0], np.ndarray))
        else:
            raise ValueError(f"a call of {function.name} with {len(arguments)} arguments: expected tensors")

    def _build(self) -> None:
        """Drops the attributes of a state dict (`_metadata`, the versions of modules), which are not needed."""
        self.stack.pop()
        _expect(self.stack[-1], OrderedDict)


def _allowed(name: str) -> _Name:
    if name not in _NAMES:
        raise ValueError(f"{name} in the pickle: expected only tensors, dicts, lists and scalars")
    return _Name(name)


def _expect(value: Any, *types: type) -> Any:
    if not isinstance(value, types):
        raise ValueError(f"damaged pickle ({type(value).__name__} for {types[0].__name__})")
    return value


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    _expect(storage, np.ndarray)
    numbers = [_expect(n, int) for n in (offset, *_expect(size, tuple), *_expect(stride, tuple))]
    if min(numbers) < 0 or len(size) != len(stride):
        raise ValueError(f"tensor of size {size}, stride {stride}, offset {offset}: expected non-negative ones")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A stride of 0 would let a small file ask for any amount of memory. So a tensor may not have more elements than
    # its storage.
    if last >= storage.size or math.prod(size) > storage.size:
        raise ValueError(f"tensor of size {size}, stride {stride}, offset {offset} outside its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def dumps(value: Any, save_storage: Callable[[np.ndarray], str]) -> bytes:
    """A pickle (protocol 2) of nested dicts, OrderedDicts, lists, tuples, scalars and numpy arrays (as tensors).

    Args:
        save_storage: stores a contiguous array and returns its key.

    Raises:
        ValueError: a value of another type.
    """
    return b"\x80\x02" + b"".join(_dump(value, save_storage)) + b"."


def _dump(value: Any, save: Callable[[np.ndarray], str]) -> list[bytes]:
    if value is None:
        return [b"N"]
    if isinstance(value, bool):
        return [b"\x88" if value else b"\x89"]
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return [b"J", struct.pack("<i", value)]
        number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return [b"\x8a", struct.pack("<B", len(number)), number]
    if isinstance(value, float):
        return [b"G", struct.pack(">d", value)]
    if isinstance(value, str):
        text = value.encode()
        return [b"X", struct.pack("<I", len(text)), text]
    if isinstance(value, tuple | list):
        items = [part for item in value for part in _dump(item, save)]
        return [b"(", *items, b"t"] if isinstance(value, tuple) else [b"](", *items, b"e"]
    if isinstance(value, dict):
        items = [part for pair in value.items() for item in pair for part in _dump(item, save)]
        empty = _global(_ORDERED_DICT) + b")R" if isinstance(value, OrderedDict) else b"}"
        return [empty, b"(", *items, b"u"]
    if isinstance(value, np.ndarray):
        return _dump_tensor(value, save)
    raise ValueError(f"{type(value).__name__}: expected dicts, lists, tuples, scalars and arrays")


def _dump_tensor(array: np.ndarray, save: Callable[[np.ndarray], str]) -> list[bytes]:
    kinds = {dtype: name for name, dtype in STORAGES.items()}
    if array.dtype not in kinds:
        raise ValueError(f"array of {array.dtype}: expected {', '.join(map(str, kinds))}")
    stride = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
    storage = [_dump(part, save) for part in ("storage", save(array), "cpu", array.size)]
    storage.insert(1, [_global(kinds[array.dtype])])
    arguments = [_dump(part, save) for part in (0, array.shape, stride, False, OrderedDict())]
    return [
        _global(_TENSOR) + b"((",
        *(part for parts in storage for part in parts),
        b"tQ",
        *(part for parts in arguments for part in parts),
        b"tR",
    ]


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()
