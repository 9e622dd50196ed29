"""Lesson 14, section 4: DPO and IPO on four pairs. The runs take minutes, so their numbers are kept.

`four_pairs_14.json` has them. `python -m tests.claims.four_pairs_14` makes it anew, and a slow test
compares it with the runs.
"""

import copy
import json
from pathlib import Path

import torch

from minirlhf import evaluate, models, rewards, tasks
from minirlhf.loops import DPOConfig, train_dpo

KEPT = Path(__file__).with_suffix(".json")
VARIANTS = (("dpo", 0.1), ("dpo", 1.0), ("ipo", 0.1), ("ipo", 0.01))
STOPPED = (("dpo", 0.1, 16), ("ipo", 0.1, 16), ("ipo", 0.01, 16))  # loss, beta, updates
WRITTEN = (
    ("dpo", 0.1, 1, 0),
    ("dpo", 0.1, 4, 0),
    *((*variant, seed) for variant in STOPPED for seed in (0, 1, 2)),
)


def pairs_of(seed):
    tokenizer = models.load_policy("tiny-reviews-sft")[1]
    of = {"max_tokens": 32, "tokenizer": tokenizer}
    return tasks.reviews.preference_pairs("reward", 4, seed=seed, **of)


def four_pairs(loss, beta, updates=16, seed=0):
    """(policy, the mean h of four pairs before each update), trained again as section 4 does."""
    torch.set_num_threads(1)
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    config = DPOConfig.plain(loss=loss, beta=beta, batch_size=4, steps=updates)
    policy, log = train_dpo(copy.deepcopy(sft), tokenizer, pairs_of(seed), config)
    return policy, [row["rewards/margins"] / beta for row in log]


def written(policy, seed):
    """KL and gold of two reviews for each test film, and h: the mean of the four pairs."""
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    films = tasks.reviews.eval_prompts("test")
    drawn = evaluate.draw(policy, tokenizer, films, samples_per_prompt=2, reference=sft)
    both = evaluate.scored_pairs(pairs_of(seed), tokenizer, policy=policy, reference=sft)
    row = evaluate.summary(drawn, {"gold": rewards.gold_judge()})
    h = (both.chosen - both.rejected).mean().item()
    return {"kl": row["kl"], "gold": row["gold"], "h": h}


def trained_again():
    """What the file keeps: h of each run, and what its policy writes."""
    runs = {run: four_pairs(*run) for run in ((*v, 16, 0) for v in VARIANTS)}
    runs |= {run: four_pairs(*run) for run in WRITTEN if run not in runs}
    return {
        "h": {f"{loss} {beta}": runs[loss, beta, 16, 0][1] for loss, beta in VARIANTS},
        "start": written(models.load_policy("tiny-reviews-sft")[0], 0),
        "written": [written(runs[run][0], run[-1]) for run in WRITTEN],
    }


def kept():
    """What the file keeps."""
    return json.loads(KEPT.read_text("utf-8"))


def tables(found):
    """(variant -> h, run -> what its policy writes). "start": the SFT model."""
    h = {variant: torch.tensor(path) for variant, path in found["h"].items()}
    rows = dict(zip(WRITTEN, found["written"], strict=True))
    return h, rows | {"start": found["start"]}


if __name__ == "__main__":
    KEPT.write_text(json.dumps(trained_again(), indent=1) + "\n", "utf-8")
