"""The tokenizer stage: SentencePiece BPE, its Hugging Face form, and the proof that both give the same ids."""
