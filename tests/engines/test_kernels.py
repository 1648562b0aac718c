"""Kernels in their worker: every source type, shared memory, non-finite values, and the operator's library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.llama.golden import golden_importance, golden_rows
from engines.llama.library import NativeError, find_kernels, find_library
from engines.llama.quantizer import KernelQuantizer, NotFiniteError, open_quantizer

pytestmark = pytest.mark.torch


def rows(count: int, columns: int = 256) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((count, columns), np.float32)


def submitted(quantizer: KernelQuantizer, source: str, raw: NDArray[np.uint8]) -> bytes:
    def fill(view: memoryview) -> None:
        view[:] = np.ascontiguousarray(raw).data.cast("B")

    return bytes(quantizer.submit("Q4_K", source, (raw.shape[0], raw.shape[1]), fill).result())


def test_sixteen_bit_sources_give_the_bytes_of_their_values() -> None:
    values = rows(700, 512)
    halves = values.astype("<f2")
    brains = (np.ascontiguousarray(values).view("<u4") >> np.uint32(16)).astype("<u2")
    wide = (brains.astype("<u4") << np.uint32(16)).view("<f4")
    with KernelQuantizer(2) as quantizer:
        assert (
            submitted(quantizer, "F16", halves.view(np.uint8))
            == quantizer.quantize("Q4_K", halves.astype(np.float32)).tobytes()
        )
        assert submitted(quantizer, "BF16", brains.view(np.uint8)) == quantizer.quantize("Q4_K", wide).tobytes()


def test_threads_and_sizes_do_not_change_a_byte() -> None:
    values = rows(1500)
    with KernelQuantizer(1) as one, KernelQuantizer(3) as three:
        whole = one.quantize("Q6_K", values)
        assert (three.quantize("Q6_K", values) == whole).all()
        parts = [three.quantize("Q6_K", values[start : start + 1 + start % 7 * 50]) for start in (0, 300, 1499)]
        assert all(
            (part == whole[start : start + len(part)]).all() for part, start in zip(parts, (0, 300, 1499), strict=True)
        )
        weights = golden_importance()
        wide = golden_rows()
        assert (one.quantize("IQ2_XS", wide, weights) == three.quantize("IQ2_XS", wide, weights)).all()


def test_many_submitted_at_once_come_back_in_order() -> None:
    values = rows(64 * 9).reshape(9, 64, 256)
    with KernelQuantizer(2) as quantizer:
        expected = [quantizer.quantize("Q8_0", part).tobytes() for part in values]
        futures = []
        for part in values:

            def fill(view: memoryview, part: NDArray[np.float32] = part) -> None:
                view[:] = part.data.cast("B")

            futures.append(quantizer.submit("Q8_0", "F32", (64, 1024), fill))
        assert [bytes(future.result()) for future in futures] == expected


def test_a_non_finite_value_is_reported_and_the_worker_continues() -> None:
    values = rows(600)
    values[599, 255] = np.inf
    with KernelQuantizer(2) as quantizer:
        with pytest.raises(NotFiniteError):
            submitted(quantizer, "F32", values.view(np.uint8))
        with pytest.raises(NativeError, match="not finite"):
            quantizer.quantize("Q4_K", values)
        assert quantizer.quantize("Q4_K", values[:10]).shape == (10, 144)


def test_the_kernels_of_the_operators_build_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "llama.cpp" / "build" / "bin"
    folder.mkdir(parents=True)
    library = folder / "libggml-base.so"
    library.symlink_to(find_library().path)
    assert find_kernels(str(tmp_path / "llama.cpp")) == library
    (folder / "llama-quantize").touch()
    assert find_kernels(str(folder / "llama-quantize")) == library
    monkeypatch.setenv("COCKPIT_LLAMA_CPP", str(tmp_path / "llama.cpp"))
    quantizer, notes = open_quantizer({"Q4_K"}, 1)
    quantizer.close()
    assert (quantizer.record["name"], quantizer.record["path"], notes) == ("ggml", str(library), [])
    assert quantizer.record["version"]
    assert quantizer.record["self_test"] == {"Q4_K": "bytes"}


def test_a_build_that_cannot_be_used_is_named_and_the_pinned_kernels_work(tmp_path: Path) -> None:
    (tmp_path / "libggml-base.so").write_bytes(b"\x7fELF and nothing else")
    quantizer, notes = open_quantizer({"Q4_K"}, 1, "kernels", str(tmp_path))
    quantizer.close()
    assert quantizer.record["name"] == "xllamacpp"
    assert len(notes) == 1
    assert "libggml-base.so cannot be opened" in notes[0]
