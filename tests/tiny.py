"""A GPT-2 of a few thousand parameters with a byte-like vocabulary: enough to run every loop in seconds."""

import os
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from minirlhf.loops import SFTConfig
from minirlhf.tour import TourConfig

EOS = "<|endoftext|>"
needs_posix = pytest.mark.skipif(
    os.name != "posix", reason="sends signals or opens a terminal as Linux and macOS do"
)


def tiny_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate([EOS, *alphabet])}, merges=[])
    )
    tokenizer.add_special_tokens([EOS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        bos_token=EOS,
        pad_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tiny_policy(
    seed: int = 0,
    *,
    vocab_size: int = 257,
    width: int = 32,
    dropout: float = 0.1,
    positions: int = 64,
) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=width,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return GPT2LMHeadModel(config).eval()


def ending_policy(seed: int = 0, **given) -> GPT2LMHeadModel:
    """A tiny policy that writes EOS about once in six tokens, so that responses end early.

    The last layer norm adds 5 u to every state, and the embedding of EOS is 0.55 u for a unit vector
    u: the logit of EOS is about 2.75 above the others.
    """
    model = tiny_policy(seed, **given)
    with torch.no_grad():
        direction = torch.ones(model.config.n_embd) / model.config.n_embd**0.5
        model.transformer.ln_f.bias.copy_(5 * direction)
        model.transformer.wte.weight[0] = 0.55 * direction
    return model


def tiny_tour() -> TourConfig:
    """The reduced tour with smaller batches, judged on two titles. Ratios leave 1."""
    reduced = TourConfig.reduced()
    return replace(
        reduced,
        pairs=16,
        samples_per_prompt=1,
        max_prompts=2,
        accuracy_pairs=20,
        sft=SFTConfig(epochs=0.005),
        ppo=replace(reduced.ppo, batch_size=4, minibatch_size=2),
        grpo=replace(reduced.grpo, prompts_per_step=1, minibatch_size=2),
    )
