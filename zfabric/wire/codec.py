"""Values and MessagePack: what users publish, checked where it is published, and what they receive.

One `Codec` belongs to one publisher or subscription. Plain values are encoded and decoded by msgspec alone, with
no Python code per message. What needs more:

- Large bytes at the top level, and large numpy arrays anywhere, travel *out of band*: as ZeroMQ frames of their
  own, without a copy where nobody can change them. The body holds extension 1 (bytes) or 2 (array) with the number
  of the frame, counted from 0 within the batch. Every frame is used once, in the order of the body; a body that
  says otherwise is forged (it would let a small frame name a large one a million times).
- Smaller arrays stand in the payload of extension 2, which is `[dtype, shape, bytes | frame number]`.
- With a `type`, a value is decoded right after it was encoded, by the decoder that subscribers of the same type
  use, because neither dataclasses nor Structs check their fields when they are made.

`msgspec.Raw` is sent as it stands: at the top level it is checked to be one MessagePack value, inside of another
value of an untyped topic nobody looks at it.

What comes back: bytes are `bytes` whatever their size, at the cost of one copy if they travelled out of band. A
topic typed as `bytearray` or `memoryview` gives that type, and `memoryview` the frame itself. Arrays are read-only and
share the frame. Typed as `msgspec.Raw`, values stay encoded, and what travelled out of band is put back into them.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, NoReturn, TypeAlias

import msgspec
from msgspec.msgpack import Decoder, Encoder, Ext

from zfabric.errors import DecodeFailed, EncodeFailed
from zfabric.wire.snapshots import Snapshots

__all__ = ["SPECIAL_TYPES", "Codec"]

Buffer: TypeAlias = bytes | bytearray | memoryview

EXT_BYTES: Final = 1
EXT_ARRAY: Final = 2

SPECIAL_TYPES: Final = frozenset({bytes, bytearray, memoryview, msgspec.Raw, Ext})
"Values of these exact types need `Codec.encode_into`; all others may use `Codec.encode_plain`."

_BASE_TYPES: tuple[Any, ...] = (float, int, bytes, bytearray)
_DIMENSIONS_MAX = 32
_EMPTY_ARRAY_BYTES_MAX = 64 * 1024 * 1024
_CODE_POINT_MAX = 0x10FFFF
_is_plain_dtype = re.compile(
    r"\|(?:b1|[iu]1|S[1-9][0-9]{0,8})"
    r"|[<>](?:[iu][248]|f[248]|c8|c16|U[1-9][0-9]{0,7}"
    r"|[mM]8(?:\[(?:[1-9][0-9]{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
).fullmatch

_Index = Annotated[int, msgspec.Meta(ge=0)]


class _Array(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The payload of extension 2."""

    dtype: str
    shape: tuple[_Index, ...]
    data: _Index | bytes


_type = type
_UNCHECKED: Final = frozenset({msgspec.Raw, Ext})
_EXACT: Final = frozenset({bytes, str, int, float, bool})
"A value of these exact types needs no other check against a type that is the same."
_encode = Encoder().encode
_decode_index = Decoder(_Index).decode
_decode_array = Decoder(_Array).decode
_decode_raw = Decoder(msgspec.Raw).decode
_split = Decoder(list[msgspec.Raw]).decode


class Codec:
    """Encodes and decodes the values of one topic; `type` is anything that msgspec can check.

    Raises TypeError for a type that msgspec does not support. Not for several threads at once.

    Bytes out of band are appended to `buffers`: set it to the list of the open batch before the batch's first value.
    """

    __slots__ = (
        "_decode_blobs",
        "_decode_each",
        "_decode_framed",
        "_decode_inline",
        "_decode_many",
        "_direct",
        "_encode",
        "_frames",
        "_next_frame",
        "_together",
        "buffers",
        "encode_plain",
        "inline_bytes",
        "snapshots",
        "type",
    )

    encode_plain: Callable[[Any, bytearray, int], None] | None
    """msgspec's own `encode_into(value, buffer, -1)` for hot loops, None if the codec is typed: then values must be
    checked. Values of SPECIAL_TYPES must not use it (bytes shorter than `inline_bytes` may), and an exception must be
    passed to `fail()`."""

    def __init__(self, type: Any = None, *, inline_bytes: int) -> None:  # noqa: A002 - as in the public API
        self.type = Any if type is None else type
        self.inline_bytes = inline_bytes
        self.buffers: list[Buffer] = []
        self._frames: Sequence[Buffer] = ()
        self._next_frame = 0
        self._together = False
        self.snapshots = Snapshots()
        encoder = Encoder(enc_hook=self._encode_other)
        self._encode = encoder.encode
        self.encode_plain = encoder.encode_into if self.type is Any else None
        self._direct = _EXACT if self.type is Any else _EXACT & {self.type}
        if inline_bytes < sys.maxsize:
            self._direct -= {bytes}
        self._decode_many = self._decoder(list[self.type])  # type: ignore[name-defined] # a type made at run time
        self._decode_each = self._decoder(self.type)
        self._decode_blobs = self._decoder(self.type | Ext) if _holds_blobs(self.type) else None
        self._decode_inline = Decoder(ext_hook=self._inline_extension).decode
        self._decode_framed: Callable[[Any], Any] | None = None
        if self._decode_blobs is not None:
            self._decode_framed = self._decode_blob
        elif self.type is msgspec.Raw:
            self._decode_framed = self._decode_whole

    def _decoder(self, expected: Any) -> Callable[[Buffer], Any]:
        """A bound decode method: one C call for each body."""
        return Decoder(expected, ext_hook=self._decode_extension, dec_hook=_check_custom).decode

    def __repr__(self) -> str:
        return f"Codec({getattr(self.type, '__name__', self.type)!s}, inline_bytes={self.inline_bytes})"

    # -- encoding ------------------------------------------------------------------------------

    def encode_into(self, value: Any, buffer: bytearray) -> None:
        """Append one value to `buffer`, and what travels out of band to `buffers`.

        Raises EncodeFailed without a topic, which the caller fills in; then nothing was appended.
        """
        length, frames = len(buffer), len(self.buffers)
        try:
            kind = value.__class__
            if kind in SPECIAL_TYPES and (kind is not bytes or len(value) >= self.inline_bytes):
                value = self._prepare_special(value)
                if value.__class__ is Ext:
                    buffer += _encode(value)
                    return
            if self.encode_plain is not None:
                self.encode_plain(value, buffer, -1)
            else:
                data = self._encode(value)
                self._check(data)
                buffer += data
        except BaseException as error:  # noqa: BLE001 - it is raised again
            self.fail(error, buffer, length, frames)

    def encode(self, value: Any) -> bytes:
        """One value by itself; nothing of it may travel out of band. Raises EncodeFailed without a topic."""
        kind = value.__class__
        if kind in self._direct or (self.encode_plain is not None and kind not in SPECIAL_TYPES):
            encode = self._encode
            try:
                return encode(value)
            except BaseException as error:  # noqa: BLE001 - it is raised again
                self.fail(error, bytearray(), 0, 0)
        buffer = bytearray()
        self.encode_into(value, buffer)
        return bytes(buffer)

    def encode_many(self, values: list[Any], buffer: bytearray) -> bool:
        """Append many values in one call. False, with nothing appended, if they must be encoded one by one.

        That is so if one of them does not encode, or may have to travel out of band.
        """
        if not _UNCHECKED.isdisjoint(map(_type, values)):
            return False
        self._together = True
        try:
            data = self._encode(values)
            if self.encode_plain is None:
                self._decode_many(data)
        except Exception:  # noqa: BLE001 - one by one, the culprit is found and reported
            data = b""
        finally:
            self._together = False
        if not data or len(data) >= self.inline_bytes:
            return False
        buffer += memoryview(data)[1 if len(values) < 16 else 3 if len(values) < 65_536 else 5 :]
        return True

    def fail(self, error: BaseException, buffer: bytearray, length: int, frames: int, topic: str = "") -> NoReturn:
        """Undo a failed encoding and raise EncodeFailed, or `error` again if no value is to blame for it.

        `length` and `frames` are the lengths of `buffer` and `buffers` before it. msgspec leaves the bytes that it
        had written, and uninitialised memory behind them, so you must call this before the buffer is used again.
        """
        del buffer[length:]
        del self.buffers[frames:]
        if not isinstance(error, Exception) or isinstance(error, MemoryError):
            raise error
        raise EncodeFailed(topic, _reason(error)) from error

    def _check(self, data: bytes) -> None:
        """Decode an encoded value of a typed topic as its subscribers will."""
        if not self.buffers:
            self._decode_each(data)
            return
        self._frames, self._next_frame = self.buffers, 0
        try:
            self._decode_each(data)
        finally:
            self._frames = ()

    def _prepare_special(self, value: Any) -> Any:
        """What to encode in place of a value that msgspec would copy into the body unseen: Ext if out of band."""
        if isinstance(value, msgspec.Raw):
            _decode_raw(value)
            return value
        if isinstance(value, Ext):
            if value.code in (EXT_BYTES, EXT_ARRAY):
                raise TypeError(f"extension {value.code} is the fabric's own; use a code from 3 to 127")
            return value if self.type is Any else msgspec.convert(value, self.type)
        size = value.nbytes if isinstance(value, memoryview) else len(value)
        if size < self.inline_bytes:
            return value.tobytes() if isinstance(value, memoryview) else value
        if self.type is not Any:
            msgspec.convert(value, self.type, dec_hook=_check_custom)
        if isinstance(value, memoryview):
            frame = value.cast("B") if _is_frozen_view(value) else value.tobytes()
        else:
            frame = bytes(value)  # the same object if it is bytes, else the one copy
        room = self.snapshots.room(size)
        if room is not None:
            room[:] = frame
            frame = room.toreadonly()
        self.buffers.append(frame)
        return Ext(EXT_BYTES, _encode(len(self.buffers) - 1))

    def _encode_other(self, value: Any) -> Any:
        """Called by msgspec for everything that it does not know; returns what it knows."""
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._encode_array(numpy, value)
        if isinstance(value, str):
            return str.__str__(value)  # str(value) might be anything that a subclass likes
        for base in _BASE_TYPES:
            if isinstance(value, base):
                return base(value)
        if numpy is not None and isinstance(value, numpy.generic):
            plain = value.item()
            if isinstance(plain, bool | int | float) and value.dtype.kind in "biuf":
                return plain
            raise TypeError(f"numpy.{type(value).__name__} has no plain form; send a numpy array, or convert it")
        name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"objects of type {name} cannot travel; send a dict, dataclass or msgspec.Struct")

    def _encode_array(self, numpy: Any, array: Any) -> Ext:
        """An array as extension 2, inline or out of band."""
        if type(array) is not numpy.ndarray and not isinstance(array, numpy.memmap):
            raise TypeError(f"{type(array).__name__} would lose what it adds to an array; send numpy.asarray(value)")
        dtype = array.dtype.str
        if array.dtype.hasobject or not _is_plain_dtype(dtype):
            raise TypeError(
                f"arrays of dtype {array.dtype} cannot travel; use numbers, bool, datetime64 or fixed-width text, "
                "or send the columns as a dict"
            )
        _array_bytes(array.shape, array.dtype.itemsize)
        data: int | bytes
        if array.nbytes < self.inline_bytes:
            data = array.tobytes()
        elif self._together:
            raise ValueError("an array travels out of band")
        else:
            data = len(self.buffers)
            frozen = array.flags.c_contiguous and _is_frozen_array(numpy, array)
            frame = self.snapshots.take(numpy, array, frozen=frozen)
            self.buffers.append(memoryview(frame).toreadonly())
        return Ext(EXT_ARRAY, _encode((dtype, array.shape, data)))

    # -- decoding ------------------------------------------------------------------------------

    def decode(self, body: Buffer | msgspec.Raw) -> Any:
        """One value by itself. Raises DecodeFailed."""
        decode = self._decode_each
        try:
            return decode(body)
        except Exception as error:  # types of users run code here, too
            raise _decode_failed(error) from error

    def decode_many(self, body: Buffer, buffers: Sequence[Buffer] = ()) -> list[Any]:
        """All values of a batch's body. Raises DecodeFailed if any is bad; then `decode_each` finds the good ones."""
        try:
            if not buffers:
                return self._decode_many(body)  # type: ignore[no-any-return]
            self._frames, self._next_frame = buffers, 0
            try:
                if self._decode_framed is not None:
                    return [self._decode_framed(raw) for raw in _split(body)]
                return self._decode_many(body)  # type: ignore[no-any-return]
            finally:
                self._frames = ()
        except Exception as error:  # types of users run code here, too
            raise _decode_failed(error) from error

    def decode_each(self, body: Buffer, buffers: Sequence[Buffer] = ()) -> Iterator[tuple[int, Any]]:
        """Position and value of each message in turn, with DecodeFailed in place of each bad one.

        Raises DecodeFailed at the call if not even the borders of the messages can be found.
        """
        try:
            raws = _split(body)
        except Exception as error:
            raise _decode_failed(error) from error
        return self._each(raws, buffers)

    def _each(self, raws: list[msgspec.Raw], buffers: Sequence[Buffer]) -> Iterator[tuple[int, Any]]:
        next_frame = 0
        decode = self._decode_each if self._decode_framed is None else self._decode_framed
        for index, raw in enumerate(raws):
            self._frames, self._next_frame = buffers, next_frame
            value: Any
            try:
                value = decode(raw)
            except Exception as error:  # noqa: BLE001 - one bad message must not hide the others
                value = _decode_failed(error)
            finally:
                next_frame = self._next_frame
                self._frames = ()
            yield index, value

    def _decode_blob(self, raw: Any) -> Any:
        """One message of a topic whose type includes bytes: msgspec takes no extension for those by itself."""
        assert self._decode_blobs is not None
        value = self._decode_blobs(raw)
        if value.__class__ is not Ext:
            return value
        if value.code == EXT_BYTES:
            return msgspec.convert(self._take_frame(_decode_index(value.data)), self.type)
        return self._decode_each(raw)

    def _decode_whole(self, raw: Any) -> msgspec.Raw:
        """One message that stays encoded: it must hold what it refers to, because the frames do not stay with it."""
        return msgspec.Raw(_encode(self._decode_inline(raw)))

    def _inline_extension(self, code: int, data: memoryview) -> Any:
        """An extension with its frame inside."""
        if code == EXT_BYTES:
            return bytes(self._take_frame(_decode_index(data)))
        if code == EXT_ARRAY:
            header = _decode_array(data)
            if not isinstance(header.data, bytes):
                return Ext(code, _encode((header.dtype, header.shape, bytes(self._take_frame(header.data)))))
        return Ext(code, bytes(data))

    def _take_frame(self, index: int) -> bytes | memoryview:
        """The frame that a body names, as something that cannot be written to."""
        if not self._next_frame <= index < len(self._frames):
            raise ValueError(f"frame {index} of {len(self._frames)} is missing or was used before")
        self._next_frame = index + 1
        frame = self._frames[index]
        return frame if isinstance(frame, bytes) else memoryview(frame).cast("B").toreadonly()

    def _decode_extension(self, code: int, data: memoryview) -> Any:
        """Called by msgspec for every extension but timestamps."""
        if code == EXT_BYTES:
            return bytes(self._take_frame(_decode_index(data)))
        if code != EXT_ARRAY:
            return Ext(code, bytes(data))
        header = _decode_array(data)
        numpy = _import_numpy()
        dtype = _dtype(numpy, header.dtype)
        content = header.data if isinstance(header.data, bytes) else self._take_frame(header.data)
        size = _array_bytes(header.shape, dtype.itemsize)
        if size != len(content):
            raise ValueError(f"array of {size} bytes ({header.dtype}, shape {header.shape}) has {len(content)}")
        array = numpy.ndarray(header.shape, dtype, content)
        _check_items(numpy, array, content)
        return array


def _array_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """The size of an array; raises ValueError for a shape that numpy, or a sum over it, might choke on."""
    if len(shape) > _DIMENSIONS_MAX:
        raise ValueError(f"arrays have at most {_DIMENSIONS_MAX} dimensions, not {len(shape)}")
    size = math.prod(shape) * itemsize
    if size == 0 and math.prod(extent or 1 for extent in shape) * itemsize > _EMPTY_ARRAY_BYTES_MAX:
        raise ValueError(f"empty array with the huge shape {shape}")
    return size


def _check_items(numpy: Any, array: Any, content: Buffer) -> None:
    """Refuse items that numpy assumes nobody can make: bools beyond 1, characters beyond Unicode."""
    kind = array.dtype.kind
    if kind == "b" and array.size and numpy.frombuffer(content, numpy.uint8).max() > 1:
        raise ValueError("array of bool with items other than 0 and 1")
    if kind == "U" and array.size:
        characters = numpy.frombuffer(content, numpy.dtype(numpy.uint32).newbyteorder(array.dtype.byteorder))
        if characters.max() > _CODE_POINT_MAX:
            raise ValueError("array of text with characters that Unicode does not have")


@lru_cache(maxsize=256)
def _dtype(numpy: Any, text: str) -> Any:
    """The numpy dtype of that name, if it is a plain one."""
    if not _is_plain_dtype(text):
        raise ValueError(f"array of dtype {text[:40]!r}, which is not a plain one")
    return numpy.dtype(text)


def _import_numpy() -> Any:
    """The numpy module, which is imported only when the first array arrives."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        return numpy
    try:
        return importlib.import_module("numpy")
    except ImportError:
        raise DecodeFailed("the value holds a numpy array and numpy is not installed: pip install numpy") from None


def _is_frozen_view(view: memoryview) -> bool:
    """Whether nobody can change what a memoryview shows: only bytes never change."""
    return type(view.obj) is bytes and view.c_contiguous


def _is_frozen_array(numpy: Any, array: Any) -> bool:
    """Whether nobody can change an array, also not through what it is a view of."""
    while type(array) is numpy.ndarray:
        if array.flags.writeable:
            return False
        if array.base is None:
            return bool(array.flags.owndata)
        array = array.base
    return type(array) is bytes or (isinstance(array, memoryview) and _is_frozen_view(array))


def _holds_blobs(expected: Any) -> bool:
    """Whether values of this type may be bytes at the top level."""
    info: Any = msgspec.inspect.type_info(expected)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    kinds = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    blobs = (msgspec.inspect.BytesType, msgspec.inspect.ByteArrayType, msgspec.inspect.MemoryViewType)
    return any(isinstance(kind, blobs) for kind in kinds)


def _check_custom(expected: Any, value: Any) -> Any:
    """Called by msgspec for types that it does not know; it checks the class itself, and we the dtype of an array."""
    scalar = _scalar_type(expected)
    if scalar is not None and hasattr(value, "dtype") and not issubclass(value.dtype.type, scalar):
        raise ValueError(f"Expected an array of `{scalar.__name__}`, got `{value.dtype}`")
    return value


@lru_cache(maxsize=256)
def _scalar_type(expected: Any) -> type | None:
    """`numpy.float64` for `NDArray[numpy.float64]`; None where the annotation does not tell."""
    numpy = sys.modules.get("numpy")
    if numpy is None or typing.get_origin(expected) is not numpy.ndarray:
        return None
    scalar = typing.get_args(typing.get_args(expected)[-1])
    return scalar[0] if scalar and isinstance(scalar[0], type) else None


def _reason(error: Exception) -> str:
    """Why a value cannot be encoded, and the cure."""
    if isinstance(error, EncodeFailed):
        return error.reason
    if isinstance(error, RecursionError):
        return "it contains itself or is nested too deeply; send a flatter value"
    if isinstance(error, UnicodeEncodeError):
        return f"text with lone surrogates is not UTF-8 ({error.reason}); send bytes, or repair the text"
    if isinstance(error, OverflowError) and "int" in str(error):
        return f"{error}; send larger numbers as text"
    if isinstance(error, TypeError | ValueError | msgspec.MsgspecError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _decode_failed(error: Exception) -> DecodeFailed:
    """Translate whatever a payload made the decoder raise."""
    if isinstance(error, DecodeFailed):
        return error
    if isinstance(error, RecursionError):
        return DecodeFailed("the payload is nested too deeply")
    if isinstance(error, msgspec.MsgspecError | ValueError):
        return DecodeFailed(f"bad payload: {error}")
    return DecodeFailed(f"bad payload: {type(error).__name__}: {error}")
