"""Scores from a ScalarModel: of whole responses, and of every prefix in the two readings that must not be confused."""

from collections.abc import Callable

import torch

from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.core.rollout import Rollout
from minirlhf.models.forward import decode, encode, token_scores
from minirlhf.models.heads import ScalarModel

Judge = Callable[[list[str], list[str]], torch.Tensor]  # (prompts, responses) -> scores (B,)


def rollout_score(model: ScalarModel) -> Callable[[Rollout], torch.Tensor]:
    """What a training loop asks for: Rollout -> (B,), the score at the last real token."""

    @torch.no_grad()
    def score(rollout: Rollout) -> torch.Tensor:
        return last_token_scores(token_scores(model, rollout), rollout.attention_mask)

    return score


def text_judge(models: list[ScalarModel], tokenizer, *, batch_size: int = 64, max_response: int = 64) -> Judge:
    """(prompts, responses) -> (B,): the mean score of an ensemble. A cut response is scored where it was cut."""

    @torch.no_grad()
    def judge(prompts: list[str], responses: list[str]) -> torch.Tensor:
        scores = []
        for i in range(0, len(prompts), batch_size):
            batch = encode(tokenizer, prompts[i : i + batch_size], responses[i : i + batch_size], max_response=max_response)
            members = [last_token_scores(token_scores(m, batch), batch.attention_mask) for m in models]
            scores.append(torch.stack(members).mean(0))
        return torch.cat(scores)

    return judge


@torch.no_grad()
def prefix_scores(model: ScalarModel, tokenizer, prompt: str, response: str) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """The reward of every prefix of a response, in both readings.

    (a) prefix + EOS, each scored alone: the trained position, on unusual text; the figure that course notes show.
    (b) one pass, the head read at each token: natural text, but a position that a last-token head was never trained at.

    Returns:
        (tokens, with_eos (R,), one_pass (R,)); entry t scores the response up to and including token t.
    """
    batch = encode(tokenizer, [prompt], [response])
    ids = batch.response_ids[0, :-1].tolist()  # EOS apart: reading (a) adds its own
    if not ids:
        raise ValueError("The text to score is empty; give at least one word.")
    one_pass = token_scores(model, batch)[0, batch.prompt_ids.shape[1] : -1]
    with_eos = []
    for end in range(1, len(ids) + 1):
        response_ids = torch.tensor([[*ids[:end], tokenizer.eos_token_id]])
        mask = torch.ones_like(response_ids, dtype=torch.bool)
        prefix = Rollout(batch.prompt_ids, batch.prompt_mask, response_ids, mask, torch.zeros(mask.shape))
        with_eos.append(token_scores(model, prefix)[0, -1])
    return [tokenizer.decode([i]) for i in ids], torch.stack(with_eos), one_pass


def rollout_judge(judge: Judge, tokenizer) -> Callable[[Rollout], torch.Tensor]:
    """Let a judge of texts read a Rollout: the responses are decoded first."""

    def score(rollout: Rollout) -> torch.Tensor:
        rows = zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)
        return judge([tokenizer.decode(ids[mask]) for ids, mask in rows], decode(tokenizer, rollout))

    return score
