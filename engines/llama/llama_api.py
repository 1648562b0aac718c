"""llama.cpp's inference interface by ctypes; only the logits worker imports it.

Parameter structs are opaque: the library fills in its defaults, and this module sets only fields with a known offset.
It sets the cache's type and flash attention only if the defaults around them equal those of the tested version.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import time
from collections.abc import Callable, Container, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.llama.drawing import likeliest
from engines.llama.library import NativeError, find_library, open_library

_N_CTX, _N_BATCH, _N_UBATCH, _THREADS, _FLASH, _TYPE_K = 0, 4, 8, 28, 52, 104
_F32 = 0
_PIECE_BYTES = 64 * 1024 * 1024
"""Logits of a sequence whose losses are computed, at once."""


_ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR."""
_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_errors: list[str] = []
"""The first error that the library reported, for the message about the call that failed; later ones only repeat it."""


@_Log
def _keep_errors(level: int, text: bytes | None, _user: object) -> None:
    """The library's log: to stderr as by default, where the other side finds it after a crash."""
    line = (text or b"").decode(errors="replace")
    sys.stderr.write(line)
    sys.stderr.flush()
    if level == _ERROR_LEVEL and line.strip() and not _errors:
        shown = "".join(char if char.isprintable() else "?" for char in " ".join(line.split()))
        _errors.append(shown[:500])


def _because() -> str:
    """`: ` and what the library said about the call that failed; empty if it said nothing."""
    return f": {_errors[0]}" if _errors else ""


class _Opaque(ctypes.Structure):
    """Larger than any parameter struct; the ABI returns it through a hidden pointer and passes it in memory."""

    _fields_ = [("raw", ctypes.c_uint8 * 1024)]


class _Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Opaque, []),
    "llama_context_default_params": (_Opaque, []),
    "llama_model_load_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _Opaque]),
    "llama_init_from_model": (ctypes.c_void_p, [ctypes.c_void_p, _Opaque]),
    "llama_model_get_vocab": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_vocab_n_tokens": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_vocab_is_eog": (ctypes.c_bool, [ctypes.c_void_p, ctypes.c_int32]),
    "llama_n_ctx": (ctypes.c_uint32, [ctypes.c_void_p]),
    "llama_set_n_threads": (None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]),
    "llama_get_memory": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_memory_clear": (None, [ctypes.c_void_p, ctypes.c_bool]),
    "llama_memory_seq_rm": (ctypes.c_bool, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
    "llama_batch_init": (_Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
    "llama_decode": (ctypes.c_int32, [ctypes.c_void_p, _Batch]),
    "llama_vocab_get_text": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int32]),
    "llama_vocab_get_attr": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "llama_vocab_bos": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_vocab_eos": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_detokenize": (
        ctypes.c_int32,
        [
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ],
    ),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p, ctypes.c_int32]),
    "llama_tokenize": (
        ctypes.c_int32,
        [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ],
    ),
}


class LlamaModel:
    """A loaded GGUF file with its context."""

    def __init__(
        self, path: str, n_ctx: int, threads: int, adapter: str | None = None, n_batch: int | None = None
    ) -> None:
        """Load the model.

        Args:
            path: the GGUF file.
            n_ctx: longest sequence, in tokens.
            threads: CPU threads of a decode.
            adapter: a GGUF adapter to apply.
            n_batch: most tokens of a decode, for which the library reserves memory; None for `n_ctx`.

        Raises:
            NativeError: the library refuses the file or the context.
        """
        self.library = find_library()
        self._native = open_library(self.library)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._native, name)
            function.restype, function.argtypes = result, arguments
        if hasattr(self._native, "llama_log_set"):
            self._native.llama_log_set(_keep_errors, None)
        self._native.llama_backend_init()
        self._model = self._native.llama_model_load_from_file(path.encode(), self._native.llama_model_default_params())
        if not self._model:
            raise NativeError(f"llama.cpp cannot load {path}{_because()}")
        self._vocab = self._native.llama_model_get_vocab(self._model)
        self.vocab_size = int(self._native.llama_vocab_n_tokens(self._vocab))
        self.n_ctx, self.n_batch = n_ctx, n_batch or n_ctx
        parameters = self._native.llama_context_default_params()
        self.cache_type = _set_context(parameters, n_ctx, self.n_batch, threads)
        self._context = self._native.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise NativeError(f"llama.cpp cannot create a context of {n_ctx} tokens for {path}{_because()}")
        self._native.llama_set_n_threads(self._context, threads, threads)
        self._adapter: int | None = None
        if adapter is not None:
            self._load_adapter(adapter)
            self.use_adapter(on=True)
        self._batch = self._native.llama_batch_init(self.n_batch, 0, 1)
        self._cached: list[int] = []
        """the tokens whose keys and values are in the cache, after `feed`"""
        self._fed = 0

    def _load_adapter(self, adapter: str) -> None:
        pointer, floats = ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)
        try:
            load, apply = self._native.llama_adapter_lora_init, self._native.llama_set_adapters_lora
        except AttributeError as error:
            raise NativeError(f"{self.library.path} cannot apply adapters: {error}") from error
        load.restype, load.argtypes = pointer, [pointer, ctypes.c_char_p]
        apply.restype, apply.argtypes = ctypes.c_int32, [pointer, ctypes.POINTER(pointer), ctypes.c_size_t, floats]
        found = load(self._model, adapter.encode())
        if not found:
            raise NativeError(f"llama.cpp cannot load adapter {adapter} for this model{_because()}")
        self._adapter = found

    def use_adapter(self, *, on: bool) -> None:
        """Apply the LoRA adapter with scale 1, or no adapter; without an adapter nothing changes.

        What the cache has was computed with the other weights, so it is emptied.
        """
        if self._adapter is None:
            return
        self._cached = []
        given = (ctypes.c_void_p * 1)(self._adapter), 1, (ctypes.c_float * 1)(1.0)
        status = self._native.llama_set_adapters_lora(self._context, *(given if on else (None, 0, None)))
        if status:
            raise NativeError(f"llama_set_adapters_lora returned {status}")

    def feed(self, ids: Sequence[int]) -> int:
        """Read the next tokens of a conversation, behind those at its beginning that a feed before has read.

        Args:
            ids: the whole conversation, not empty.

        Returns:
            How many of `ids` are read now: at most `n_batch` more than before.

        Raises:
            NativeError: the conversation does not fit the context, has an id outside the vocabulary, or decoding fails.
        """
        if not 0 < len(ids) <= self.n_ctx:
            raise NativeError(f"{len(ids)} tokens do not fit a context of {self.n_ctx}")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise NativeError(f"a token id is outside the vocabulary of {self.vocab_size}")
        memory = self._native.llama_get_memory(self._context)
        same = min(len(self._cached), len(ids) - 1)
        same = next((at for at in range(same) if ids[at] != self._cached[at]), same)
        if same < len(self._cached) and not self._native.llama_memory_seq_rm(memory, 0, same, -1):
            same = 0  # a model that carries a state cannot forget its last tokens alone
        if same == 0:
            self._forget()
        self._cached = list(ids[:same])
        part = list(ids[same : same + self.n_batch])
        self._decode(part, same, last_only=True)
        self._cached += part
        self._fed = len(part)
        return len(self._cached)

    def _forget(self) -> None:
        """Empty the cache."""
        self._native.llama_memory_clear(self._native.llama_get_memory(self._context), True)
        self._cached = []

    def fed_logits(self) -> NDArray[np.float32]:
        """Logits after the last token of the last `feed`, float32 [vocab_size]; valid until the next one."""
        return self._logits_of(self._fed - 1)

    def ends(self) -> list[int]:
        """Every token at which llama.cpp ends an answer, in order."""
        return [token for token in range(self.vocab_size) if self._native.llama_vocab_is_eog(self._vocab, token)]

    def tokenize(self, text: str, parse_special: bool, add_special: bool) -> list[int]:
        """Ids of a text.

        Args:
            text: any text.
            parse_special: read the names of control tokens in the text as control tokens.
            add_special: add the begin and end tokens that the file asks for.
        """
        data = text.encode()
        room = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self._native.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def text(self, ids: Sequence[int], *, special: bool) -> str:
        """Text of ids; `special`: with the names of control tokens. Bytes that are not UTF-8 become U+FFFD."""
        given = (ctypes.c_int32 * len(ids))(*ids)
        room = 16 * len(ids) + 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._native.llama_detokenize(self._vocab, given, len(ids), buffer, room, False, special)
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", errors="replace")
            room = -count

    def begin_and_end(self) -> tuple[str, str]:
        """The names of the tokens that begin and end a text; empty for a token that the file does not have."""
        tokens = (self._native.llama_vocab_bos(self._vocab), self._native.llama_vocab_eos(self._vocab))
        begin, end = (self.text([token], special=True) if token >= 0 else "" for token in tokens)
        return begin, end

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token of one sequence, from an empty cache, float32 [tokens, vocab_size].

        Raises:
            NativeError: the sequence is empty or longer than the context, has an id outside the vocabulary, or decoding
                fails.
        """
        count = len(ids)
        self._begin(ids)
        self._decode(ids, 0)
        out = np.empty((count, self.vocab_size), np.float32)
        for index in range(count):
            out[index] = self._logits_of(index)
        return out

    def last_logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after the last token of one sequence, from an empty cache, float32 [vocab_size].

        Raises:
            NativeError: as for `logits`.
        """
        self._begin(ids)
        self._decode(ids, 0, last_only=True)
        return self._logits_of(len(ids) - 1).copy()

    def losses(self, ids: Sequence[int], places: Sequence[int]) -> NDArray[np.float64]:
        """Negative log likelihoods of the tokens at `places` (ascending, at least 1) of one sequence, float64 [places].

        The sequence is computed in pieces, so that the logits of a long one do not fill the memory.

        Raises:
            NativeError: as for `logits`, or a place is outside the sequence.
        """
        self._begin(ids)
        if not all(0 < place < len(ids) for place in places):
            raise NativeError(f"a place is outside the sequence of {len(ids)} tokens")
        found, step = [], max(1, _PIECE_BYTES // (4 * self.vocab_size))
        wanted = iter([*places, len(ids) + 1])
        place = next(wanted)
        for start in range(0, max(places, default=0), step):
            piece = ids[start : start + step]
            here = []
            while place - 1 < start + len(piece):
                here.append(place)
                place = next(wanted)
            self._decode(piece, start, wanted={at - 1 - start for at in here})
            found += [_loss(self._logits_of(at - 1 - start), ids[at]) for at in here]
        return np.asarray(found, np.float64)

    def piece(self, token: int) -> tuple[str, int]:
        """The text of a token as the vocabulary has it, and its attributes.

        Raises:
            NativeError: the token is outside the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise NativeError(f"token {token} is outside the vocabulary of {self.vocab_size}")
        text: bytes | None = self._native.llama_vocab_get_text(self._vocab, token)
        return (text or b"").decode(errors="replace"), int(self._native.llama_vocab_get_attr(self._vocab, token))

    def _begin(self, ids: Sequence[int]) -> None:
        """Empty the cache for a sequence.

        Raises:
            NativeError: it is empty or longer than the context, or has an id outside the vocabulary.
        """
        if not 0 < len(ids) <= self.n_ctx:
            raise NativeError(f"{len(ids)} tokens do not fit a context of {self.n_ctx}")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise NativeError(f"a token id is outside the vocabulary of {self.vocab_size}")
        self._forget()

    def generate(
        self,
        ids: Sequence[int],
        limit: int,
        stops: Sequence[int],
        *,
        last_only: bool = False,
        draw: Callable[[NDArray[np.float32]], int] = likeliest,
    ) -> tuple[list[int], float, float]:
        """Continuation of a sequence, token by token as in a server; greedy by default.

        Args:
            ids: the prompt.
            limit: most tokens to generate.
            stops: tokens that end the answer; the answer includes the one that ended it.
            last_only: compute the prompt's logits after its last token only, as a server does: less time and memory.
            draw: the next token from its logits.

        Returns:
            The new ids, seconds for the prompt, and seconds for the new tokens.

        Raises:
            NativeError: the prompt is empty, prompt and answer do not fit the context, or decoding fails.
        """
        if not len(ids) > 0 or len(ids) + limit > self.n_ctx:
            raise NativeError(f"{len(ids)} prompt tokens and {limit} new ones do not fit a context of {self.n_ctx}")
        self._forget()
        started_s = time.perf_counter()
        self._decode(ids, 0, last_only=last_only)
        token = draw(self._logits_of(len(ids) - 1))
        prompt_s = time.perf_counter() - started_s
        new = [token]
        started_s = time.perf_counter()
        while len(new) < limit and token not in stops:
            self._decode([token], len(ids) + len(new) - 1)
            token = draw(self._logits_of(0))
            new.append(token)
        return new, prompt_s, time.perf_counter() - started_s

    def _decode(
        self, ids: Sequence[int], start: int, *, last_only: bool = False, wanted: Container[int] | None = None
    ) -> None:
        """Compute tokens from place `start` of the sequence on; logits of all, of the last one, or of those in
        `wanted`, which are counted from `start`."""
        batch = self._batch
        if last_only:
            wanted = (len(ids) - 1,)
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, start + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = wanted is None or index in wanted
        status = self._native.llama_decode(self._context, batch)
        if status:
            raise NativeError(f"llama_decode returned {status}")

    def _logits_of(self, index: int) -> NDArray[np.float32]:
        """Logits after one token of the last batch, float32 [vocab_size], in llama.cpp's memory; valid until the next
        batch."""
        row: NDArray[np.float32] = np.ctypeslib.as_array(
            self._native.llama_get_logits_ith(self._context, index), (self.vocab_size,)
        )
        return row


def _loss(logits: NDArray[np.float32], token: int) -> float:
    """Negative log likelihood of a token, in nats; the log-softmax is float64."""
    values = logits.astype(np.float64)
    highest = values.max()
    return float(highest + np.log(np.exp(values - highest).sum()) - values[token])


def _set_context(parameters: _Opaque, n_ctx: int, n_batch: int, threads: int) -> str:
    """Set the fields with known offsets; returns the cache's type. With a known layout the cache is float32 and
    attention exact."""
    raw = bytes(parameters.raw)
    known = (
        struct.unpack_from("<4I", raw, 0) == (512, 2048, 512, 1)
        and struct.unpack_from("<4i", raw, 40) == (-1, -1, -1, -1)
        and struct.unpack_from("<2i", raw, _TYPE_K) == (1, 1)
        and struct.unpack_from("<2Q", raw, 88) == (0, 0)
    )
    for place, value in ((_N_CTX, n_ctx), (_N_BATCH, n_batch), (_N_UBATCH, n_batch)):
        struct.pack_into("<I", parameters.raw, place, value)
    if not known:
        return "f16"
    struct.pack_into("<2i", parameters.raw, _THREADS, threads, threads)
    struct.pack_into("<i", parameters.raw, _FLASH, 0)
    struct.pack_into("<2i", parameters.raw, _TYPE_K, _F32, _F32)
    return "f32"
