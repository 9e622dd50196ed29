# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · The whole of RLHF in three minutes
#
# **The question.** How does a model that imitates become a model that people prefer?
#
# We take `tiny-reviews`, a GPT-2 of four million parameters that has read film reviews, and push it towards what 10,448 snippets'
# human ratings call *positive*. Three stages:
#
# 1. **SFT** (supervised fine-tuning): show it titles with reviews; it learns the format.
# 2. **Reward model**: from pairs of reviews, one rated higher by one person, learn a score r, so that P(A preferred to B) = sigmoid(r_A - r_B) (Bradley and Terry 1952).
# 3. **PPO**: let it write, score what it wrote, make the good more likely, and keep it on a leash.
#
# **What "preferred" means here.** Nobody compared two reviews. People said how positive a snippet is, from -4 to 4, and *we* define
# preferred as more positive. Whether that is a good thing to want is lesson 02's business.
#
# The samples imitate critics and come from a small model. They are often ungrammatical and may offend.
#
# **Predict.** The reward model will pay for positive words. After PPO, will the reviews be longer or shorter than SFT's? More or less varied? Would you, a reader, like them better? Three words, written down; the table below answers the first two.

# %%
# %matplotlib inline
import torch
from IPython.display import display

from minirlhf import evaluate
from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim, evidence, load_results
from minirlhf.classroom.lessons.concepts import Questions, graded
from minirlhf.loops.config import KLConfig
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.forward import decode
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.gold import gold_judge
from minirlhf.rewards.model import prefix_scores, rollout_score
from minirlhf.runtime import set_threads
from minirlhf.show import curves, frontier
from minirlhf.show.strips import token_strip
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

set_threads()
torch.manual_seed(0)
policy, tokenizer = load_policy("tiny-reviews-sft")
reward_model, _ = load_scalar("tiny-reviews-reward")
score = rollout_score(reward_model, tokenizer.eos_token_id)

# %% [markdown]
# ## Before: what the SFT model writes
#
# Six titles of films that no training saw, one sample each, unselected.

# %%
titles = reviews.eval_prompts("test")[:6]


def write(model, seed=0):
    """One sample a title, with its reward."""
    (rollout,) = sample_text(model, tokenizer, titles, seed=seed)
    return decode(tokenizer, rollout), score(rollout)


before, before_scores = write(policy)
for title, text, points in zip(titles, before, before_scores.tolist(), strict=True):
    print(f"{points:+.1f}  {title.strip()}: {text}")

# %% [markdown]
# ## The reward model reads
#
# It is the same network with its last layer replaced by `nn.Linear(hidden, 1)`: one number where there was a distribution over words.
# Bradley-Terry fixes differences only, so the score has no zero of its own; we choose: 0 is the mean of the SFT model's samples, the unit their standard deviation.
#
# **Predict, then run:** which word of the sentence moves the score most?

# %%
sentence = "A moving and funny film, but the ending is dull."
tokens, with_eos, one_pass = prefix_scores(reward_model, tokenizer, "the film\n", sentence)
display(token_strip(tokens, with_eos, title="the reward of each prefix + EOS"))

# %% [markdown]
# ## PPO: write, score, adjust
#
# One step of PPO, in words:
#
# - **rollout**: the actor (the policy that learns) writes 64 reviews; the log-probability (log pi) of each token it chose is recorded;
# - **score**: the reward model gives each review one number;
# - **leash**: every token pays `kl_coef * (log pi - log pi_ref)`, the reference being a frozen copy of the SFT model;
# - **advantage**: was a token better than the critic expected? (The critic predicts the reward from the text so far; it starts as a copy of the reward model.)
# - **update**: make tokens with positive advantage more likely, negative less; the *ratio* of new to old probability is clipped, so that no token goes too far in one step.
#
# A few steps now, live, on this machine; the full run has four times as many.

# %%
actor, critic = trainable(policy), trainable(reward_model)  # copies: the originals stay as they are
config = PPOConfig(steps=1, batch_size=8, minibatch_size=4) if FAST else PPOConfig(steps=6)
actor, critic, history = train_ppo(
    actor,
    critic,
    tokenizer,
    reviews.rl_prompts(),
    score,
    config,
    on_step=lambda row: print(
        f"step {row['step']}  score {row['score']:+.2f}  kl {row['kl']:.2f}  ratio {row['ratio']:.3f}"
    ),
)

# %% [markdown]
# At the first minibatch the policy is still the one that sampled, so the ratio is 1 and nothing is clipped; and the actor is still a
# copy of the reference, so the KL of the first rollout is 0 but for rounding. (The ratio printed above is the mean over a step's four minibatches.) One step with one minibatch shows both; they are exact, so they are asserted:

# %%
assert abs(history[0]["kl"]) < 1e-3
size = 8 if FAST else 64
once = PPOConfig(steps=1, epochs=1, batch_size=size, minibatch_size=size, seed=0)
first = train_ppo(
    trainable(policy), trainable(reward_model), tokenizer, reviews.rl_prompts(), score, once
)[2][0]
print(f"ratio {first['ratio']:.6f}   clip fraction {first['clip_fraction']}")
assert abs(first["ratio"] - 1) < 1e-4 and first["clip_fraction"] == 0

# %% [markdown]
# ## After: the full run
#
# The tour (`make tour`) does the same with more steps, then DPO and GRPO from the same start. Below is what `make grid` recorded
# on three seeds; your own run is in `out/tour/report.html`.

# %%
rows = load_results("tour")
seeds = sorted({row["seed"] for row in rows})
methods = list(dict.fromkeys(row["method"] for row in rows))


def mean(method, key):
    values = [row[key] for row in rows if row["method"] == method]
    return sum(values) / len(values)


print(f"{'method':>11} {'gold':>7} {'proxy':>7} {'KL':>6} {'tokens':>7} {'distinct-2':>10} {'unfinished':>11}")
for m in methods:
    gold, proxy, kl, length, distinct = (
        mean(m, key) for key in ("gold", "proxy", "kl", "length", "distinct_2")
    )
    cut = mean(m, "missing_eos")
    print(f"{m:>11} {gold:7.2f} {proxy:7.2f} {kl:6.2f} {length:7.1f} {distinct:10.2f} {cut:11.0%}{'   (KL: its bound)' if 'best' in m else ''}")

# %% [markdown]
# The same six titles after PPO, as recorded: seed 0, one sample each, unselected. Read them beside the first ones.

# %%
after = next(row["samples"] for row in rows if row["method"] == "PPO" and row["seed"] == 0)
assert list(after) == titles
for title, text in after.items():
    print(f"{title.strip()}: {text}")

# %%
display(frontier(rows, by="method", ylabel="gold score (predicted rating, -4..4)"))

# %% [markdown]
# *Gold* is a scorer that no training saw: it predicts the mean rating that people would give. *Proxy* is the reward model that PPO maximises.
# Bars are the range over seeds. More gold for the same KL is better.


# %%
def ppo_now():
    """One seed on this machine, a minute or two: the tour's PPO, judged on held-out titles as the tour judges."""
    actor, critic = trainable(policy), trainable(reward_model)
    train_ppo(
        actor, critic, tokenizer, reviews.rl_prompts(), score, PPOConfig(seed=0), reference=policy
    )
    setting = {"samples_per_prompt": 4, "reference": policy, "seed": 1000}
    drawn = {
        name: evaluate.draw(m, tokenizer, reviews.eval_prompts("test"), **setting)
        for name, m in (("SFT", policy), ("PPO", actor))
    }
    return [
        {"method": name, "seed": 0, **evaluate.summary(samples, {"gold": gold_judge()})}
        for name, samples in drawn.items()
    ]


# %%
found = evidence(ppo_now, "tour")  # a full run computes it; FAST=1 reads the record
gold = {(row["method"], row["seed"]): row["gold"] for row in found}
better = [gold["PPO", s] - gold["SFT", s] for method, s in gold if method == "PPO"]
print("gold, PPO - SFT, of the run above:", ", ".join(f"{b:+.2f}" for b in better))
assert min(better) > 0.5
by_seed = {(row["method"], row["seed"]): row["gold"] for row in rows}
three = [by_seed["PPO", s] - by_seed["SFT", s] for s in range(3)]
claim(
    "PPO's samples are judged more positive than SFT's by a scorer that it never saw, on every recorded seed.",
    min(three) > 0.5,
    evidence="gold, PPO - SFT: " + ", ".join(f"{b:+.2f}" for b in three),
    seeds=len(three),
)
most = [by_seed["best-of-16", s] - by_seed["PPO", s] for s in range(3)]
print("gold, best-of-16 - PPO, by seed:", ", ".join(f"{b:+.2f}" for b in most))
assert min(most) > 0 and mean("best-of-16", "kl") < mean("PPO", "kl")

# %% [markdown]
# ## How a run is read
#
# Score and gold should rise together; when the score rises and gold does not, the policy has found what the reward model likes and people do
# not. (Gold may rise and the texts become alike all the same: read them, and look at distinct-2. Lesson 07 has such runs.) Entropy falling to 0 is a collapse. A KL that runs away says that the leash is too loose.

# %%
recorded = load_results("tour_history")
by_seed = [[row for row in recorded if row["seed"] == s] for s in seeds]
columns = ["gold", "score", "kl", "entropy", "length", "clip_fraction"]
display(curves(by_seed, stage="ppo", columns=columns))

# %% [markdown]
# ## Exercises
#
# Each checker says *pass*, or the likely mistake in one sentence. Write, run, mend.
#
# **1. Best of n** *(easy, 5 minutes)*. The simplest use of a reward model needs no training: write n reviews, keep the best. Given `scores`
# of shape (N * n,), each prompt's n side by side, return the N row numbers of the best.
#
# *Hint:* reshape to (N, n); `argmax` gives places within a group.


# %%
def best_of_n(scores, n): ...  # your code


print(check.best_of_n(best_of_n))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def best_of_n(scores, n):
#     groups = scores.view(-1, n)
#     return torch.arange(len(groups)) * n + groups.argmax(1)
# ```
# </details>
#
# **2. The leash by hand** *(medium, 10 minutes)*. Given the score of each response, the log-probabilities of its tokens under policy and
# reference, the mask of real tokens and `kl_coef`, return what PPO maximises: score minus `kl_coef` times the sum over real tokens of log pi - log pi_ref.
#
# *Hint:* padding may hold anything; mask before you sum.


# %%
def kl_penalised_score(scores, logprobs, ref_logprobs, mask, kl_coef): ...  # your code


print(check.kl_penalised_score(kl_penalised_score))


# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def kl_penalised_score(scores, logprobs, ref_logprobs, mask, kl_coef):
#     log_ratio = torch.where(mask, logprobs - ref_logprobs, 0.0)
#     return scores - kl_coef * log_ratio.sum(1)
# ```
# </details>
#
# **3. Predict, then run** *(5 minutes)*. What happens to KL and to the samples with `KLConfig(kl_coef=0.0)`? And with 1.0? Write your guess down,
# then take the hashes away below (a minute or two each) and read.
#
# <details><summary>What you should see</summary>
#
# Without the leash the score climbs and the KL with it, far beyond that of the recorded runs; the entropy falls towards 0, and the samples say the same few words of praise over and over: the
# reward model likes it, you will not. At 1.0 KL and score stay below those of the recorded runs, and the samples
# are SFT's, a little warmer.
# </details>
#
# %%
def with_leash(kl_coef):
    """PPO from the SFT model with another leash: its last step, and six samples."""
    actor, critic = trainable(policy), trainable(reward_model)
    config = PPOConfig(kl=KLConfig(kl_coef=kl_coef))
    last = train_ppo(actor, critic, tokenizer, reviews.rl_prompts(), score, config)[2][-1]
    print({name: round(last[name], 2) for name in ("score", "kl", "entropy", "length")})
    print(*write(actor)[0], sep="\n")


# with_leash(0.0)
# with_leash(1.0)

# %% [markdown]
# **4. Read the table** *(5 minutes)*. Best-of-16 uses sixteen samples for each it keeps and trains nothing. Where does it stand beside PPO in gold
# and in KL? When would you use it instead?
#
# <details><summary>What a good answer has</summary>
#
# In the record it has more gold than PPO on every seed, at a KL that is no higher in the mean. Its KL is not measured but bounded, by log n - (n - 1)/n. It costs n samples for each answer, every time; PPO pays once, in training. Best-of-n cannot go further than the best of what SFT
# writes, PPO can, also where the reward model is wrong.
# </details>

# %% [markdown]
# ## What the libraries do
#
# | | this package | TRL (1.12) | OpenRLHF (0.11) | DeepSpeed-Chat |
# |---|---|---|---|---|
# | the three stages | `sft`, `reward`, `ppo` | SFTTrainer, RewardTrainer, PPOTrainer (experimental) | one command each | steps 1, 2, 3 |
# | the leash | in the reward, each token | in the reward, each token | in the reward, or in the loss | in the reward, each token |
# | the critic begins as | the reward model | a model you name | a model you name, customarily the reward model | the reward model |
# | scores | normalised on SFT's samples | as they are; whitening by an option | normalised by an option | clipped to ±5 |
#
# Later TRL versions have no PPO trainer; GRPO (lesson 11) took its place there.
#
# ## Questions
#
# <details><summary>1. Which of the three stages could you leave out, and what would you lose?</summary>
# SFT: then PPO starts from a model that does not know the format, and must find it by chance. The reward model: if a program can score the text (arithmetic, tests of code), it is not needed. PPO: best-of-n uses the reward model without training.
# </details>
# <details><summary>2. Why are the samples judged by another scorer than the one that PPO maximised?</summary>
# What is maximised is met by its mistakes as well. A scorer that no training saw has mistakes of its own, and nobody looked for them.
# </details>
# <details><summary>3. Why is the KL exactly 0 at the first rollout and not later?</summary>
# The actor begins as a copy of the reference. Every update moves it.
# </details>
# <details><summary>4. Why does the reward model read only finished texts?</summary>
# It was trained where texts end (lesson 01).
# </details>
# <details><summary>5. What in this notebook was decided by people, and what by us?</summary>
# People rated how positive a snippet is. We said that more positive is better, that each rating counts alike, and how strong the leash is.
# </details>
#
# ## What do you believe now?
#
# Twelve questions on what people get wrong about RLHF. Answer with twelve letters, `-` where you do not know, and note the number you got: the same twelve are asked at the end of lesson 09, with reasons. What is not right yet names the lesson to read.

# %%
Questions()

# %%
my_answers = "- - - - - -  - - - - - -"  # yours
print(graded(my_answers))

# %% [markdown]
# ## The map
#
# Lessons 00 to 09 are here, with 90, every estimator against the truth, and 91, the worked example on a page to print; 10 to 23 are to come. Exercises marked *goes into your `my_rlhf.py`* end in a tour of your own: `minirlhf tour --mine my_rlhf.py`.
#
# | part | lessons |
# |---|---|
# | I From preferences to PPO | 01 why RLHF · 02 feedback is data · 03 a policy · 04 policy gradient · 05 GAE · 06 PPO · 07 the KL leash · 08 reward model · 09 the four models |
# | II Without the critic | 10 saving resources · 11 GRPO · 11b five objections to GRPO (a lab) |
# | III Without the reward model | 12 DPO · 13 secretly a Q-function · 14 repairs · 15 finer feedback |
# | IV What the reward model gets wrong | 16 over-optimisation · 17 kinds · 18 biases · 19 Nash learning |
# | V, VI Inference; choosing | 20 search · 21 revision · 22 which one · 23 leaving home |
#
# **References.** Ziegler et al. 2019, *Fine-tuning language models from human preferences*, sections 2 and 3. Stiennon et al. 2020, *Learning to
# summarize from human feedback*, section 3. Ouyang et al. 2022, *Training language models to follow instructions with human feedback*, section 3.
