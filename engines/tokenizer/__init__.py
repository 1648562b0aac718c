"""The tokenizer stage: BPE of SentencePiece or of bytes, and the check that transformers gives the same ids."""
