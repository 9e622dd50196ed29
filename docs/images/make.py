"""Draw the diagrams of this folder, each as SVG and PNG, and the microscope's still pictures.

    python docs/images/make.py

The numbers are real. Those of the four models and of the PPO step come from the fourth of eight
PPO steps on reviews. Those of the GRPO group come from one arithmetic problem. The results in the
pipeline are those of the recorded tour. The microscope shows the recorded run of lesson 06, and
the group of lesson 11. It takes about two minutes.
"""

from pathlib import Path

import matplotlib
import torch

from minirlhf import core, evaluate, experiments, loops, models, rewards, show, tasks
from minirlhf.runtime import atomic_path

FOLDER = Path(__file__).parent
STEPS, SHOWN = 8, 4  # PPO steps, and the one that is drawn
GROUP, PROBLEM = 8, "(7+5)*3-9="
NOTE = "~ answers at once, without written steps"


def ppo_batch():
    """The batch of PPO step SHOWN, with all its columns, and that step's row of the history."""
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    reward_model, _ = models.load_scalar("tiny-reviews-reward")
    critic, _ = models.load_scalar("tiny-reviews-reward")
    actor, _ = models.load_policy("tiny-reviews-sft")
    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
    seen, batches = {}, []

    def keep_batch(batch):
        seen["batch"] = batch
        return score(batch)

    def keep_gae(rewards, values, mask, **settings):
        advantages, returns = core.gae(rewards, values, mask, **settings)
        seen["columns"] = {"rewards": rewards, "values": values, "returns": returns}
        return advantages, returns

    def keep_whitened(advantages, mask):
        seen["advantages"] = core.masked_whiten(advantages, mask)
        return seen["advantages"]

    def keep_rewards(scores, old_logprobs, ref_logprobs, mask, **settings):
        seen["penalised"] = {"scores": scores, "ref_logprobs": ref_logprobs}
        return core.kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, **settings)

    def keep_columns(row):
        columns = {**seen["columns"], **seen["penalised"], "advantages": seen["advantages"]}
        batches.append(seen["batch"].with_columns(**columns))

    config = loops.PPOConfig(steps=STEPS)
    formulas = loops.PPOFormulas(
        gae=keep_gae, masked_whiten=keep_whitened, kl_shaped_rewards=keep_rewards
    )
    *_, history = loops.train_ppo(
        actor,
        critic,
        tokenizer,
        tasks.reviews.rl_prompts(),
        keep_batch,
        config,
        formulas=formulas,
        reference=sft,
        on_step=keep_columns,
    )
    return batches[SHOWN - 1], history[SHOWN - 1]


def group():
    """One arithmetic problem, the tokens of its sampled responses, and their scores."""
    policy, tokenizer = models.load_policy("tiny-steps")
    ids, mask = models.encode_prompts(tokenizer, [PROBLEM])
    batch = models.sample(
        policy,
        ids,
        mask,
        eos_id=tokenizer.eos_token_id,
        samples_per_prompt=GROUP,
        config=models.SamplingConfig(temperature=1.0),
        generator=torch.Generator().manual_seed(0),
    )
    tokens = [
        ["EOS" if i == tokenizer.eos_token_id else tokenizer.decode(i) for i in row[real]]
        for row, real in zip(batch.response_ids, batch.response_mask, strict=True)
    ]
    texts = models.decode(tokenizer, batch)
    return tokens, rewards.right_answer([PROBLEM] * GROUP, texts)


def recorded():
    """Gold score and KL of each policy in the recorded tour, means over its seeds."""
    tour = experiments.results("tour")
    gold, kl = (
        experiments.mean_over_seeds(tour, column, by="method")["mean"] for column in ("gold", "kl")
    )
    return {"SFT": f"gold score {gold['SFT']:.2f}"} | {
        name: f"gold score {gold[name]:.2f} KL {kl[name]:.1f} nats"
        for name in ("PPO", "GRPO", "DPO")
    }


def microscope():
    """The token microscope of lesson 06, before the first update."""
    run = experiments.results("microscope")
    return show.microscope(run[run.source == "fresh"], "advantage", text="all")


def microscope_group():
    """The token microscope of lesson 11: eight responses to one problem, and their advantages."""
    start, tokenizer = models.load_policy("tiny-steps")
    (batch,) = models.sample_text(
        start,
        tokenizer,
        ["16+16+11="] * GROUP,
        config=models.SamplingConfig(max_new_tokens=24, temperature=1.0),
        seed=2,
    )
    scores = rewards.reward_function(rewards.right_answer, tokenizer)(batch)
    advantages = core.over_tokens(core.group_relative(scores[None]), batch.response_mask)
    batch = batch.with_columns(scores=scores, advantages=advantages)
    tokens = evaluate.token_table(batch, tokenizer, actor=start, temperature=1.0)
    return show.microscope(tokens, "advantage", text="all")


def main():
    microscope().save(FOLDER / "microscope.png")
    microscope_group().save(FOLDER / "microscope_group.png")
    batch, row = ppo_batch()
    tokens, scores = group()
    figures = {
        "pipeline": show.pipeline(recorded()),
        "four_models": show.four_models(batch, kl_coef=row["kl_coef"]),
        "ppo_step": show.ppo_step(batch, row=row),
        "grpo_group": show.grpo_group(PROBLEM, tokens, scores, note=NOTE),
    }
    for name, figure in figures.items():
        for ending in ("svg", "png"):
            with (
                matplotlib.rc_context({"svg.hashsalt": "minirlhf"}),
                atomic_path(FOLDER / f"{name}.{ending}") as path,
            ):
                metadata = {"Date": None} if ending == "svg" else {}
                figure.savefig(path, format=ending, metadata=metadata)


if __name__ == "__main__":
    main()
