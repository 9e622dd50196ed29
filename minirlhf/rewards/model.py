"""Scores from a ScalarModel: of whole responses, and of every prefix of a response.

There are two ways to score a prefix, and they give different numbers (see `prefix_scores`).
"""

from collections.abc import Callable

import torch
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.core.overoptimisation import ensemble_reward
from minirlhf.core.rollout import Rollout, Score
from minirlhf.models.forward import decode, encode, text_of, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import check

Judge = Callable[[list[str], list[str]], torch.Tensor]  # (prompts, responses) -> scores (B,)


def end_with_eos(rollout: Rollout, eos_id: int | tuple[int, ...]) -> Rollout:
    """The same responses in R + 1 columns, with EOS added to those that were cut off.

    Where a model has several tokens that end a response (`end_ids`), EOS takes their place.

    A reward model is trained on responses that end in EOS. At the last token of a cut response its
    head would be read at an untrained position. A policy finds this out: it stops writing EOS and
    is rewarded for it.
    """
    ids, mask, old_logprobs = (
        pad(x, (0, 1)) for x in (rollout.response_ids, rollout.response_mask, rollout.old_logprobs)
    )
    lengths = rollout.response_mask.sum(1, keepdim=True)
    last = ids.gather(1, (lengths - 1).clamp(min=0))
    ends = torch.tensor(eos_id, device=ids.device).view(-1)
    cut = ~torch.isin(last, ends) | (lengths == 0)  # whoever wrote the last token
    # EOS at the last token, or behind it where the response was cut
    ids = ids.scatter(1, torch.where(cut, lengths, lengths - 1), ends[:1].expand_as(lengths))
    mask = mask.scatter(1, lengths, cut)
    return Rollout(rollout.prompt_ids, rollout.prompt_mask, ids, mask, old_logprobs)


def rollout_score(model: ScalarModel, eos_id: int | tuple[int, ...]) -> Score:
    """The score function that a training loop needs: the reward model's score at EOS.

    A response that was cut off is given an EOS for scoring.

    Args:
        eos_id: id of the EOS token, or of several ends, EOS first (`end_ids`).

    Returns:
        Rollout -> scores (B,) in reward units.
    """

    @torch.no_grad()
    def score(rollout: Rollout) -> torch.Tensor:
        ended = end_with_eos(rollout, eos_id)
        return last_token_scores(token_scores(model, ended), ended.attention_mask)

    score.model = model  # type: ignore[attr-defined]  # loops check that it can read all prompts
    return score


def ensemble_score(scores: list[Score], *, how: str, penalty: float = 1.0) -> Score:
    """The score function of an ensemble of reward models, see `core.ensemble_reward`.

    Args:
        scores: of each model, as `rollout_score` makes them; normalise the models first.

    Returns:
        Rollout -> scores (B,).
    """

    def score(rollout: Rollout) -> torch.Tensor:
        each = torch.stack([one(rollout) for one in scores])
        return ensemble_reward(each, how=how, penalty=penalty)

    return score


@torch.no_grad()
def normalise_scores(
    model: ScalarModel, rollouts: list[Rollout], eos_id: int | tuple[int, ...]
) -> ScalarModel:
    """Set shift and scale so that these rollouts' scores have mean 0 and standard deviation 1.

    Returns:
        The same model.

    Raises:
        ValueError: all raw scores are equal.
    """
    model.shift, model.scale = 0.0, 1.0
    raw = torch.cat([rollout_score(model, eos_id)(r) for r in rollouts])
    spread = raw.std().item()
    check(
        "standard deviation of the raw scores",
        spread,
        spread > 0,
        "above 0: train the reward model first",
    )
    model.shift, model.scale = raw.mean().item(), spread
    return model


def text_judge(
    models: list[ScalarModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 64,
    max_response: int | None = 64,
) -> Judge:
    """A judge of texts: the mean score, at EOS, of one or more reward models.

    A text that stands several times after the same prompt is read once.

    Args:
        models: the ensemble; one model is enough.
        batch_size: responses per forward pass.
        max_response: tokens of a response that are read, EOS included; the rest is cut off. None:
            all.

    Returns:
        (prompts, responses) -> scores (B,).
    """

    @torch.no_grad()
    def judge(prompts: list[str], responses: list[str]) -> torch.Tensor:
        asked = list(zip(prompts, responses, strict=True))
        # each text once; similar lengths in one batch need less padding
        texts, scores = sorted(dict.fromkeys(asked), key=lambda text: len(text[1])), []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            batch = encode(
                tokenizer,
                [prompt for prompt, _ in part],
                [response for _, response in part],
                max_response=max_response,
            )
            members = [
                last_token_scores(token_scores(m, batch), batch.attention_mask) for m in models
            ]
            scores.append(torch.stack(members).mean(0))
        place = {text: i for i, text in enumerate(texts)}
        return torch.cat(scores)[[place[text] for text in asked]]

    return judge


@torch.no_grad()
def prefix_scores(
    model: ScalarModel, tokenizer: PreTrainedTokenizerBase, prompt: str, response: str
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Reward of every prefix of a response, computed in two ways.

    (a) Each prefix is ended with EOS and scored alone. The head is read at a position it was
    trained at, but the text is unusual. Figures in course notes show this. (b) The response is
    scored in one pass and the head is read at each token. The text is natural, but the head was
    never trained at these positions.

    Returns:
        (tokens, with_eos, one_pass). with_eos (R,) is (a), one_pass (R,) is (b). Entry t scores the
        response up to and including token t.

    Raises:
        ValueError: the response is empty.
    """
    batch = encode(tokenizer, [prompt], [response])
    ids = batch.response_ids[0, :-1].tolist()  # without EOS, which (a) adds itself
    if not ids:
        raise ValueError("The response to score is empty; give at least one word.")
    one_pass = token_scores(model, batch)[0, batch.prompt_ids.shape[1] : -1]
    with_eos = []
    for end in range(1, len(ids) + 1):
        response_ids = torch.tensor([[*ids[:end], tokenizer.eos_token_id]], device="cpu")
        mask = torch.ones_like(response_ids, dtype=torch.bool)
        prefix = Rollout(batch.prompt_ids, batch.prompt_mask, response_ids, mask, 0.0 * mask)
        with_eos.append(token_scores(model, prefix)[0, -1])
    return [text_of(tokenizer, [i]) for i in ids], torch.stack(with_eos), one_pass


def rollout_judge(judge: Judge, tokenizer: PreTrainedTokenizerBase) -> Score:
    """A score of Rollouts from a judge of texts. Prompts and responses are decoded first."""

    def score(rollout: Rollout) -> torch.Tensor:
        rows = zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)
        return judge(
            [text_of(tokenizer, ids[mask]) for ids, mask in rows], decode(tokenizer, rollout)
        )

    return score
