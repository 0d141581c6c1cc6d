"""The step in C++ (kernels/), called by ctypes, and the states that it updates in place.

It is compiled when the package is installed, if there is a compiler. The library contains versions of the
kernel for AVX-512, AVX2 and the compiler's baseline, which give the same bits. A row's probabilities do not
depend on the other rows of a call, and a state that was read in one call is that of single steps.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError, UnsupportedError
from balancer.models.classifier import Classifier
from balancer.models.step.linear import LANES, wide
from balancer.models.step.packing import LAYERS, Packed, pack, refuses
from balancer.native_library import allowed_version, load_library

STEM = "_native_step"
INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")
VERSIONS = ("portable", "avx2", "avx512")
"""`INSTRUCTION_SETS` by the names of `BALANCER_INSTRUCTIONS`."""
FORMAT = 1
"""Version of the states and of their bytes."""
MARK = b"bstp"
"""First bytes of a packed state."""
_GROWTH = 1.5
"""A state that is full gets room for this many times its rows."""
_HEADER = struct.Struct("<4sI q 8q")
_LARGE_PAGE = 1 << 21

_INTEGERS = (
    *("fields", "numeric", "categories", "channels", "heads", "layers", "hidden", "classes", "window", "nodes", "history"),
    *("histories", "encoding", "levels", "bins", "frequencies", "cycles", "harmonics", "missing"),
    *("score", "landmarks", "gated", "pairs", "binary", "margin", "lowTable"),
)
_POINTERS = (
    *("search", "lower", "width", "table", "places", "frequency", "waves", "wavesBias"),
    *("cycleColumn", "period", "harmonic", "cycleWaves", "missingColumn", "missingRows", "sizes", "offsets", "codes", "position"),
    *("mixing", "mixingBias", "out", "outBias", "up", "upBias", "down", "downBias"),
    *("kinds", "mixingScale", "outScale", "upScale", "downScale", "headScale", "norms", "eps", "scoring", "gate"),
    *("speed", "lastNorm", "head", "headBias", "ones"),
)


class _Step(ctypes.Structure):
    """Mirror of the struct `Step` in kernels/step.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_float) for name in ("lastEps", "scale")),
        ("isa", ctypes.c_int32),
    )


def _declare(library: ctypes.CDLL, name: str) -> str | None:
    """Declare the library's functions; return the reason if its structures differ from those here."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for function, arguments, result in (
        ("layout", [], size),
        ("isa", [], ctypes.c_int32),
        ("numbers", [pointer, size], size),
        ("begin", [pointer, pointer, size], None),
        ("run", [pointer, size, pointer, pointer, pointer], ctypes.c_int32),
        ("read", [pointer, size, pointer, pointer], ctypes.c_int32),
        ("linear", [pointer, size, size, size, pointer, pointer], ctypes.c_int32),
        ("packed_numbers", [pointer, size], size),
        ("pack", [pointer, pointer, pointer], None),
        ("unpack", [pointer, pointer, size, pointer], None),
    ):
        declared = getattr(library, f"balancer_step_{function}")
        declared.argtypes, declared.restype = arguments, result
    same = library.balancer_step_layout() == ctypes.sizeof(_Step) + 1_000_000 * FORMAT
    return None if same else f"{name} is from another version: install balancer again"


_LIBRARY, _ABSENCE = load_library(Path(__file__).parent, STEM, _declare)


def absence() -> str | None:
    """Return the reason why the kernel can't be used here, or None if it can."""
    return _ABSENCE


def instruction_set() -> int | None:
    """Return the index in `INSTRUCTION_SETS` of the set that is used, or None without the library.

    It is the best one of the processor that `BALANCER_INSTRUCTIONS` allows.

    Raises:
        InputError: `BALANCER_INSTRUCTIONS` names an unknown set, or one that the processor does not have.
    """
    return None if _LIBRARY is None else allowed_version(VERSIONS, int(_LIBRARY.balancer_step_isa()))


class _Part:
    """The numbers of one segment (form `histories`) or of the last rows (form `rows`)."""

    __slots__ = ("address", "numbers", "rows")

    def __init__(self, numbers: NDArray[np.float32], rows: int) -> None:
        self.rows = rows
        self.hold(numbers)

    def hold(self, numbers: NDArray[np.float32]) -> None:
        """Use this array from now on."""
        self.numbers = numbers
        self.address = _address(numbers)


class StepState:
    """The state of one history. :meth:`NativeStep.advance` changes it in place.

    Attributes:
        position: Number of rows read.
    """

    __slots__ = ("_parts", "_step", "position")

    def __init__(self, step: NativeStep, parts: list[_Part], position: int) -> None:
        self._step, self._parts, self.position = step, parts, position

    def copy(self) -> StepState:
        """Return a state that later steps of this one do not change."""
        return StepState(self._step, [_Part(part.numbers.copy(), part.rows) for part in self._parts], self.position)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of its arrays."""
        return sum(part.numbers.nbytes for part in self._parts)

    def to_bytes(self, *, current_only: bool = False) -> bytes:
        """Return its numbers without empty slots, after a mark, the version and the sizes of the model.

        Args:
            current_only: Leave out the next segment, where there is one. It is as large as the current one,
                and can be read again from its rows.
        """
        return self._step.pack(self, current_only=current_only)


class NativeStep:
    """The step of a classifier. It copies the weights; later changes of the classifier have no effect.

    It can be used by several threads at the same time, each with its own states.

    Args:
        model: A trained classifier.
        instruction_set: Index in `INSTRUCTION_SETS` of the best set to use (default: that of
            :func:`instruction_set`); the results are the same.

    Raises:
        UnsupportedError: The kernel is not here, or does not know a part of the model.
    """

    def __init__(self, model: Classifier, *, instruction_set: int | None = None) -> None:
        reason = absence() or refuses(model)
        if reason is not None:
            raise UnsupportedError(f"the native step can't be used: {reason}")
        assert _LIBRARY is not None
        self._library = _LIBRARY
        self._packed: Packed = pack(model)
        sizes = self._packed.sizes
        # The kernel reads whole packs from any offset of an array.
        self._arrays = _together(self._packed.arrays)
        best = int(_LIBRARY.balancer_step_isa())
        if instruction_set is None:
            instruction_set = allowed_version(VERSIONS, best)
        self._struct = _Step(
            **{name: sizes[name] for name in _INTEGERS},
            **{name: _address(self._arrays[name]) if name in self._arrays else None for name in _POINTERS},
            **self._packed.numbers,
            isa=min(instruction_set, best),
        )
        self._at = ctypes.addressof(self._struct)
        self._num_fields, self._num_classes = sizes["fields"], sizes["classes"]
        self._histories, self._window, self._history = bool(sizes["histories"]), sizes["window"], sizes["history"]
        self._half = self._history // 2

    def start(self) -> StepState:
        """Return the state before the first row."""
        return StepState(self, [self._new(0)], 0)

    def advance(self, fields: NDArray[np.float32], states: Sequence[StepState]) -> NDArray[np.float32]:
        """Read the next row of some histories.

        Args:
            fields: (B, C) fields of the rows.
            states: Their states, all different; they are changed in place.

        Returns:
            Class probabilities (B, K). Those of a row do not depend on the other rows.

        Raises:
            InputError: The shapes do not fit, or a state occurs twice or belongs to another model.
        """
        fields = self._checked(fields)
        count = len(states)
        if len(fields) != count:
            raise InputError(f"fields holds {len(fields)} rows and states {count} states; give one row for each state")
        if count > 1 and len({id(state) for state in states}) < count:
            raise InputError("states contains the same state twice; read the rows of one history one after another")
        addresses = (ctypes.c_void_p * (2 * count))()
        for number, state in enumerate(states):
            if state._step is not self:
                raise InputError("states contains a state of another model; start with start() of this one")
            parts = self._with_room(state)
            addresses[2 * number] = parts[0].address
            if len(parts) == 2:
                addresses[2 * number + 1] = parts[1].address
        out = np.empty((count, self._num_classes), np.float32)
        if self._library.balancer_step_run(self._at, count, _address(fields), addresses, _address(out)):
            raise MemoryError(f"{count} rows could not be computed; give smaller batches")
        for state in states:
            state.position += 1
            for part in state._parts:
                part.rows += 1
        return out

    def read(self, fields: NDArray[np.float32], position: int) -> StepState:
        """Compute the state after `position` rows; the same bits as by single steps.

        Args:
            fields: (m, C) the last rows, at least those from the first row that a later one depends on.
            position: Number of rows of the history.
        """
        fields = self._checked(fields)
        if position == 0:
            return self.start()
        parts = []
        for begin in self._begins(position):
            count = position - begin
            if len(fields) < count:
                raise InputError(f"fields holds {len(fields)} rows, but the state after {position} rows depends on {count}")
            chosen = fields[len(fields) - count :]
            # In the form rows the place of a row follows from the number of the rows before it.
            parts.append(self._read_part(chosen, count if self._histories else position, 0 if self._histories else begin))
        return StepState(self, parts, position)

    def _read_part(self, fields: NDArray[np.float32], rows: int, begun: int) -> _Part:
        part = self._new(rows, begun=begun)
        if self._library.balancer_step_read(self._at, len(fields), _address(fields), part.address):
            raise MemoryError(f"{len(fields)} rows could not be read")
        return part

    def multiply(self, layer: str, x: NDArray[np.float32], block: int = 0) -> NDArray[np.float32]:
        """Compute one linear layer by itself, to compare it with that of the model.

        Args:
            layer: A name in `LAYERS`, such as `ff1`.
            x: (R, K) inputs.
            block: Number of its block.

        Returns:
            (R, N) outputs, N rounded up to a multiple of 16. Those of `key_value` are keys and values, each
            padded with zeros.
        """
        which, sizes = LAYERS.index(layer), self._packed.sizes
        inputs = sizes["hidden"] if layer == "ff2" else sizes["channels"]
        if x.ndim != 2 or x.shape[1] != inputs:
            raise InputError(f"x must be (rows, {inputs}) for {layer}, given {x.shape}")
        padded = np.ascontiguousarray(wide(x), np.float32)
        own, score, hidden, classes = (-(-sizes[name] // LANES) for name in ("channels", "landmarks", "hidden", "classes"))
        panels = (own, 2 * own, score, own, hidden, own, classes)
        out = np.empty((len(x), panels[which] * LANES), np.float32)
        if self._library.balancer_step_linear(self._at, block, which, len(x), _address(padded), _address(out)):
            raise MemoryError(f"{len(x)} rows could not be computed; give fewer")
        return out

    def pack(self, state: StepState, *, current_only: bool = False) -> bytes:
        """See :meth:`StepState.to_bytes`."""
        pieces = [self._header(state.position)]
        for part in state._parts[:1] if current_only else state._parts:
            found = np.empty(self._library.balancer_step_packed_numbers(self._at, part.rows), np.float32)
            self._library.balancer_step_pack(self._at, part.address, _address(found))
            pieces.append(found.tobytes())
        return b"".join(pieces)

    def next_begins(self, position: int) -> int:
        """Return the position of the first row of the next segment after `position` rows.

        Without a next segment it is that of the next row.
        """
        begins = self._begins(position) if position else ()
        return begins[1] if len(begins) == 2 else position

    def unpack(self, content: bytes, position: int, fields: NDArray[np.float32] | None = None) -> StepState | None:
        """Restore the state after `position` rows from :meth:`pack`.

        Args:
            content: The bytes.
            position: Number of rows.
            fields: (m, C) the rows from `next_begins` on, needed where the next segment was left out.

        Returns:
            The state; None if these are not the bytes of such a state of such a model.
        """
        begins = self._begins(position) if position else (0,)
        rows = [position - begin if self._histories else position for begin in begins]
        counts = [int(self._library.balancer_step_packed_numbers(self._at, each)) for each in rows]
        header = self._header(position)
        if not content.startswith(header):
            return None
        size = len(content) - len(header)
        is_short = len(begins) == 2 and fields is not None and len(fields) == rows[1] and size == 4 * counts[0]
        if size != 4 * sum(counts) and not is_short:
            return None
        place, parts = len(header), []
        for each, count in zip(rows[:1] if is_short else rows, counts, strict=False):
            found = np.frombuffer(content, np.float32, count, place)
            part = self._new(each)
            self._library.balancer_step_unpack(self._at, part.address, each, _address(found))
            parts.append(part)
            place += 4 * count
        if is_short and fields is not None:
            parts.append(self._read_part(self._checked(fields), rows[1], 0))
        return StepState(self, parts, position)

    def _header(self, position: int) -> bytes:
        sizes = self._packed.sizes
        named = ("channels", "heads", "layers", "window", "nodes", "history", "histories", "score")
        return _HEADER.pack(MARK, FORMAT, position, *(sizes[name] for name in named))

    def _begins(self, position: int) -> tuple[int, ...]:
        """First rows of the parts of a state after `position` >= 1 rows."""
        if not self._histories:
            return (max(0, position - self._history + 1),)
        number = (position - 1) // self._half
        return (0,) if number == 0 else ((number - 1) * self._half, number * self._half)

    def _new(self, rows: int, begun: int = 0) -> _Part:
        """Return zeros with the room for some rows, of which `begun` count as read."""
        part = _Part(np.zeros(self._library.balancer_step_numbers(self._at, rows), np.float32), rows)
        self._library.balancer_step_begin(self._at, part.address, begun)
        return part

    def _with_room(self, state: StepState) -> list[_Part]:
        """Begin a segment where one begins, and make room for a row."""
        at = state.position
        if self._histories and at and at % self._half == 0:
            state._parts = [state._parts[-1], self._new(0)]
        for part in state._parts:
            rows = part.rows
            if rows % LANES == 0 or rows == self._window:
                needed = self._library.balancer_step_numbers(self._at, rows + 1)
                if needed > len(part.numbers):
                    limit = max(rows + 1, min(int(_GROWTH * rows), self._history))
                    larger = np.zeros(self._library.balancer_step_numbers(self._at, limit), np.float32)
                    larger[: len(part.numbers)] = part.numbers
                    part.hold(larger)
        return state._parts

    def _checked(self, fields: NDArray[np.float32]) -> NDArray[np.float32]:
        if fields.ndim != 2 or fields.shape[1] != self._num_fields:
            raise InputError(f"fields must be (rows, {self._num_fields}) for this model, given {fields.shape}")
        if fields.dtype == np.float32 and fields.flags.c_contiguous and fields.flags.aligned:
            return fields
        return np.ascontiguousarray(fields, np.float32)


def _address(array: NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]  # a quarter of the time of array.ctypes
    return address


def _together(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Copy arrays to one piece of memory, each at a multiple of 64 bytes and with as much after its end.

    Where the system has large pages they are asked for: finding the many small ones in turn took a third of
    the time of a step after other work.
    """
    sizes = {name: -(-array.nbytes // 64) * 64 + 64 for name, array in arrays.items()}
    size = -(-sum(sizes.values()) // _LARGE_PAGE) * _LARGE_PAGE + _LARGE_PAGE
    whole = np.zeros(size, np.uint8)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no large pages
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(memory, np.uint8)
    place, copies = -_address(whole) % _LARGE_PAGE, {}
    for name, array in arrays.items():
        copies[name] = whole[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
        copies[name][...] = array
        place += sizes[name]
    return copies
