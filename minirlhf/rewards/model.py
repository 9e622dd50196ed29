"""Scores from a ScalarModel: of whole responses, and of every prefix in the two readings that must not be confused."""

from collections.abc import Callable

import torch

from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.core.rollout import Rollout
from minirlhf.models.forward import decode, encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import check

Judge = Callable[[list[str], list[str]], torch.Tensor]  # (prompts, responses) -> scores (B,)


def end_with_eos(rollout: Rollout, eos_id: int) -> Rollout:
    """The same responses, a cut one ended by EOS, in R + 1 columns.

    A reward model is trained where texts end in EOS. Read at the last word of a cut response its head is at an untrained position, and
    a policy finds out: it stops writing EOS and is paid for it.
    """
    cut = ~rollout.finished(eos_id)[:, None]
    ids = torch.cat([rollout.response_ids, torch.full_like(rollout.response_ids[:, :1], eos_id)], 1)
    mask = torch.cat([rollout.response_mask, cut], 1)
    old_logprobs = torch.cat(
        [rollout.old_logprobs, torch.zeros_like(rollout.old_logprobs[:, :1])], 1
    )
    return Rollout(rollout.prompt_ids, rollout.prompt_mask, ids, mask, old_logprobs)


def rollout_score(model: ScalarModel, eos_id: int) -> Callable[[Rollout], torch.Tensor]:
    """What a training loop asks for: Rollout -> (B,), the score at EOS, which a cut response is given for the purpose."""

    @torch.no_grad()
    def score(rollout: Rollout) -> torch.Tensor:
        ended = end_with_eos(rollout, eos_id)
        return last_token_scores(token_scores(model, ended), ended.attention_mask)

    return score


@torch.no_grad()
def normalise_scores(model: ScalarModel, rollouts: list[Rollout], eos_id: int) -> ScalarModel:
    """Set shift and scale so that the scores of these rollouts have mean 0 and standard deviation 1."""
    model.shift, model.scale = 0.0, 1.0
    raw = torch.cat([rollout_score(model, eos_id)(r) for r in rollouts])
    spread = raw.std().item()
    check(
        "standard deviation of the raw scores",
        spread,
        spread > 0,
        "above 0 (is the reward model trained?)",
    )
    model.shift, model.scale = raw.mean().item(), spread
    return model


def text_judge(
    models: list[ScalarModel], tokenizer, *, batch_size: int = 64, max_response: int = 64
) -> Judge:
    """(prompts, responses) -> (B,): the mean score of an ensemble, read at EOS; what exceeds max_response tokens is cut off."""

    @torch.no_grad()
    def judge(prompts: list[str], responses: list[str]) -> torch.Tensor:
        order, scores = (
            sorted(range(len(prompts)), key=lambda i: len(responses[i])),
            [],
        )  # like lengths together: less padding
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = encode(
                tokenizer,
                [prompts[i] for i in rows],
                [responses[i] for i in rows],
                max_response=max_response,
            )
            members = [
                last_token_scores(token_scores(m, batch), batch.attention_mask) for m in models
            ]
            scores.append(torch.stack(members).mean(0))
        return torch.cat(scores)[torch.tensor(order).argsort()]

    return judge


@torch.no_grad()
def prefix_scores(
    model: ScalarModel, tokenizer, prompt: str, response: str
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
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
        prefix = Rollout(
            batch.prompt_ids, batch.prompt_mask, response_ids, mask, torch.zeros(mask.shape)
        )
        with_eos.append(token_scores(model, prefix)[0, -1])
    return [tokenizer.decode([i]) for i in ids], torch.stack(with_eos), one_pass


def rollout_judge(judge: Judge, tokenizer) -> Callable[[Rollout], torch.Tensor]:
    """Let a judge of texts read a Rollout: the responses are decoded first."""

    def score(rollout: Rollout) -> torch.Tensor:
        rows = zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)
        return judge(
            [tokenizer.decode(ids[mask]) for ids, mask in rows], decode(tokenizer, rollout)
        )

    return score
