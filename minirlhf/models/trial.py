"""A trial of a model before it is trained: what sampling and the losses rely on."""

import torch
from transformers import PreTrainedModel

from minirlhf.models.fit import embedding_rows
from minirlhf.models.forward import policy_logprobs, position_limit
from minirlhf.models.sampling import SamplingConfig, sample

LEAST = 5  # positions: two tokens of a prompt, two of a response, and EOS
CAUSAL = "a causal language model with a key-value cache, such as GPT-2, Llama, Qwen or Mistral"


def check_writes(model: PreTrainedModel) -> None:
    """Try a model on two short prompts: what sampling and the losses rely on must hold.

    It reads positions and a mask, it has a cache whose rows can be repeated and dropped, it does
    not read later tokens, and padding on the left changes nothing.

    Raises:
        ValueError: one of these does not hold.
    """
    kind, rows = model.config.model_type, embedding_rows(model)
    limit = position_limit(model)
    if limit is not None and limit < LEAST:
        raise ValueError(
            f"the model reads {limit} tokens at most; it must be {LEAST} or more, for a prompt, a "
            "response and EOS."
        )
    ids = torch.arange(4, device="cpu").view(2, 2) % rows
    mask = torch.tensor([[False, True], [True, True]], device="cpu")
    generator = torch.Generator().manual_seed(0)
    config = SamplingConfig(max_new_tokens=2, temperature=1.0)
    try:
        batch = sample(
            model, ids, mask, eos_id=-1, config=config, samples_per_prompt=2, generator=generator
        )
        with torch.no_grad():
            again = policy_logprobs(model, batch)
            alone = policy_logprobs(model, batch.select([0, 1]))
    except FloatingPointError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # a foreign model may raise anything
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"a model of type {kind!r} cannot be used here ({cause.rstrip('.')}); give {CAUSAL}."
        ) from error
    for what, difference in (
        ("reading later tokens, or its cache,", again - batch.old_logprobs),
        ("padding on the left", alone - again[:2]),
    ):
        most = difference.abs().max().item()
        if not most < 0.01:  # rounding gives at most 1e-4; also NaN
            raise ValueError(
                f"a model of type {kind!r} cannot be used here: {what} changes its "
                f"log-probabilities by {most:.2g} nats; give {CAUSAL}."
            )
