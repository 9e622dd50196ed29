"""Sampling with a key-value cache: responses and their log-probabilities, in one pass."""

from dataclasses import dataclass
from functools import partial
from inspect import signature

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from minirlhf.core.rollout import Rollout
from minirlhf.models.adapters import LanguageModel, Policy
from minirlhf.models.agent import Tool, Turns
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import device_of, encode_prompts, position_limit
from minirlhf.runtime import check

# transformers 5.24 gave the key-value cache another name
CACHE = "cache" if "cache" in signature(GPT2LMHeadModel.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled.

    A training loop refuses top_k, top_p and greedy. With them, tokens are not samples from the
    distribution whose log-probabilities are recorded.
    """

    max_new_tokens: int = 32  # R, EOS included
    temperature: float = 0.7  # > 0; 1 is the model's own distribution
    top_k: int = 0  # 0 = off; for showing samples only
    top_p: float = 1.0  # 1 = off; for showing samples only
    greedy: bool = False  # always the most probable token

    def __post_init__(self) -> None:
        check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        check(
            "temperature",
            self.temperature,
            1e-30 <= self.temperature <= 1e30,
            "above 0 (use greedy for the limit) and from 1e-30 to 1e30, so that the logits "
            "divided by it stay finite numbers",
        )
        check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        check("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")

    def for_training(self) -> "SamplingConfig":
        """The same settings; refused if a training loop cannot use them."""
        honest = self.top_k == 0 and self.top_p == 1.0 and not self.greedy
        check("sampling", self, honest, "without top_k, top_p and greedy in a training loop")
        return self


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    *,
    eos_id: int | tuple[int, ...],
    config: SamplingConfig = SamplingConfig(),
    samples_per_prompt: int = 1,
    generator: torch.Generator | None = None,
    tool: Tool | None = None,
) -> Rollout:
    """Sample a response to each left-padded prompt, until EOS or max_new_tokens.

        x_t ~ softmax(logits_t / temperature)       old_logprobs[:, t] = log of that probability

    A row that has ended leaves the batch: the model computes only the rows that still need tokens.
    The random numbers do not depend on it. Every step draws one uniform for every row, ended or
    not, so each row keeps its own and gets the same tokens as in a loop that drops no row. (Only
    where a uniform falls on the boundary between two tokens can the token differ: matrix products
    of another batch size differ in their last bits.)

    Args:
        prompt_ids, prompt_mask: (B, P), left-padded.
        eos_id: the token that ends a response, or several (`end_ids`), EOS first.
        samples_per_prompt: responses to each prompt, in neighbouring rows. The prompt is read once.
        generator: draws the uniforms on the CPU, so that a seed gives the same ones on every
            device; torch's global one by default.
        tool: what the policy can call. Its tokens count in max_new_tokens and use up uniforms; one
            of them that is an EOS ends nothing.

    Returns:
        Rollout with R <= max_new_tokens columns, on the prompts' device; old_logprobs in nats.
        After the EOS of a row its ids are EOS, its mask is False and its log-probabilities are 0.
        action_mask is False, and old_logprobs are 0, at the tool's tokens.

    Raises:
        ValueError: prompt, response and EOS together may be longer than the model reads, or the
            model keeps no key-value cache.
        FloatingPointError: the logits of a row that has not ended are NaN.
    """
    model.eval()
    _check_width(model, prompt_ids.shape[1], config.max_new_tokens)
    home, device = prompt_ids.device, device_of(model)
    prompt_ids, prompt_mask = prompt_ids.to(device), prompt_mask.to(device)
    forward = partial(model, use_cache=True, logits_to_keep=1)
    position = (prompt_mask.long().cumsum(1) - 1).clamp(min=0)
    output = forward(input_ids=prompt_ids, attention_mask=prompt_mask.long(), position_ids=position)
    cache, logits, position = _cache_of(output), output.logits[:, -1], position[:, -1:]
    if samples_per_prompt > 1:
        copies = torch.arange(len(prompt_ids), device=device).repeat_interleave(samples_per_prompt)
        prompt_ids, prompt_mask, position, logits = _take_rows(
            cache, copies, prompt_ids, prompt_mask, position, logits
        )
    batch, dtype = len(prompt_ids), torch.promote_types(logits.dtype, torch.float32)
    ends = torch.tensor(eos_id, device=device).view(-1)  # EOS, and other ends of a response
    response_ids = ends[0].repeat(batch, config.max_new_tokens)
    response_mask = torch.zeros_like(response_ids, dtype=torch.bool)
    action_mask, turns = torch.zeros_like(response_mask), Turns(tool, batch)
    old_logprobs = torch.zeros_like(response_ids, dtype=dtype)
    living = torch.arange(batch, device=device)  # the rows that have not ended
    attention_mask = prompt_mask.long()
    for t in range(config.max_new_tokens):
        log_probs = torch.log_softmax(logits.to(dtype) / config.temperature, -1)
        if log_probs.isnan().any():
            raise FloatingPointError(
                "The model's logits are NaN; its weights are damaged, or training went too far"
                + (", or its attention overflows in float64." if dtype == torch.float64 else ".")
            )
        if config.greedy:
            token = log_probs.argmax(-1)
        else:  # one uniform for every row, ended or not
            uniform = torch.rand(batch, 1, dtype=torch.double, generator=generator, device="cpu")
            token = _draw(log_probs, config, uniform[living.cpu()])
        token, chosen = turns.take(living, token)
        response_ids[living, t], response_mask[living, t], action_mask[living, t] = (
            token,
            True,
            chosen,
        )
        old_logprobs[living, t] = log_probs.gather(1, token[:, None])[:, 0].where(chosen, 0.0)
        if tool is not None:
            turns.answer(living, chosen & (token == tool.call_end), response_ids[living, : t + 1])
        going_on = (~(torch.isin(token, ends) & chosen)).nonzero()[:, 0]
        if len(going_on) == 0 or t + 1 == config.max_new_tokens:
            break
        if len(going_on) < len(living):
            living, token, position, attention_mask = _take_rows(
                cache, going_on, living, token, position, attention_mask
            )
        position, attention_mask = position + 1, pad(attention_mask, (0, 1), value=1)
        logits = forward(
            input_ids=token[:, None],
            attention_mask=attention_mask,
            position_ids=position,
            **{CACHE: cache},
        ).logits[:, -1]
    response_ids, response_mask, old_logprobs, action_mask = (
        x[:, : t + 1] for x in (response_ids, response_mask, old_logprobs, action_mask)
    )
    return Rollout(
        prompt_ids, prompt_mask, response_ids, response_mask, old_logprobs, action_mask
    ).to(home)


def sample_text(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    config: SamplingConfig = SamplingConfig(),
    seed: int = 0,
    batch_size: int = 64,
    tool: Tool | None = None,
) -> list[Rollout]:
    """Sample a response to each prompt in batches; one Rollout a batch."""
    generator, ends = torch.Generator().manual_seed(seed), end_ids(model, tokenizer)
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    return [
        sample(
            model,
            *encode_prompts(tokenizer, batch),
            eos_id=ends,
            config=config,
            generator=generator,
            tool=tool,
        )
        for batch in batches
    ]


def _cache_of(output: ModelOutput) -> DynamicCache:
    """The key-value cache that a model returned.

    Raises:
        ValueError: it returned none whose rows can be dropped, as recurrent models do.
    """
    cache: DynamicCache | None = getattr(output, CACHE, None)
    if cache is None or not hasattr(cache, "reorder_cache"):
        raise ValueError(
            "the model keeps no key-value cache whose rows can be dropped, so it cannot be "
            "sampled from"
        )
    return cache


def _check_width(model: LanguageModel, prompt: int, new: int) -> None:
    """Refuse a prompt and response that are longer than the model reads.

    One position stays free: a response cut at max_new_tokens gets an EOS before it is scored.
    """
    limit = position_limit(model)
    if limit and prompt + new + 1 > limit:
        raise ValueError(
            f"A prompt of {prompt}, {new} new tokens and EOS exceed the model's {limit}; shorten "
            "the prompt or allow fewer new tokens."
        )


def _take_rows(
    cache: DynamicCache, rows: torch.Tensor, *tensors: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """These rows of the tensors and (in place) of the cache; rows may be repeated or left out."""
    # made for beam search; every kind of cache layer has it, and any tensor of integers will do
    cache.reorder_cache(rows)  # type: ignore[arg-type]
    return tuple(x[rows] for x in tensors)


def _draw(log_probs: torch.Tensor, config: SamplingConfig, uniform: torch.Tensor) -> torch.Tensor:
    """One token a row: the inverse of the cumulative distribution function at `uniform` (B, 1).

    torch.multinomial would draw a random number for every word of the vocabulary. Apple's GPUs have
    no 64-bit numbers; there the CPU does this.
    """
    place = log_probs.device
    if place.type == "mps":
        log_probs = log_probs.cpu()
    probs, uniform = log_probs.exp().double(), uniform.to(log_probs.device)
    if config.top_k:
        probs = probs.where(
            probs >= probs.topk(min(config.top_k, probs.shape[1])).values[:, -1:], 0.0
        )
    if config.top_p < 1:
        ordered, index = probs.sort(descending=True)
        ordered = ordered.where(
            ordered.cumsum(-1) - ordered < config.top_p * ordered.sum(-1, keepdim=True), 0.0
        )
        probs = torch.zeros_like(probs).scatter(1, index, ordered)
    cumulative = probs.cumsum(-1)
    token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return token.clamp(max=probs.shape[1] - 1)[:, 0].to(place)
