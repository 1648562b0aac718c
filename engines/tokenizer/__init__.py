"""The tokenizer stage: SentencePiece BPE, its Hugging Face form, and the check that both give the same ids."""
