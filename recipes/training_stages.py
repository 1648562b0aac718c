"""The stages that train: pretraining and fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recipes.setting import setting
from recipes.stage_fields import MODEL_OUTPUTS, Guards, StageFields, TrainingRetry

TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class TrainingFields(StageFields):
    """What pretraining and fine-tuning share."""

    max_length: int = setting(
        512, section="Data", ge=8, unit="tokens", help="Sequence length; longer examples are cut and counted."
    )
    per_device_train_batch_size: int = setting(
        8, section="Batch", ge=1, help="Sequences per forward pass on each device."
    )
    gradient_accumulation_steps: int = setting(1, section="Batch", ge=1, help="Forward passes per optimizer step.")
    max_steps: int | None = setting(
        None, section="Schedule", ge=1, help="Optimizer steps in all; overrides num_train_epochs."
    )
    num_train_epochs: float = setting(1.0, section="Schedule", gt=0, help="Passes over the training data.")
    learning_rate: float = setting(2e-4, section="Optim", gt=0, le=1, help="Peak learning rate.")
    lr_scheduler_type: Literal["cosine", "cosine_with_min_lr", "linear", "constant"] = setting(
        "cosine", section="Schedule", help="Shape of the learning rate after warm-up."
    )
    min_lr_rate: float = setting(
        0.1, section="Schedule", ge=0, le=1, help="Final learning rate as a share of the peak, for cosine_with_min_lr."
    )
    warmup_steps: float = setting(0.0, section="Schedule", ge=0, help="Warm-up steps; below 1, a share of all steps.")
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit"] = setting(
        "adamw_torch_fused", section="Optim", help="Optimizer, by transformers' name."
    )
    weight_decay: float = setting(0.0, section="Optim", ge=0, le=1, help="Decoupled weight decay.")
    adam_beta1: float = setting(0.9, section="Optim", ge=0, lt=1, advanced=True, help="Decay of the first moment.")
    adam_beta2: float = setting(0.999, section="Optim", ge=0, lt=1, advanced=True, help="Decay of the second moment.")
    adam_epsilon: float = setting(
        1e-8, section="Optim", gt=0, lt=1, advanced=True, help="Added to the denominator of Adam."
    )
    max_grad_norm: float = setting(1.0, section="Optim", gt=0, help="Gradients are clipped to this L2 norm.")
    bf16: bool = setting(False, section="Precision", help="Compute in bfloat16 under autocast; weights stay float32.")
    gradient_checkpointing: bool = setting(
        False,
        section="Precision",
        help="Recompute activations in the backward pass: less memory, about a fifth slower.",
    )
    seed: int = setting(42, section="Data", ge=0, help="Seed of initialization, data order and dropout.")
    dataloader_num_workers: int = setting(
        0, section="Data", ge=0, le=64, advanced=True, help="Processes that load data."
    )
    save_steps: int = setting(
        100, section="Checkpoints", ge=1, unit="steps", help="A checkpoint every so many steps, and one at the end."
    )
    save_total_limit: int = setting(
        3,
        section="Checkpoints",
        ge=1,
        help="Newest checkpoints that are kept; the best and the newest healthy one stay besides.",
    )
    eval_steps: int | None = setting(
        None, section="Evaluation", ge=1, unit="steps", help="Evaluate on the val split every so many steps."
    )
    eval_max_tokens: int = setting(
        20_000,
        section="Evaluation",
        ge=1,
        unit="tokens",
        help="Tokens of the val split used by an evaluation during training.",
    )
    per_device_eval_batch_size: int = setting(
        8, section="Evaluation", ge=1, help="Sequences per forward pass of an evaluation."
    )
    guards: Guards = setting(default_factory=Guards, section="Guards", help="When the engine stops itself.")
    retry: TrainingRetry = setting(default_factory=TrainingRetry, section="Retry", help="Automatic retries.")


class PretrainStage(TrainingFields):
    """A Llama-type decoder (GQA, SwiGLU, RoPE, RMSNorm) trained from scratch on token shards."""

    kind: Literal["pretrain"] = "pretrain"
    data: str = setting(section="Inputs", accepts=("tokens",), help="The tokens stage; its tokenizer comes with it.")
    hidden_size: int = setting(
        section="Model", ge=8, help="Width of the residual stream; a multiple of 256 quantizes best."
    )
    intermediate_size: int = setting(section="Model", ge=8, help="Width of the SwiGLU feed-forward layer.")
    num_hidden_layers: int = setting(section="Model", ge=1, le=1000, help="Decoder layers.")
    num_attention_heads: int = setting(section="Model", ge=1, help="Query heads; divides hidden_size.")
    num_key_value_heads: int = setting(section="Model", ge=1, help="Key and value heads; divides num_attention_heads.")
    rope_theta: float = setting(10_000.0, section="Model", gt=0, help="Base of the rotary position embedding.")
    rms_norm_eps: float = setting(
        1e-5, section="Model", gt=0, lt=1, advanced=True, help="Added to the variance in RMSNorm."
    )
    tie_word_embeddings: bool = setting(True, section="Model", help="Use one matrix for embedding and output head.")
    attention_dropout: float = setting(
        0.0, section="Model", ge=0, lt=1, help="Dropout on attention weights while training."
    )
    initializer_range: float = setting(
        0.02, section="Model", gt=0, lt=1, advanced=True, help="Standard deviation of the initial weights."
    )
    sample_steps: int | None = setting(
        None, section="Samples", ge=1, unit="steps", help="Generate from sample_prompts every so many steps."
    )
    sample_prompts: list[str] = setting(
        default_factory=lambda: ["def "], section="Samples", help="Prompts for the samples taken while training."
    )
    sample_max_new_tokens: int = setting(40, section="Samples", ge=1, unit="tokens", help="Length of a sample.")

    @model_validator(mode="after")
    def _shapes_fit(self) -> PretrainStage:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size — must be a multiple of num_attention_heads; got {self.hidden_size} and "
                f"{self.num_attention_heads}; allowed: a width that divides evenly"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"num_attention_heads — rotary embedding needs an even head width; got "
                f"{self.hidden_size // self.num_attention_heads}; allowed: hidden_size / num_attention_heads even"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads — must divide num_attention_heads; got {self.num_key_value_heads} and "
                f"{self.num_attention_heads}; allowed: a divisor of {self.num_attention_heads}"
            )
        return self


class FinetuneStage(TrainingFields):
    """LoRA on a model, with its chat template and the loss on answers only."""

    kind: Literal["finetune"] = "finetune"
    model: str = setting(section="Inputs", accepts=MODEL_OUTPUTS, help="A stage's model, a folder, or a hub id.")
    data: str = setting(
        section="Inputs", accepts=("messages",), help="The messages stage, or a folder with train.jsonl."
    )
    r: int = setting(16, section="LoRA", ge=1, help="Rank of the adapter.")
    lora_alpha: float = setting(
        32.0, section="LoRA", gt=0, help="Scale of the adapter; it is multiplied by lora_alpha / r."
    )
    lora_dropout: float = setting(
        0.0, section="LoRA", ge=0, lt=1, help="Dropout on the adapter's input while training."
    )
    use_rslora: bool = setting(False, section="LoRA", advanced=True, help="Scale by lora_alpha / sqrt(r) instead.")
    target_modules: list[TargetModule] = setting(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        section="LoRA",
        min_length=1,
        help="Linear layers that get an adapter.",
    )
