"""Pre-training of `tiny-reviews` on raw text: a byte-level tokenizer (BPE) and a small GPT-2.

    loss = -mean_t log p(x_t | x_<t)        over packed blocks of text, documents ended by EOS

After an interruption it resumes from its last checkpoint, to the same result on the same machine
with the same number of threads.
"""

import math
import time
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.models.adapters import Policy
from minirlhf.models.forward import device_of
from minirlhf.runtime import History, OnStep, check, check_seed, device_named, seed_all

EOS = "<|endoftext|>"


@dataclass(frozen=True)
class PretrainConfig:
    """Size of the model and of the run. tokens = steps * batch_size * block."""

    n_layer: int = 4  # 2..8
    n_embd: int = 256  # 64..512
    n_head: int = 4
    vocab_size: int = 4096  # 512..8192
    block: int = 128  # tokens per block, and the model's context
    batch_size: int = 8  # blocks per step; small, so that 0.9 M tokens of data give many steps
    steps: int = 12000
    lr: float = 3e-3  # peak learning rate of AdamW: embeddings, biases, norms
    # Peak learning rate of Muon: the matrices of the layers. It needs about half of AdamW's steps.
    matrix_lr: float = 0.02
    warmup: int = 100  # steps
    weight_decay: float = 0.1
    dropout: float = 0.1
    bf16: bool = False  # autocast to bfloat16: twice as fast on some CPUs, slower on others
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for field in ("n_layer", "n_head", "block", "batch_size", "steps"):
            check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        check("warmup", self.warmup, self.warmup >= 0, "0 or more")
        good = 0 <= self.weight_decay <= 1e30
        check("weight_decay", self.weight_decay, good, "0 or more, up to 1e30")
        check(
            "n_embd",
            self.n_embd,
            self.n_embd >= 1 and self.n_embd % self.n_head == 0,
            f"a multiple of n_head = {self.n_head}",
        )
        check(
            "vocab_size", self.vocab_size, self.vocab_size > 256, "above 256: every byte is a token"
        )
        check(
            "lr, matrix_lr",
            (self.lr, self.matrix_lr),
            all(1e-30 <= lr <= 1e30 for lr in (self.lr, self.matrix_lr)),
            "above 0, from 1e-30 to 1e30",
        )
        check("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, which can encode any text. As in GPT-2, one token is both EOS and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        bos_token=EOS,
        pad_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def pack(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, order: torch.Generator
) -> torch.Tensor:
    """One long row of token ids: the texts in a random order, each ended by EOS."""
    ids = tokenizer(texts).input_ids
    shuffled = [ids[i] for i in torch.randperm(len(ids), generator=order, device="cpu")]
    joined = [token for text in shuffled for token in [*text, tokenizer.eos_token_id]]
    return torch.tensor(joined, device="cpu")


def new_gpt2(
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int,
    width: int,
    heads: int = 4,
    positions: int,
    dropout: float = 0.0,
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, drawn on the CPU, and this tokenizer's vocabulary."""
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    with torch.device("cpu"):
        model = GPT2LMHeadModel(config)
    return model.to(device_named())  # type: ignore[arg-type]  # transformers wraps `to` without its types


def make_optimizers(model: GPT2LMHeadModel, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the matrices inside the layers, AdamW for all else."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and ".h." in name]
    embeddings = [p for name, p in model.named_parameters() if p.dim() == 2 and ".h." not in name]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [
            {"params": embeddings, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    return [
        adamw,
        torch.optim.Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay),
    ]


def schedule(step: int, config: PretrainConfig) -> float:
    """Learning rate as a share of its peak: linear warm-up to 1, then a cosine down to 1 / 20."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.475 * (1 + math.cos(math.pi * progress))


def train_base(
    texts: list[str],
    held_out: list[str],
    config: PretrainConfig = PretrainConfig(),
    *,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, History]:
    """Train a tokenizer and a model on `texts`.

    Random numbers: a generator seeded with config.seed draws the order of the texts. torch's global
    generator, seeded with config.seed too, draws the initial weights. Each step has its own seed,
    which draws its blocks and dropout.

    Args:
        held_out: texts on which bits per byte are measured.
        on_step: called after every 100 steps, and after the last, with a row of the history.

    Returns:
        (model, tokenizer, history). Rows of the history: loss (nats per token; a nat is the unit
        of natural logarithms) and grad_norm. After every 100 steps, and after the last, also
        bits_per_byte on the held-out texts and tokens_per_second.
    """
    # 1. Text to tokens.
    seed_all(config.seed)
    tokenizer = train_tokenizer(texts, config.vocab_size)
    order = torch.Generator().manual_seed(config.seed)
    stream = pack(texts, tokenizer, order)
    held_out_stream = pack(held_out, tokenizer, torch.Generator().manual_seed(0))
    # EOS counts as one byte, the line end
    held_out_bytes = sum(len(text.encode()) + 1 for text in held_out)

    # 2. Model and optimisers.
    model = new_gpt2(
        tokenizer,
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        positions=config.block,
        dropout=config.dropout,
    )
    optimizers = make_optimizers(model, config)
    history = History()
    run = (checkpoint or Checkpoint()).attach(
        "pretrain", config, stream, [model], optimizers, history
    )

    # 3. Steps.
    started, first = time.time(), run.first
    for step, _ in run.steps(range(config.steps)):
        step_seed = config.seed * 1_000_003 + step
        generator = torch.Generator().manual_seed(step_seed)
        starts = torch.randint(
            len(stream) - config.block - 1, (config.batch_size,), generator=generator, device="cpu"
        )
        blocks = torch.stack([stream[s : s + config.block + 1] for s in starts])
        blocks = blocks.to(device_of(model))
        torch.manual_seed(step_seed)  # dropout
        for optimizer, peak in zip(optimizers, (config.lr, config.matrix_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(step, config)
        model.train()
        with torch.autocast(blocks.device.type, torch.bfloat16, enabled=config.bf16):
            logits = model(blocks[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), blocks[:, 1:].flatten()
        )
        model.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer in optimizers:
            optimizer.step()
        row = history.log("pretrain", step, steps=config.steps, loss=loss, grad_norm=grad_norm)
        if step % 100 == 99 or step + 1 == config.steps:
            row["bits_per_byte"] = (
                stream_nats(model, held_out_stream, config.block) / math.log(2) / held_out_bytes
            )
            row["tokens_per_second"] = (
                (step + 1 - first) * config.batch_size * config.block / (time.time() - started)
            )
            on_step(row)
    return model.eval(), tokenizer, history


@torch.no_grad()
def stream_nats(model: Policy, stream: torch.Tensor, block: int) -> float:
    """Sum of -log p over a stream of tokens, in nats; the stream is read in blocks of tokens.

    A block sees no earlier block. Each block predicts the first token of the next one, so every
    token but the stream's first is predicted once.
    """
    model.eval()
    total = 0.0
    for start in range(0, len(stream) - 1, block):
        ids = stream[start : start + block + 1][None].to(device_of(model))
        logits = model(ids[:, :-1]).logits
        total += torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
    return total
