"""Is a model better than the one that it started from? On prompts or pairs of your own.

new = evaluate.scored_responses(model, tokenizer, prompts, score, reference=start)
old = evaluate.scored_responses(start, tokenizer, prompts, score)
table = evaluate.compare(new, old)                          a row each, with 95 % intervals
evaluate.verdict(table)                                     better, worse, no difference seen
evaluate.pair_accuracy(evaluate.scored_pairs(pairs, tokenizer, reward_model=scorer))
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.core.kl import log_ratio
from minirlhf.core.rollout import Rollout, Score
from minirlhf.evaluate.methods import distinct_n, most_common_opening, wins, with_ends
from minirlhf.models.adapters import LanguageModel, Policy
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import (
    Response,
    decode,
    encode,
    encode_prompts,
    policy_logprobs,
    response_tokens,
)
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.rewards.model import Judge, text_judge
from minirlhf.runtime import PromptError, check
from minirlhf.tasks.conversations import in_parts


@torch.no_grad()
def scored_responses(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    score: Score,
    *,
    samples_per_prompt: int = 4,
    reference: LanguageModel | None = None,
    judge: Score | None = None,
    config: SamplingConfig = SamplingConfig(),
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Sample responses to each prompt, and score them.

    Each batch is scored as soon as it is sampled, so a score that cannot be used is found early.

    Args:
        model: the policy.
        prompts: N texts. Two of them may be equal, for example rows with different answers.
        score: Rollout -> scores (B,), as a training loop takes it. The batch has the column
            prompt_row: the number of each response's prompt.
        samples_per_prompt: responses per prompt.
        reference: a model with the same tokenizer, for the KL.
        judge: a second score of the same responses.
        config, seed: of the sampling.
        batch_size: responses in memory at once. Another number gives other samples.

    Returns:
        A row per response: row (the number of the prompt, from 0), prompt, response, score, kl
        (log pi(y|x) - log pi_ref(y|x), nats per response, at the sampling temperature; NaN without
        a reference), length (tokens, EOS included) and finished (whether it ended in EOS). With a
        judge also judge, its score.

    Raises:
        ValueError: a score is not one finite number per response.
    """
    generator, ends = torch.Generator().manual_seed(seed), end_ids(model, tokenizer)
    numbers = torch.arange(len(prompts), device="cpu").repeat_interleave(samples_per_prompt)
    parts = []
    for rows in numbers.split(batch_size):
        asked = [prompts[i] for i in rows.tolist()]
        batch = sample(
            model,
            *encode_prompts(tokenizer, asked),
            eos_id=ends,
            config=config,
            generator=generator,
        ).with_columns(prompt_row=rows)
        kl = torch.full((len(rows),), math.nan, device="cpu")
        if reference is not None:
            ref_logprobs = policy_logprobs(reference, batch, temperature=config.temperature)
            kl = log_ratio(batch.old_logprobs, ref_logprobs, batch.action_mask).sum(1)
        columns = {
            "row": rows,
            "score": _finite(score(batch), asked, rows.tolist()),
            "kl": kl,
            "length": batch.response_mask.sum(1),
            "finished": batch.finished(ends),
        }
        if judge is not None:
            columns["judge"] = _finite(judge(batch), asked, rows.tolist(), "judge's score")
        part = pd.DataFrame({name: values.tolist() for name, values in columns.items()})
        part.insert(1, "prompt", asked)
        part.insert(2, "response", decode(tokenizer, batch))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def text_score(judge: Judge, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> Score:
    """A score of sampled batches from a judge of texts, for `scored_responses`.

    The judge may have another tokenizer than the policy.

    Args:
        tokenizer: the policy's.
        prompts: as the judge reads them, in the order of the policy's prompts.
    """

    def score(batch: Rollout) -> torch.Tensor:
        return judge([prompts[i] for i in batch.prompt_row.tolist()], decode(tokenizer, batch))

    return score


def compare(
    new: pd.DataFrame, base: pd.DataFrame | None = None, *, bootstrap_seed: int = 0
) -> pd.DataFrame:
    """The table of one model, or of a model and the one that it started from.

    Intervals are 95 % bootstrap intervals over prompts. Rows with the same prompt count as one
    prompt, because they are not independent.

    Args:
        new, base: what `scored_responses` returned for the same rows.

    Returns:
        One row for each model, `new` first. score is the mean over prompts of the mean score of
        their responses. kl, length (tokens), missing_eos (share of responses without EOS),
        distinct_2, opening (the commonest first four words) and opening_share warn of a collapse.
        The row of `new` also has difference, new - base, paired by prompt; and win_rate, the share
        of prompts on which new's mean score is above base's, where a tie counts one half. The
        columns NAME_low and NAME_high are the interval of NAME.

    Raises:
        ValueError: there is one prompt only, or `new` and `base` are not on the same rows.
    """
    prompt_of = new.groupby("row").prompt.first()
    check_enough(prompt_of.nunique(), "prompts")
    frames = {"new": new} if base is None else {"new": new, "base": base}
    rows, means = [], {}
    for name, frame in frames.items():
        same = set(frame.row) == set(new.row)
        check("rows of base", len(set(frame.row)), same, "the same rows as those of new")
        # fsum rounds once: the same scores in another order have the same mean
        by_prompt = frame.score.groupby(frame.row.map(prompt_of)).agg(
            lambda scores: math.fsum(scores) / len(scores)
        )
        means[name] = torch.tensor(by_prompt.to_numpy(), dtype=torch.float64, device="cpu")
        texts = frame.response.tolist()
        opening, share = most_common_opening(texts)
        rows.append(
            {
                "model": name,
                "prompts": len(by_prompt),
                "responses": len(frame),
                **with_interval("score", means[name], bootstrap_seed),
                "kl": frame.kl.mean(),
                "length": frame.length.mean(),
                "missing_eos": 1 - frame.finished.mean(),
                "distinct_2": distinct_n(texts, 2),
                "opening": opening,
                "opening_share": share,
            }
        )
    if base is not None:
        difference = means["new"] - means["base"]
        rows[0] |= with_interval("difference", difference, bootstrap_seed)
        rows[0] |= with_interval("win_rate", wins(means["new"], means["base"]), bootstrap_seed)
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame) -> str:
    """What a table of `compare` or `pair_accuracy` says: 'better', 'worse', 'no difference seen'.

    'no difference seen' means that the 95 % interval of the paired difference contains 0. It does
    not mean that both are equal.
    """
    row = table.iloc[0]
    if row.difference_low > 0:
        return "better"
    return "worse" if row.difference_high < 0 else "no difference seen"


@torch.no_grad()
def scored_pairs(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reward_model: ScalarModel | None = None,
    policy: LanguageModel | None = None,
    reference: LanguageModel | None = None,
    max_response: int | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Score both responses of preference pairs, by a reward model or by a policy.

    A policy's score is the implicit reward of DPO without its factor: log pi/pi_ref, in nats. The
    factor beta is above 0, so it changes no order.

    Args:
        pairs: standard rows with prompt, chosen and rejected.
        tokenizer: of the reward model, or of policy and reference.
        reward_model: or give `policy` and `reference`.
        max_response: tokens of a response that are read, EOS included; None: all.
        batch_size: responses in memory at once.

    Returns:
        A row per pair: chosen and rejected (scores), chosen_length and rejected_length (tokens).

    Raises:
        ValueError: neither or both of reward model and policy are given, or a score is not finite.
    """
    two = (policy is None) == (reference is None)
    check(
        "reward_model, policy, reference",
        tuple(type(each).__name__ for each in (reward_model, policy, reference)),
        two and (reward_model is None) != (policy is None),
        "a reward model alone, or a policy and a reference",
    )
    rows, found = pairs[:], {}
    for side in ("chosen", "rejected"):
        if reward_model is not None:
            judge = text_judge(
                [reward_model], tokenizer, batch_size=batch_size, max_response=max_response
            )
            scores = judge(rows["prompt"], rows[side])
        else:
            assert policy is not None and reference is not None  # checked above
            asked = list(zip(rows["prompt"], in_parts(rows, side), strict=True))
            parts = [asked[i : i + batch_size] for i in range(0, len(asked), batch_size)]
            scores = torch.cat(
                [_log_ratios(policy, reference, tokenizer, part, max_response) for part in parts]
            )
        ids, _ = response_tokens(tokenizer, rows[side], max_response=max_response)
        found[side] = _finite(scores, rows["prompt"], range(len(scores))).tolist()
        found[f"{side}_length"] = [len(each) for each in ids]
    return pd.DataFrame(found)


def pair_accuracy(scored: pd.DataFrame, *, bootstrap_seed: int = 0) -> pd.DataFrame:
    """How often the chosen response scores higher, beside "the longer answer is better".

    A tie counts one half. The 95 % intervals are bootstrapped over pairs. Pairs with the same
    prompt are not independent: if there are many of them, the intervals are too narrow.

    Args:
        scored: as `scored_pairs` returns it.

    Returns:
        Two rows, by "scores" and by "longer answer": accuracy and its interval. The first one also
        has difference, its accuracy minus that of the longer answer, paired by pair.

    Raises:
        ValueError: there is one pair only.
    """
    check_enough(len(scored), "pairs")
    sides = {
        "scores": (scored.chosen, scored.rejected),
        "longer answer": (scored.chosen_length, scored.rejected_length),
    }
    right = {
        name: wins(*(torch.tensor(x.to_numpy(), dtype=torch.float64, device="cpu") for x in pair))
        for name, pair in sides.items()
    }
    rows = [
        {"by": name, "pairs": len(each), **with_interval("accuracy", each, bootstrap_seed)}
        for name, each in right.items()
    ]
    difference = right["scores"] - right["longer answer"]
    rows[0] |= with_interval("difference", difference, bootstrap_seed)
    return pd.DataFrame(rows)


def check_enough(count: int, what: str) -> None:
    """Refuse a single prompt or pair: it has no interval.

    Raises:
        ValueError: count is below 2.
    """
    allowed = f"at least 2, because the intervals are over {what}; 100 or more are better"
    check(f"The number of different {what}", count, count >= 2, allowed)


def with_interval(name: str, values: torch.Tensor, seed: int) -> dict[str, float]:
    """The mean of independent values, with its interval, as three columns."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), with_ends(values, seed), strict=True))


def _finite(
    scores: torch.Tensor, prompts: list[str], rows: Sequence[int], what: str = "score"
) -> torch.Tensor:
    """The scores themselves, one finite number for each prompt; rows are the prompts' numbers."""
    check("shape of the scores", tuple(scores.shape), scores.shape == (len(prompts),), "(B,)")
    if (wrong := (~scores.isfinite()).nonzero()).numel():
        i = int(wrong[0])
        raise PromptError(
            f"The {what} of a response to the prompt {prompts[i][:60]!r} is {scores[i].item()}; it "
            "must be finite. It is nan where a reward function returned None: let it score every "
            "response.",
            rows[i],
        )
    return scores


def _log_ratios(
    policy: LanguageModel,
    reference: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[tuple[str, Response]],
    max_response: int | None,
) -> torch.Tensor:
    """(B,) log pi/pi_ref of responses, nats, over the tokens that the assistant wrote."""
    prompts, responses = map(list, zip(*asked, strict=True))
    batch = encode(tokenizer, prompts, responses, max_response=max_response)
    ours, theirs = (policy_logprobs(model, batch) for model in (policy, reference))
    return log_ratio(ours, theirs, batch.action_mask).sum(1)
