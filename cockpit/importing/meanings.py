"""What it means that a key is left out, where several programs have a key for the same thing."""

FULL = (
    "a finetune stage trains an adapter (LoRA); it does not train all weights, frozen parts of them, or other adapters"
)
METHOD_PART = "no stage kind trains from preferences or rewards"
FOUR_BITS = (
    "the base is not quantized: the same adapter over 32-bit weights, with about eight times the memory for them;"
    " a base that is already quantized is refused"
)
EIGHT_BITS = (
    "the base is not quantized: the same adapter over 32-bit weights, with about four times the memory for them"
)
ADAPTER = "the adapter is plain LoRA"
EXTRA_LAYERS = "no whole layers are trained beside the adapter"
PADDING = "rows are not padded in any case, and the loss is the same"
NO_TOKENS = "no tokens are added to the tokenizer"
ROPE = "the model keeps its own positions; longer texts than it was trained on are not scaled"
NO_TRAINING = "the file describes generating text or a comparison, not a training"
GENERATION = "belongs to generating text, not to training"
OTHER_TEMPLATE = "the model's own chat template is used; cockpit rows shows what it writes"
