"""`python -m engines.llama.logits_worker`: tokenize with and score by one GGUF file.

Requests: `{"open": path, "n_ctx", "threads", "adapter": path or null}` → sizes and the library's record; `{"tokenize": text, "parse_special"}` →
`{"ids"}`; `{"logits": ids}` → float32 values, [tokens, vocabulary].
"""

from __future__ import annotations

from typing import Any

from engines.llama.llama_api import LlamaModel
from engines.llama.worker import serve


class _Worker:
    model: LlamaModel

    def __call__(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
        if "open" in header:
            self.model = LlamaModel(header["open"], header["n_ctx"], header["threads"], header["adapter"])
            record = self.model.library.record()
            return {"vocab_size": self.model.vocab_size, "cache_type": self.model.cache_type, "library": record}, b""
        if "tokenize" in header:
            return {"ids": self.model.tokenize(header["tokenize"], header["parse_special"])}, b""
        return {}, self.model.logits(header["logits"]).tobytes()


if __name__ == "__main__":
    serve(_Worker())
