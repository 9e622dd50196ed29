"""Over-optimisation: a policy is optimised for a proxy, and gold falls behind.

Gold is the truth here by construction. The labels from which a proxy learns are drawn from the gold
scores of pairs of samples. All proxies make the same number of passes over their labels. So what a
proxy gets wrong comes from its size, from the number of its labels, and from the chance in them.
"""

import math
import random
from dataclasses import dataclass
from functools import cache

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from minirlhf import evaluate
from minirlhf.core.best_of_n import best_of_n_kl, best_of_n_mean
from minirlhf.core.rollout import Rollout, Score
from minirlhf.loops.config import KLConfig
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.models.forward import decode, encode
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.bag_of_words import lexicon_judge
from minirlhf.rewards.gold import ensemble_judge, gold_judge
from minirlhf.rewards.model import (
    ensemble_score,
    normalise_scores,
    rollout_judge,
    rollout_score,
)
from minirlhf.runtime import OnStep
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

POLICY = "tiny-reviews-sft"
SIZES = {  # layers x width -> the base model of a proxy; all have read the same tokens
    "2 x 64": "tiny-reviews-2x64",
    "3 x 192": "tiny-reviews-3x192",
    "4 x 256": "tiny-reviews",
}
FILMS, SAMPLES = 32, 4096  # of best-of-n: test films, responses to each
NS = tuple(2**k for k in range(11))  # n of best-of-n
MEMBERS = 5  # reward models of an ensemble
EPOCHS = 3  # passes of a proxy over its labels
HELD_OUT = 1000  # pairs of samples on which a proxy is judged
OTHER_LABELS = 10  # added to the seed of the labels of the held-out proxy
STEPS = 36  # of the policy gradient; without a KL penalty they lead beyond 100 nats


def overoptimisation_config(settings: dict) -> GroupConfig:
    """Settings of the policy gradient: `seed`, and `kl_coef` (0, if left out)."""
    return GroupConfig.named(
        "grpo",
        steps=STEPS,
        missing_eos_penalty=0.0,
        kl=KLConfig(kl_coef=settings.get("kl_coef", 0.0)),
        seed=settings["seed"],
    )


def overoptimisation_run(
    settings: dict, config: GroupConfig, on_step: OnStep
) -> tuple[dict, list[dict]]:
    """Optimise the policy for one proxy: by best-of-n, and by the policy gradient.

    Settings: `size` (one of SIZES) and `labels` (pairs) of the proxy, and

        human      the labels are human ratings of human texts; else they are drawn from gold
        ensemble   the proxy is an ensemble of MEMBERS reward models, see `core.ensemble_reward`
        kl_coef    only the policy gradient is run, with this KL penalty
        judge      "gold" or "length" in place of a proxy; only best-of-n is run, and it is the same
                   for all seeds

    The History has a row for each n of best-of-n and one for each step of the policy gradient:

        way                "best-of-n" or "rl"
        n, step            which one
        kl                 nats per response; of best-of-n the bound
        proxy, gold        mean scores. Gold is in rating units, -4 to 4
        gold_ensemble, lexicon  mean scores of two other judges, which nothing was optimised for
        length             tokens
        proxy_by_prompt, gold_by_prompt     of best-of-n: film by film
        held_out           of rl: the score of one proxy of the same size, with as many labels of
                           its own. (Human labels of the two are of much the same texts.)
        entropy, missing_eos, distinct_2, texts     of rl: nats per token; share of responses cut
                           off; share of different word pairs; three responses of every fourth step,
                           to three prompts

    The row has gold and kl of the last row of the History. With a proxy also

        start_gold, start_proxy   mean scores of the first policy on the prompts of rl
        agreement   how often the proxy prefers the response with the higher gold score, on HELD_OUT
                    pairs of samples
        loss        nats per label on these pairs; not for an ensemble, which has no log-odds
    """
    seed = config.seed
    if chosen_by := settings.get("judge"):
        history = best_of_n_history(pool().columns[chosen_by])
        return last_of(history), history
    members = range(MEMBERS if "ensemble" in settings else 1)
    cell = settings["size"], settings["labels"], settings.get("human", False)
    models = [proxy(*cell, seed, member) for member in members]
    tokenizer = load_policy(POLICY)[1]
    scores = [rollout_score(model, tokenizer.eos_token_id) for model in models]
    score = scores[0]
    if how := settings.get("ensemble"):
        score = ensemble_score(scores, how=how)
    held_out = rollout_score(proxy(*cell, seed + OTHER_LABELS, 0), tokenizer.eos_token_id)
    history = [] if "kl_coef" in settings else best_of_n_history(pool().scored(score))
    history += rl_history(score, held_out, config, on_step)
    start = {
        f"start_{name}": torch.cat([of(rollout) for rollout in start_samples()]).mean().item()
        for name, of in {"gold": judges()["gold"], "proxy": score}.items()
    }
    margins, gaps = margins_and_gaps(score, seed)
    row = last_of(history) | start
    row["agreement"] = ((margins > 0) == (gaps > 0)).float().mean().item()
    if not how:
        row["loss"] = -logsigmoid(margins * models[0].scale).mean().item()  # in log-odds
    return row, history


def last_of(history: list[dict]) -> dict[str, float]:
    """gold and kl of the last row."""
    return {name: history[-1][name] for name in ("gold", "kl")}


@cache
def proxy(size: str, labels: int, human: bool, seed: int, member: int) -> ScalarModel:
    """A reward model of one size, trained on so many labels, normalised on samples of the policy.

    Args:
        seed: of the labels. member: of an ensemble; it has the same labels, but another head and
            another order of the pairs.
    """
    tokenizer = load_policy(POLICY)[1]
    backbone = trainable(load_policy(SIZES[size])[0].base_model)
    config = RewardConfig(
        steps=proxy_steps(labels),
        texts_per_prompt=8 if human else labels,  # labels: no pair of a prompt is split up
        seed=100 * member + seed,
    )
    if human:
        pairs = reviews.preference_pairs(
            "reward", labels, seed=seed, max_tokens=config.max_response, tokenizer=tokenizer
        )
    else:
        pairs = gold_pairs("reward", labels, seed)
    model, _ = train_reward_model(backbone, tokenizer, pairs, config)
    return normalise_scores(model, start_samples(), tokenizer.eos_token_id).requires_grad_(False)


@cache
def start_samples() -> list[Rollout]:
    """A response of the first policy to each prompt of the policy gradient."""
    policy, tokenizer = load_policy(POLICY)
    return sample_text(policy, tokenizer, reviews.rl_prompts(), seed=9000, batch_size=256)


def proxy_steps(labels: int) -> int:
    """Steps for about EPOCHS passes. A step holds RewardConfig.batch_size texts, or a few more."""
    return EPOCHS * 2 * labels // RewardConfig.batch_size


@cache
def gold_pairs(split: str, count: int, seed: int) -> Dataset:
    """Pairs of samples of the policy for films of a split, with labels drawn from gold.

        P(first preferred) = sigmoid(gold of the first - gold of the second)

    Returns:
        prompt, chosen, rejected, gap (gold of chosen - gold of rejected).
    """
    policy, tokenizer = load_policy(POLICY)
    draw = random.Random(f"{split}, {seed}")
    films = reviews.eval_prompts(split)
    prompts = [film for film in draw.choices(films, k=count) for _ in range(2)]
    rollouts = sample_text(policy, tokenizer, prompts, seed=draw.randrange(10**9), batch_size=256)
    texts = [text for rollout in rollouts for text in decode(tokenizer, rollout)]
    scores = gold_judge()(prompts, texts).tolist()
    rows = []
    for i in range(0, len(texts), 2):
        gap = scores[i] - scores[i + 1]
        first = draw.random() < 1 / (1 + math.exp(-gap))
        chosen, rejected = (i, i + 1) if first else (i + 1, i)
        rows.append(
            {
                "prompt": prompts[i],
                "chosen": texts[chosen],
                "rejected": texts[rejected],
                "gap": gap if first else -gap,
            }
        )
    return Dataset.from_list(rows)


def margins_and_gaps(score: Score, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Score of chosen - score of rejected, and the same of gold, on HELD_OUT pairs of samples."""
    tokenizer = load_policy(POLICY)[1]
    pairs = gold_pairs("val", HELD_OUT, 1000 + seed)[:]
    chosen, rejected = (
        torch.cat(
            [
                score(encode(tokenizer, pairs["prompt"][i : i + 250], pairs[side][i : i + 250]))
                for i in range(0, HELD_OUT, 250)
            ]
        )
        for side in ("chosen", "rejected")
    )
    return chosen - rejected, torch.tensor(pairs["gap"], device="cpu")


def judges() -> dict[str, Score]:
    """Gold, and two other judges."""
    tokenizer = load_policy(POLICY)[1]
    of_texts = {"gold": gold_judge(), "gold_ensemble": ensemble_judge(), "lexicon": lexicon_judge()}
    return {name: rollout_judge(judge, tokenizer) for name, judge in of_texts.items()}


@dataclass(frozen=True)
class Pool:
    """SAMPLES responses to each of FILMS films, from which best-of-n chooses.

    parts: the responses in batches, film by film. columns: name -> (FILMS, SAMPLES), what judges
    give them.
    """

    parts: list[Rollout]
    columns: dict[str, torch.Tensor]

    def scored(self, score: Score) -> torch.Tensor:
        """The scores (FILMS, SAMPLES) of all responses."""
        return torch.cat([score(part) for part in self.parts]).view(FILMS, SAMPLES)


@cache
def pool() -> Pool:
    """The pool, the same for all proxies and seeds."""
    policy, tokenizer = load_policy(POLICY)
    films = random.Random(0).sample(reviews.eval_prompts("test"), FILMS)
    parts = []
    for i, film in enumerate(films):
        asked = [film] * SAMPLES
        rollouts = sample_text(policy, tokenizer, asked, seed=7000 + i, batch_size=1024)
        of_film = Rollout.concat(rollouts)
        by_length = of_film.response_mask.sum(1).argsort()  # less padding in a batch
        parts += [of_film.select(rows) for rows in by_length.split(256)]
    made = Pool(parts, {})
    for name, judge in judges().items():
        made.columns[name] = made.scored(judge)
    made.columns["length"] = made.scored(lambda part: part.response_mask.sum(1).float())
    return made


def best_of_n_history(scores: torch.Tensor) -> list[dict]:
    """Rows of best-of-n in the History, see `overoptimisation_run`.

    Args:
        scores: (FILMS, SAMPLES), what the best response is chosen by.
    """
    columns, rows = pool().columns | {"proxy": scores}, []
    for n in NS:
        means = {name: best_of_n_mean(column, scores, n) for name, column in columns.items()}
        row = {name: by_film.mean().item() for name, by_film in means.items()}
        rows.append(
            {"way": "best-of-n", "n": n, "kl": best_of_n_kl(n)}
            | row
            | {f"{k}_by_prompt": rounded(means[k].tolist()) for k in ("proxy", "gold")}
        )
    return rows


def rl_history(score: Score, held_out: Score, config: GroupConfig, on_step: OnStep) -> list[dict]:
    """Rows of the policy gradient in the History, see `overoptimisation_run`."""
    policy, tokenizer = load_policy(POLICY)
    texts: list[list[str]] = []  # of each step

    def kept(rollout: Rollout) -> torch.Tensor:
        texts.append(decode(tokenizer, rollout))
        return score(rollout)

    monitors = judges()
    _, history = train_group(
        trainable(policy),
        tokenizer,
        reviews.rl_prompts(),
        kept,
        config,
        reference=policy,
        monitors=monitors | {"held_out": held_out},
        on_step=on_step,
    )
    wanted = ("step", "kl", *monitors, "held_out", "length", "entropy", "missing_eos")
    one_each = slice(0, 3 * config.group_size, config.group_size)  # of three prompts
    return [
        {
            "way": "rl",
            "proxy": row["score"],
            "texts": some[one_each] if row["step"] % 4 == 0 else [],
        }
        | {name: row[name] for name in wanted}
        | {"distinct_2": evaluate.distinct_n(some, 2)}
        for row, some in zip(history, texts, strict=True)
    ]


def rounded(values: list[float]) -> list[float]:
    """The values with four decimals: a record of thousands of them stays small."""
    return [round(value, 4) for value in values]
