"""Our own sampling loop on the key-value cache: tokens and their log-probabilities out, in one pass."""

from dataclasses import dataclass
from functools import partial

import torch

from minirlhf.core.rollout import Rollout
from minirlhf.models.forward import encode_prompts
from minirlhf.runtime import check


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn. A training loop refuses top_k and top_p: they would mis-state the log-probabilities."""

    max_new_tokens: int = 32  # R, EOS included
    temperature: float = (
        0.7  # > 0; 1 is the model's own distribution, on which one this small stumbles often
    )
    top_k: int = 0  # 0 = off; for showing samples only
    top_p: float = 1.0  # 1 = off; for showing samples only
    greedy: bool = False  # always the likeliest token

    def __post_init__(self):
        check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        check(
            "temperature",
            self.temperature,
            0 < self.temperature < float("inf"),
            "above 0 (use greedy for the limit) and finite",
        )
        check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        check("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")

    def for_training(self) -> "SamplingConfig":
        """Itself, if its samples are draws from the policy whose log-probabilities are recorded."""
        honest = self.top_k == 0 and self.top_p == 1.0 and not self.greedy
        check("sampling", self, honest, "without top_k, top_p and greedy in a training loop")
        return self


@torch.no_grad()
def sample(
    model,
    prompt_ids,
    prompt_mask,
    *,
    eos_id: int,
    config: SamplingConfig = SamplingConfig(),
    samples_per_prompt: int = 1,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Continue each left-padded prompt until EOS or max_new_tokens.

        x_t ~ softmax(logits_t / temperature)       old_logprobs[:, t] = log of that probability

    A row that has ended is fed EOS as padding; its mask is False from there on, whatever the padding's id: masks come from
    the first EOS, never from `ids != pad`.

    Args:
        prompt_ids, prompt_mask: (B, P), left-padded; eos_id: ends a response.
        samples_per_prompt: that many continuations of each prompt, side by side; the prompt itself is read once.
        generator: draws one uniform a row and step; torch's global one by default.

    Returns:
        Rollout with R <= max_new_tokens columns; old_logprobs in nats.
    """
    model.eval()
    limit = getattr(model.config, "max_position_embeddings", None)
    width = (
        prompt_ids.shape[1] + config.max_new_tokens + 1
    )  # one to spare: a cut response is given EOS before it is scored
    if limit and width > limit:
        raise ValueError(
            f"A prompt of {prompt_ids.shape[1]}, {config.max_new_tokens} new tokens and EOS exceed the model's {limit}."
        )
    position = (prompt_mask.long().cumsum(1) - 1).clamp(min=0)
    forward = partial(model, use_cache=True, logits_to_keep=1)
    output = forward(input_ids=prompt_ids, attention_mask=prompt_mask.long(), position_ids=position)
    cache, logits = output.past_key_values, output.logits
    if samples_per_prompt > 1:
        cache.batch_repeat_interleave(samples_per_prompt)
        prompt_ids, prompt_mask, position, logits = (
            x.repeat_interleave(samples_per_prompt, 0)
            for x in (prompt_ids, prompt_mask, position, logits)
        )
    attention_mask, alive = prompt_mask.long(), torch.ones(len(prompt_ids), dtype=torch.bool)
    tokens, masks, logprobs = [], [], []
    while True:
        logits = logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))
        log_probs = torch.log_softmax(logits / config.temperature, -1)
        if log_probs.isnan().any():
            raise FloatingPointError(
                "The model's logits are NaN; its weights are damaged, or training went too far."
            )
        token = torch.where(alive, _draw(log_probs, config, generator), eos_id)
        tokens.append(token)
        masks.append(alive)
        logprobs.append(torch.where(alive, log_probs.gather(1, token[:, None])[:, 0], 0.0))
        alive = alive & (token != eos_id)
        if len(tokens) == config.max_new_tokens or not alive.any():
            break
        position, attention_mask = (
            position[:, -1:] + 1,
            torch.nn.functional.pad(attention_mask, (0, 1), value=1),
        )
        logits = forward(
            input_ids=token[:, None],
            attention_mask=attention_mask,
            position_ids=position,
            past_key_values=cache,
        ).logits
    return Rollout(
        prompt_ids,
        prompt_mask,
        torch.stack(tokens, 1),
        torch.stack(masks, 1),
        torch.stack(logprobs, 1),
    )


def sample_text(
    model,
    tokenizer,
    prompts: list[str],
    *,
    config: SamplingConfig = SamplingConfig(),
    seed: int = 0,
    batch_size: int = 64,
) -> list[Rollout]:
    """Sample a response to each prompt in batches; one Rollout a batch."""
    generator = torch.Generator().manual_seed(seed)
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    return [
        sample(
            model,
            *encode_prompts(tokenizer, batch),
            eos_id=tokenizer.eos_token_id,
            config=config,
            generator=generator,
        )
        for batch in batches
    ]


def _draw(log_probs, config: SamplingConfig, generator) -> torch.Tensor:
    """One token a row: the inverse of the cumulative distribution at one uniform (cheaper than torch.multinomial)."""
    if config.greedy:
        return log_probs.argmax(-1)
    probs = log_probs.exp().double()
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
    uniform = (
        torch.rand(len(probs), 1, dtype=torch.double, generator=generator) * cumulative[:, -1:]
    )
    return torch.searchsorted(cumulative, uniform, right=True).clamp(max=probs.shape[1] - 1)[:, 0]
