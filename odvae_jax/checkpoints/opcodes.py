"""A small interpreter of pickle's opcodes, which is bounded in time and memory.

A pickle is a program. Python's own interpreter lets nine bytes take gigabytes (an entry far out in
its memo), and some hundred bytes run for ever (the hash of a tuple that holds the same tuple twice,
many levels deep). This one knows only what data is made of. It calls no function that it was not
given, hashes plain keys only, copies nothing twice, never recurses, and takes a limited number of
steps. So time and memory are proportional to the file.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

from odvae_jax.files import one_line

_STEPS = 5_000_000
"""The number of opcodes that a pickle may have; one that makes an object of its own counts five."""
_INTEGER_BYTES = 128
_ARGUMENTS = 64
_NAME = 1000
_PLAIN = (str, float, bytes, type(None))


class PickleError(ValueError):
    """A file is no pickle of tensors, or is damaged. The message says why."""


class Inert:
    """A stand-in for an object of a class that is not looked up; it keeps and does nothing."""


class Sealed:
    """Something that a pickle may name, call or be given, but not change."""

    def build(self, machine: Machine, state: Any) -> Any:
        """Returns what this object becomes when the pickle gives it a state.

        Args:
          machine: what runs the pickle.
          state: the state.

        Raises:
          PickleError: if it takes none, which is so unless a subclass says otherwise.
        """
        raise PickleError(f"the pickle tries to change a {type(self).__name__.strip('_')}")


class Function(Sealed):
    """A function of this package that a pickle may call."""

    def __init__(self, function: Callable):
        self.function = function


class Machine:
    """Runs one pickle.

    Args:
      data: bytes that hold the pickle; there may be others before and after it.
      start: the index of the pickle's first byte.
      known: the objects that the pickle may name, by module and name. All others are inert.
      load: a function from a persistent identity to the object; None if there may be none.
      steps: the number of opcodes that are left to this pickle and to others of the file.

    Attributes:
      at: the index of the next byte; after `run`, of the byte after the pickle.
      steps: the number of opcodes that are left.
      inert: the names that were not known, each as "module.name".
    """

    def __init__(
        self,
        data: Any,
        start: int = 0,
        *,
        known: Mapping[tuple[str, str], Any],
        load: Callable[[Any], Any] | None = None,
        steps: int = _STEPS,
    ):
        self.at, self.steps = start, steps
        self._copied = 0
        self.inert: set[str] = set()
        self._data, self._size = data, len(data)
        self._known, self._load = known, load
        self._stack: list = []
        self._marked: list[list] = []
        self._memo: dict[int, Any] = {}
        self._places: dict[int, list[int]] = {}  # where objects that will change are in the memo

    def run(self) -> Any:
        """Runs the pickle and returns what it makes.

        Raises:
          PickleError: if it is damaged, uses what no pickle of tensors needs, or is too long.
        """
        data, handlers = self._data, _HANDLERS
        try:
            while True:
                if self.at >= self._size:
                    raise PickleError("it ends before its pickle does")
                code = data[self.at]
                if code == _STOP:
                    self.at += 1
                    return self._stack.pop()
                handler = handlers.get(code)
                if handler is None:
                    raise PickleError(f"the opcode {code:#x} is none that tensors need")
                self.at += 1
                self.steps -= 1
                if self.steps < 0:
                    self.pay(0)
                handler(self)
        except PickleError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise PickleError(f"{type(error).__name__}: {one_line(error)}") from error

    def pay(self, steps: int) -> None:
        """Counts steps.

        Raises:
          PickleError: if there are none left.
        """
        self.steps -= steps
        if self.steps < 0:
            raise PickleError(f"it has more than {_STEPS:,} opcodes, more than tensors need")

    def encode(self, text: str) -> bytes:
        """Returns the bytes that old pickles keep as text, one per character.

        Raises:
          PickleError: if it is asked for more of them than there are in the file.
        """
        self._copied += len(text)
        if self._copied > self._size:
            raise PickleError("it asks for more bytes than the file has")
        return text.encode("latin1")

    def take(self, count: int) -> bytes:
        """Returns the next bytes of the pickle.

        Raises:
          PickleError: if there are fewer.
        """
        start, self.at = self.at, self.at + count
        if not 0 <= count <= self._size - start:
            raise PickleError("it ends before its pickle does")
        return self._data[start : self.at]

    def line(self, most: int | None = None) -> bytes:
        """Returns the bytes up to the next line break, which is skipped."""
        end = self._data.find(b"\n", self.at)
        if end < 0:
            raise PickleError("it ends before its pickle does")
        if most is not None and end - self.at > most:
            raise PickleError(f"a number or a name of {end - self.at:,} characters")
        found = self.take(end - self.at)
        self.at += 1
        return found

    def number(self, form: str) -> Any:
        """Returns the next number, packed as `struct` describes it."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self._stack.append(value)

    def push_object(self, value: Any) -> None:
        """Puts a new object on the stack."""
        self.pay(4)
        self._stack.append(value)

    def pop(self) -> Any:
        """Takes the last value from the stack."""
        return self._stack.pop()

    @property
    def last(self) -> Any:
        """The last value on the stack."""
        return self._stack[-1]

    def mark(self) -> None:
        """Begins a list of values."""
        self.pay(4)
        self._marked.append(self._stack)
        self._stack = []

    def pop_marked(self) -> list:
        """Takes all values since the last mark from the stack, and the mark."""
        values, self._stack = self._stack, self._marked.pop()
        return values

    def put(self, index: int) -> None:
        """Keeps the last value on the stack under a number."""
        self._memo[index] = self.last
        if isinstance(self.last, Sealed):
            self._places.setdefault(id(self.last), []).append(index)

    def put_next(self) -> None:
        """Keeps the last value on the stack under the next number."""
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        """Puts the value of a number on the stack."""
        if index not in self._memo:
            raise PickleError("it takes what it never kept")
        self._stack.append(self._memo[index])

    def name(self, module: Any, name: Any) -> None:
        """Puts what has a name on the stack: something that is known, or an inert class."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("a name that is no text")
        if len(module) + len(name) > _NAME:
            raise PickleError(f"a name of {len(module) + len(name):,} characters")
        module = "builtins" if module == "__builtin__" else module
        found = self._known.get((module, name))
        if found is None:
            self.inert.add(f"{module}.{name}")
        self.push(Inert if found is None else found)

    def call(self, function: Any, arguments: Any) -> None:
        """Puts the result of a call on the stack; what is inert stays inert."""
        if not isinstance(function, Function):
            self.push_object(Inert())
            return
        if not isinstance(arguments, (tuple, list)) or len(arguments) > _ARGUMENTS:
            raise PickleError("a call without a list of arguments, or with far too many")
        self.push_object(function.function(self, *arguments))

    def build(self, state: Any) -> None:
        """Gives a state to the last value on the stack."""
        value = self.last
        if isinstance(value, Sealed):
            after = value.build(self, state)
            self._stack[-1] = after
            for index in self._places.pop(id(value), ()):
                if self._memo[index] is value:
                    self._memo[index] = after
        elif not _is_inert(value) and not isinstance(value, dict):  # attributes of a dict
            raise PickleError(f"the pickle tries to change a {type(value).__name__}")

    def extend(self, items: list) -> None:
        """Appends items to the list that is last on the stack."""
        if isinstance(self.last, list):
            self.last.extend(items)
        elif not _is_inert(self.last):
            raise PickleError(f"the pickle tries to change a {type(self.last).__name__}")

    def update(self, items: list) -> None:
        """Puts items, keys and values in turn, into the dictionary that is last on the stack.

        Items whose keys are neither text nor numbers are left out: hashing others may take for
        ever, and no tensor has such a name.
        """
        if isinstance(self.last, dict):
            self.last.update(plain_items(zip(items[::2], items[1::2], strict=True)))
        elif not _is_inert(self.last):
            raise PickleError(f"the pickle tries to change a {type(self.last).__name__}")

    def load(self, identity: Any) -> None:
        """Puts what a persistent identity stands for on the stack."""
        if self._load is None:
            raise PickleError("a reference to something outside the pickle")
        self.push_object(self._load(identity))


def plain_items(pairs: Any) -> dict:
    """Returns a dictionary of those pairs whose keys are text, bytes, numbers or None."""
    return {k: v for k, v in pairs if _is_plain(k)}


def _is_plain(key):
    # Many larger integers can have one and the same hash.
    return isinstance(key, _PLAIN) or (isinstance(key, int) and -(2**63) <= key < 2**63)


def _is_inert(value):
    return isinstance(value, Inert) or value is Inert


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _decimal(m: Machine):
    text = m.line(300).rstrip(b"L")
    m.push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text))


def _long(form: str):
    def handle(m: Machine):
        count = m.number(form)
        if not 0 <= count <= _INTEGER_BYTES:
            raise PickleError(f"an integer of {count:,} bytes")
        m.push(_integer(m.take(count)))

    return handle


def _number(form: str):
    return lambda m: m.push(m.number(form))


def _text(form: str):
    return lambda m: m.push_object(m.take(m.number(form)).decode("utf-8", "surrogatepass"))


def _latin(form: str):
    return lambda m: m.push_object(m.take(m.number(form)).decode("latin1"))


def _bytes(form: str):
    return lambda m: m.push_object(m.take(m.number(form)))


def _quoted(m: Machine):
    line = m.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
        raise PickleError("a text without quotes")
    m.push_object(codecs.escape_decode(line[1:-1])[0].decode("latin1"))


def _tuple_of(count: int):
    def handle(m: Machine):
        values = [m.pop() for _ in range(count)]
        m.push_object(tuple(reversed(values)))

    return handle


def _pop(m: Machine):
    if m._stack:
        m.pop()
    else:
        m.pop_marked()


def _protocol(m: Machine):
    if m.number("B") > pickle.HIGHEST_PROTOCOL:
        raise PickleError("a later protocol of pickles than is known")


def _reduce(m: Machine):
    arguments = m.pop()
    m.call(m.pop(), arguments)


def _new_with_names(m: Machine):
    m.pop()
    _reduce(m)


def _instance(m: Machine):
    m.name(m.line(_NAME).decode(), m.line(_NAME).decode())
    kind = m.pop()
    m.call(kind, m.pop_marked())


def _object(m: Machine):
    kind, *arguments = m.pop_marked()
    m.call(kind, arguments)


def _stack_global(m: Machine):
    name = m.pop()
    m.name(m.pop(), name)


def _set_item(m: Machine):
    value = m.pop()
    m.update([m.pop(), value])


def _set_items(m: Machine):
    items = m.pop_marked()
    m.update(items)


def _append(m: Machine):
    item = m.pop()
    m.extend([item])


def _extend(m: Machine):
    items = m.pop_marked()
    m.extend(items)


def _dictionary(m: Machine):
    items = m.pop_marked()
    m.push_object({})
    m.update(items)


def _frozen_set(m: Machine):
    m.pop_marked()
    m.push_object(Inert())


def _in_put(index: Callable[[Machine], int]):
    return lambda m: m.put(index(m))


def _in_get(index: Callable[[Machine], int]):
    return lambda m: m.get(index(m))


_STOP = pickle.STOP[0]
_HANDLERS: dict[int, Callable[[Machine], Any]] = {
    code[0]: handler
    for code, handler in {
        pickle.PROTO: _protocol,
        pickle.FRAME: lambda m: m.take(8),
        pickle.MARK: Machine.mark,
        pickle.POP: _pop,
        pickle.POP_MARK: Machine.pop_marked,
        pickle.DUP: lambda m: m.push(m.last),
        pickle.NONE: lambda m: m.push(None),
        pickle.NEWTRUE: lambda m: m.push(True),
        pickle.NEWFALSE: lambda m: m.push(False),
        pickle.INT: _decimal,
        pickle.LONG: _decimal,
        pickle.BININT: _number("<i"),
        pickle.BININT1: _number("B"),
        pickle.BININT2: _number("<H"),
        pickle.LONG1: _long("B"),
        pickle.LONG4: _long("<i"),
        pickle.FLOAT: lambda m: m.push(float(m.line(300))),
        pickle.BINFLOAT: _number(">d"),
        pickle.STRING: _quoted,
        pickle.BINSTRING: _latin("<i"),
        pickle.SHORT_BINSTRING: _latin("B"),
        pickle.UNICODE: lambda m: m.push_object(m.line().decode("raw-unicode-escape")),
        pickle.SHORT_BINUNICODE: _text("B"),
        pickle.BINUNICODE: _text("<I"),
        pickle.BINUNICODE8: _text("<Q"),
        pickle.SHORT_BINBYTES: _bytes("B"),
        pickle.BINBYTES: _bytes("<I"),
        pickle.BINBYTES8: _bytes("<Q"),
        pickle.BYTEARRAY8: _bytes("<Q"),
        pickle.EMPTY_LIST: lambda m: m.push_object([]),
        pickle.LIST: lambda m: m.push_object(m.pop_marked()),
        pickle.APPEND: _append,
        pickle.APPENDS: _extend,
        pickle.EMPTY_TUPLE: lambda m: m.push(()),
        pickle.TUPLE: lambda m: m.push_object(tuple(m.pop_marked())),
        pickle.TUPLE1: _tuple_of(1),
        pickle.TUPLE2: _tuple_of(2),
        pickle.TUPLE3: _tuple_of(3),
        pickle.EMPTY_DICT: lambda m: m.push_object({}),
        pickle.DICT: _dictionary,
        pickle.SETITEM: _set_item,
        pickle.SETITEMS: _set_items,
        pickle.EMPTY_SET: lambda m: m.push_object(Inert()),
        pickle.FROZENSET: _frozen_set,
        pickle.ADDITEMS: Machine.pop_marked,
        pickle.PUT: _in_put(lambda m: int(m.line(20))),
        pickle.BINPUT: _in_put(lambda m: m.number("B")),
        pickle.LONG_BINPUT: _in_put(lambda m: m.number("<I")),
        pickle.MEMOIZE: Machine.put_next,
        pickle.GET: _in_get(lambda m: int(m.line(20))),
        pickle.BINGET: _in_get(lambda m: m.number("B")),
        pickle.LONG_BINGET: _in_get(lambda m: m.number("<I")),
        pickle.GLOBAL: lambda m: m.name(m.line(_NAME).decode(), m.line(_NAME).decode()),
        pickle.STACK_GLOBAL: _stack_global,
        pickle.REDUCE: _reduce,
        pickle.NEWOBJ: _reduce,
        pickle.NEWOBJ_EX: _new_with_names,
        pickle.INST: _instance,
        pickle.OBJ: _object,
        pickle.BUILD: lambda m: m.build(m.pop()),
        pickle.BINPERSID: lambda m: m.load(m.pop()),
    }.items()
}
