"""`python -m engines.llama.logits_worker`: tokenize, score and generate with one GGUF file.

Requests and their answers:

- `{"open": path, "n_ctx", "threads", "adapter": path or null, "n_batch": number or null}` → `{"vocab_size",
  "cache_type", "library"}`
- `{"tokenize": text, "parse_special", "add_special"}` → `{"ids"}`
- `{"ends": true}` → `{"ids"}`: the tokens that end an answer
- `{"logits": ids}` → float32 values, [tokens, vocab_size]
- `{"last_logits": ids}` → float32 values, [vocab_size]: those after the last token
- `{"losses": ids, "places"}` → float64 values, [places]: negative log likelihoods of the tokens there
- `{"pieces": ids}` → `{"pieces"}`: text and attributes of each token
- `{"text": ids, "special"}` → `{"text"}`: with the names of control tokens, or without control tokens
- `{"marks": true}` → `{"begin", "end"}`: the names of the tokens that begin and end a text
- `{"generate": ids, "limit", "stops", "last_only", "rules"}` → `{"ids", "prompt_s", "generation_s", "rss_bytes"}`
- `{"begin": ids, "rules", "adapter_on"}` → `{}`: an answer to a prompt, whose tokens are drawn by the rules
- `{"feed": ids}` → `{"read"}`: reads the next part of a conversation; see `LlamaModel.feed`
- `{"draw": true}` → `{"id"}`: the token after what was fed
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from engines.llama.drawing import Drawer, DrawRules, likeliest
from engines.llama.llama_api import LlamaModel
from engines.llama.worker import serve


class _Worker:
    model: LlamaModel
    drawer: Drawer
    adapter_on = True

    def __call__(self, header: dict[str, Any], _payload: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
        if "open" in header:
            self.model = LlamaModel(
                header["open"], header["n_ctx"], header["threads"], header["adapter"], header["n_batch"]
            )
            record = self.model.library.record()
            return {"vocab_size": self.model.vocab_size, "cache_type": self.model.cache_type, "library": record}, b""
        if "tokenize" in header:
            ids = self.model.tokenize(header["tokenize"], header["parse_special"], header["add_special"])
            return {"ids": ids}, b""
        if "ends" in header:
            return {"ids": self.model.ends()}, b""
        if "text" in header:
            return {"text": self.model.text(header["text"], special=header["special"])}, b""
        if "marks" in header:
            begin, end = self.model.begin_and_end()
            return {"begin": begin, "end": end}, b""
        if "generate" in header:
            rules = DrawRules(**header["rules"])
            draw = Drawer(rules, header["generate"]).draw if rules.temperature > 0 else likeliest
            ids, prompt_s, generation_s = self.model.generate(
                header["generate"], header["limit"], header["stops"], last_only=header["last_only"], draw=draw
            )
            return {"ids": ids, "prompt_s": prompt_s, "generation_s": generation_s, "rss_bytes": _rss_bytes()}, b""
        if "pieces" in header:
            return {"pieces": [self.model.piece(token) for token in header["pieces"]]}, b""
        if "begin" in header or "feed" in header or "draw" in header:
            return self._drawn(header), b""
        return {}, self._scored(header)

    def _scored(self, header: dict[str, Any]) -> bytes:
        """Numbers of a sequence that is read whole."""
        if "losses" in header:
            return self.model.losses(header["losses"], header["places"]).tobytes()
        if "last_logits" in header:
            return self.model.last_logits(header["last_logits"]).tobytes()
        return self.model.logits(header["logits"]).tobytes()

    def _drawn(self, header: dict[str, Any]) -> dict[str, Any]:
        """An answer that comes token by token."""
        if "begin" in header:
            self.drawer = Drawer(DrawRules(**header["rules"]), header["begin"])
            if header["adapter_on"] != self.adapter_on:
                self.model.use_adapter(on=header["adapter_on"])
                self.adapter_on = header["adapter_on"]
            return {}
        if "feed" in header:
            return {"read": self.model.feed(header["feed"])}
        return {"id": self.drawer.draw(self.model.fed_logits())}


def _rss_bytes() -> int:
    """Resident memory of this process now (proc(5), statm), including weights that are mapped from the file."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    serve(_Worker())
