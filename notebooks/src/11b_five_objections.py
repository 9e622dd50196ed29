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
# # 11b · Five objections to GRPO (a lab)
#
# After this lab you can
#
# - turn an opinion about an algorithm into a prediction and an experiment,
# - say for each of five objections to GRPO what our runs show, and what they do not show,
# - build an interval from three seeds, and give a verdict: ahead, behind, equal or undecided.
#
# **You need** lesson 11 (GRPO), lesson 06 (PPO) and lesson 10 (what four models cost). About 30
# minutes to read and 75 for the exercises.

# %%
import pandas as pd
import torch

from minirlhf import core, experiments, models, show
from minirlhf.classroom import check

# %% [markdown]
# ## What is on trial
#
# PPO's baseline is a trained network, the critic. **Group relative policy optimisation (GRPO)** has
# no critic. It samples a group of responses to each prompt. The advantage of a response is its
# score minus the mean of the group, divided by the group's standard deviation (std).
#
# Each section states one of five objections, asks for your prediction, runs an experiment and gives
# a **verdict**. Write your prediction down before you run the next cell.

# %% [markdown]
# ## 1. Sampling is expensive
#
# > **Objection.** With models of 70 billion parameters (70B), sampling takes about as long as
# > training. GRPO removes the critic but samples more responses. So it may lose more time than it
# > saves.
#
# We use the cost model of lesson 10. It computes the time of a step from its arithmetic and from the
# bytes that it reads. A step has three parts: sampling, **scoring** (the other models read the
# responses) and training. We assume 64 H100 GPUs. A step samples 1,024 responses of 1,024 tokens
# each, for 128 prompts of 512 tokens.
#
# To sample one token, the GPUs read all weights once. Responses that are **decoded together** share
# this reading. So their number decides how fast sampling is.


# %% tags=["shared"]
machine = models.H100.times(64)


def parts(together, critic, prompts=128):
    """Seconds of the parts of a step. critic: "separate" (PPO) or "none" (GRPO)."""
    plan = models.Plan(
        prompts=prompts, group_size=8, bf16=True, decode_batch=together, critic=critic
    )
    return models.step_seconds(machine, plan, models.LLAMA_70B)


# %% [markdown]
# **Predict.** PPO trains two models, the actor and the critic. Which takes longer in one step,
# sampling or training, if 16 responses are decoded together? And if 256 are?

# %% tags=["predict"]
pd.DataFrame({n: parts(n, "separate") for n in (16, 64, 256)}).round()

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The columns are numbers of responses decoded together, the cells are seconds. With 16 responses
# sampling takes longer: 74 seconds, against 53 for training. With 256 it takes only 8 seconds.
# </details>

# %%
sizes = [8, 16, 32, 64, 128, 256, 512]
plans = {
    "PPO": pd.DataFrame({n: parts(n, "separate") for n in sizes}),
    "GRPO": pd.DataFrame({n: parts(n, "none") for n in sizes}),
    "GRPO, 1.5 times the responses": pd.DataFrame(
        {n: parts(n, "none", prompts=192) for n in sizes}
    ),
}
ratios = {
    name: plans[name].loc["sampling"] / plans[name].loc["training"]
    for name in ("PPO", "GRPO")
}

# %%
panel = "seconds of sampling per second of training"
show.lines(
    {
        panel: ratios,
        "seconds of a whole step": {name: x.sum() for name, x in plans.items()},
    },
    sizes,
    xlabel="responses decoded together",
    log="x",
    reference={panel: {"equal": 1}},
)

# %% [markdown]
# - **Left.** Sampling takes as long as training (ratio 1) at about 23 responses decoded together
#   for PPO, and at about 49 for GRPO.
# - **Right.** GRPO with the same number of responses takes less time than PPO everywhere. No critic
#   means 35 seconds less: 26 of training and 9 of scoring. The longer sampling takes, the smaller is
#   the share that is saved: 16 % of the step at 8 responses decoded together, 41 % at 512.
# - **Right, orange.** With 1.5 times as many responses, GRPO takes about as long as PPO at 49
#   responses decoded together. At 8 it is 27 % slower, at 512 it is 12 % faster.
#
# **Verdict: half right.** Sampling and training can take equally long. But with the same number of
# responses GRPO is faster.

# %% [markdown]
# ## 2. The system is hardly simpler
#
# > **Objection.** Several models must still work together, for sampling and for training. So GRPO's
# > system is hardly simpler than PPO's.
#
# PPO has four models: actor, critic, reward model and reference. GRPO has no critic. Often a rule
# replaces the reward model, too, but that has nothing to do with GRPO.
#
# **Predict.** At 70B, PPO's four models need 2.6 TB of memory at the worst moment of a step. How
# much of it goes with the critic, and how much with the reward model?


# %%
def held(critic, reward_model):
    """Bytes of each model: weights, gradients, optimiser and so on."""
    plan = models.Plan(
        prompts=128, group_size=8, bf16=True, critic=critic, reward_model=reward_model
    )
    return models.four_models(plan, models.LLAMA_70B)


systems = {
    "PPO": held("separate", True),
    "GRPO": held("none", True),
    "GRPO with a rule": held("none", False),
}

# %% tags=["predict"]
pd.Series({name: models.peak_bytes(s) / 1e12 for name, s in systems.items()}).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Without the critic 1.46 of 2.57 TB are left. Without the reward model it is 1.32 TB. So the critic
# takes 1.11 TB with it, and the reward model only 0.14 TB.
# </details>

# %%
kept = ["weights", "gradients", "optimiser"]
held_by = {name: pd.DataFrame(s).loc[kept].sum() for name, s in systems.items()}
show.bars(pd.DataFrame(held_by).T / 1e12, label="TB: weights, gradients, optimiser")

# %% [markdown]
# A trained model takes 16 bytes per weight: 2 for the weight, 2 for its gradient and 12 for the
# optimiser. A frozen one takes 2. Besides the actor, only the critic is trained.
#
# **Verdict: right about the system, silent about the memory.** Three of four models remain. But
# 43 % of the memory is saved.

# %% [markdown]
# ## 3. It is not better than PPO
#
# > **Objection.** GRPO and its relatives do not clearly beat PPO. A baseline from samples may be
# > more accurate than a critic. But one can train the critic first, while the actor is frozen, or
# > give PPO more responses per prompt.
#
# We ran the methods on the arithmetic task of lesson 11: a rule gives 1 for a right answer and 0
# for a wrong one. Every run trains for 80 steps, on 128 responses per step, and every method has three
# seeds. GRPO's groups of 8 leave room for 16 prompts per step. A method without groups takes 128
# prompts.
#
# What each method changes:
#
# | method | prompts per step | baseline and changes |
# |---|---|---|
# | **RLOO** (REINFORCE leave-one-out) | 16 | the mean of the *other* responses to the prompt; no division by the standard deviation |
# | **Dr. GRPO** | 16 | GRPO without that division; a response's loss is divided by a constant, not by its own length |
# | **DAPO** | 16 | GRPO with a wider upper end of the clip (0.28 instead of 0.2) and the mean over all tokens of the batch; it penalises responses close to the length limit, and replaces groups of equal scores, so it *samples* 150 responses per step on average |
# | **GSPO** | 16 | GRPO with one importance ratio for the whole response ("Going further") |
# | **CISPO** | 16 | GRPO in which every token keeps its gradient ("Going further"); the mean over all tokens of the batch |
# | **REINFORCE** | 128 | the running mean of earlier batches' scores |
# | **ReMax** | 128 | REINFORCE with another baseline: the score of a second response to the prompt, the *greedy* one (always the most likely token); so it *samples* 256 responses per step |
# | **REINFORCE++** | 128 | the mean of the batch; advantages are divided by the standard deviation of the batch |
# | **REINFORCE++-baseline** | 16 | REINFORCE++, but the baseline is the mean of the group |
# | **PPO** | 128 | the critic |
# | `ppo, critic trained first` | 128 | PPO; in the first 15 of the 80 steps only the critic learns |
# | `ppo, 8 responses a prompt` | 16 | PPO with 8 responses to each prompt, as GRPO has |
#
# **pass@1** is the share of single samples that are right. We measure it on 400 problems that no
# run trained on, with 16 samples each.
#
# **Predict.** The untrained model has a pass@1 of 0.40, and GRPO reaches 0.68. Where do you expect
# PPO, and where REINFORCE, the plainest method?

# %% tags=["predict"]
family = experiments.results("family")
four = family[family.variant.isin(["start", "grpo", "ppo", "reinforce"])]
experiments.shown(four, {"pass_1": "pass@1"}, digits=3)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# On average PPO has 0.70 and REINFORCE 0.73. The brackets give the lowest and the highest of the
# three seeds. PPO's range overlaps with GRPO's. REINFORCE's range lies above both.
# </details>
#
# ### 3a. An interval over seeds, by hand
#
# A range does not say what *other* seeds would give. A **95 % interval** does. We build it for RLOO
# and GRPO.
#
# **Pair the runs.** Two runs with the same seed get the training problems in the same order. If this
# order is lucky, both runs score higher, and their difference hardly changes. So for each seed we subtract GRPO's pass@1 from RLOO's.
#
# 1. The three differences are −0.0058, 0.0259 and −0.0064. Their mean is 0.0046.
# 2. How far do they lie apart? Their standard deviation is 0.0185 (`torch.std`, which divides by
#    $3 - 1$).
# 3. A mean of three scatters less. Divide by $\sqrt{3}$: 0.0107, the **standard error**.
# 4. Multiply by 4.30: 0.046. The interval is the mean ± 0.046, from −0.041 to 0.051.
#
# **Why 4.30?** With many differences the factor is 1.96. But three numbers often lie close together
# by luck, and then their standard deviation is too small.
#
# **Predict.** We draw three numbers, ten thousand times. The true mean is 0. How many of the
# intervals contain 0 with the factor 1.96, and how many with 4.30?

# %% tags=["predict"]
draws = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0))
means, errors = draws.mean(1), draws.std(1) / 3**0.5
pd.Series({x: (means.abs() < x * errors).float().mean().item() for x in (1.96, 4.30)})

# %% [markdown]
# <details><summary>What you should see</summary>
#
# With the factor 1.96 only 81 % of the intervals contain the true mean. With 4.30 it is 95 %. The
# factors come from Student's t distribution: 4.30 for three seeds, 3.18 for four, 2.78 for five.
# </details>
#
# **And other problems?** All three runs are tested on the same 400 problems. If these happen to suit
# RLOO, all three differences are too high, and their scatter does not show it. The interval **over
# prompts and seeds** (a prompt is a problem here) adds the scatter between problems ("Going further"
# has the formula). For RLOO this changes almost nothing: 400 problems are many, three seeds are few.
#
# ### 3b. The verdicts
#
# Say beforehand which difference matters to you. On this page it is 0.02, two points.
#
# | the interval | verdict |
# |---|---|
# | lies above 0, even if it stays below 0.02 | **ahead** |
# | lies below 0, even if it stays above −0.02 | **behind** |
# | contains 0, and stays between −0.02 and 0.02 | **equal**, for our purpose |
# | reaches further, and contains 0 | **undecided** |
#
# *Ahead* does not say why. If the methods differ in more than one thing, the **reason is open**.
#
# In the figure, small circles are single runs minus GRPO's mean. They do not show the pairs.

# %%
groups = ["rloo", "dr-grpo", "dapo", "gspo", "cispo"]
single = ["reinforce", "remax", "reinforce++", "reinforce++-baseline"]
ppos = ["ppo", "ppo, critic trained first", "ppo, 8 responses a prompt"]
others = [*groups, *single, *ppos]
show.differences(
    family,
    value="pass_1",
    repeats="grpo",
    variants=others,
    intervals=experiments.difference_over_prompts_and_seeds(
        family, "pass_1", "grpo", others
    ),
    interval_of="95 % interval over prompts and seeds",
    label="pass@1",
)

# %% [markdown]
# - **PPO and GRPO: undecided.** PPO is higher by 0.018 on average [−0.010, 0.045], but it has 128
#   prompts and GRPO 16. With 16 prompts (the last row) the difference is −0.017 [−0.066, 0.033]:
#   undecided, too.
# - **GSPO and CISPO are equal to GRPO.** GSPO *is* GRPO here: every batch is used once, so all ratios
#   are 1, and both have the same gradient. The other methods with groups are undecided.
# - **REINFORCE and REINFORCE++ are ahead of GRPO**, by 0.047 and 0.041. The reason is open: they
#   differ in the prompts, the baseline, the division and more.
# - **But the figure makes twelve comparisons.** A 95 % interval misses the true difference in one
#   case of twenty, so one miss among twelve is not rare. With intervals wide enough for all twelve
#   together, REINFORCE++ is still ahead [0.022, 0.061], but REINFORCE is undecided [−0.058, 0.151].
# - **REINFORCE and PPO: undecided.** REINFORCE is higher by 0.029 on average [−0.016, 0.074], although
#   its lowest seed is above PPO's highest.
#
# Now the objection's two proposals, compared with plain PPO:

# %%
experiments.with_interval(
    experiments.difference_over_prompts_and_seeds(family, "pass_1", "ppo", ppos[1:]),
    digits=3,
).to_frame()

# %% [markdown]
# - Training the critic first: **undecided**. PPO is lower by 0.022 on average, and lower on every
#   seed. The actor trains in 65 steps only.
# - Eight responses per prompt: **behind**, by 0.034. Here the reason is known, because one thing
#   differs: PPO saw 16 different prompts per step instead of 128.
#
# **Verdict: undecided.** GRPO does not clearly beat PPO here, as the objection says. But a win is
# not excluded: with 16 prompts each, GRPO may be better by up to 0.066. Neither change to
# PPO is shown to help. This is one task, and the learning rate was tuned for no method.

# %% [markdown]
# ## 4. Small differences are blown up
#
# > **Objection.** When two rewards differ slightly, 1.001 and 1.000, the division by the standard
# > deviation may blow the difference up.
#
# The arithmetic is right (lesson 11, section 2). There are simple repairs: do not divide, or set a
# lower limit (a **floor**) for the standard deviation. Here one of eight scores is higher:

# %%
gaps = torch.logspace(-6, 0, 61, dtype=torch.float64)
scores = torch.ones(61, 8, dtype=torch.float64)
scores[:, 0] += gaps
show.lines(
    {
        "GRPO": core.group_relative(scores)[:, 0],
        "a floor of 0.1": core.group_relative(scores, min_std=0.1)[:, 0],
        "no std": core.group_relative(scores, scale_by_std=False)[:, 0],
    },
    gaps,
    log="x",
    xlabel="one of eight scores is higher by",
    ylabel="its advantage",
)

# %% [markdown]
# GRPO gives a difference of 0.001 an advantage of 1.9, and a difference of 1 an advantage of 2.5.
# With the floor or without the division, 0.001 stays close to 0.
#
# **Does it harm training?** A rule has no small differences. So we add noise to every score of the
# arithmetic task: a random number between 0 and 0.001. *groups dropped* is a third repair: a group
# whose scores differ by less than 0.01 is replaced by a new one.

# %%
jitter = experiments.results("jitter").replace({"variant": {"grpo": "grpo, noise"}})
show.differences(
    jitter,
    value="pass_1",
    repeats="grpo, noise",
    variants=["grpo, exact scores", "no std", "a floor of 0.1", "groups dropped"],
    intervals=experiments.difference_over_prompts_and_seeds(
        jitter, "pass_1", "grpo, noise"
    ),
    interval_of="95 % interval over prompts and seeds",
    label="pass@1",
)

# %% [markdown]
# (*grpo, exact scores* is the `grpo` of section 3.) Exact scores are **ahead** by 0.009 [0.001,
# 0.016]. Their circles lie far apart, but the three paired differences do not: 0.009, 0.009 and
# 0.007. But this is one interval of four and just excludes 0, so it may be luck.
#
# **No repair is shown to help or to harm**: by
# our rule *no std* and the floor are equal to noisy GRPO, and *groups dropped* is undecided.
#
# Why does the noise cost so little? In most groups some answers are right and some wrong, and the
# noise is tiny beside this difference. And it has no direction: on average it pushes nowhere.
#
# **What if the small difference has a direction?** Suppose a reward model likes one word by 0.001.
# In a world with 7 possible responses every response scores 1, and those that begin with *good*
# score 1.001. We compute the exact mean update over all groups of four.
#
# **Predict.** A third of the responses begin with *good* at the start. How many do after 30 updates:
# with GRPO, with GRPO if *good* is worth a whole point, with a floor of 0.1, and without the
# division?


# %% tags=["predict"]
def train(gap=0.001, **scale):
    """Probability that a response begins with good, over 30 updates."""
    world = core.World.from_reward(
        ("good", "bad", "."), 2, lambda words: 1 + gap * (words[:1] == ["good"])
    )
    good = torch.tensor([label.startswith("good") for label in world.labels])
    logits, path = world.ref_logits, []
    for _ in range(31):
        path.append(world.probs(logits)[good].sum().item())
        logits = logits.detach().requires_grad_(True)
        rows, chance = world.groups(logits, 4)  # all groups, and their probabilities
        advantages = core.group_relative(world.rewards[rows], **scale)
        gains = (advantages * world.logprobs(logits).sum(1)[rows]).mean(1)
        logits = logits + torch.autograd.grad((chance * gains).sum(), logits)[0]
    return path


# %% tags=["predict"]
paths = {"GRPO": train(), "GRPO, a whole point": train(gap=1)}
paths |= {"a floor of 0.1": train(min_std=0.1), "no std": train(scale_by_std=False)}
show.lines(
    paths, xlabel="update", ylabel="probability of good as first word", ylim=(0, 1)
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# GRPO learns to begin with *good*: the probability rises from 0.33 to 0.98, for a thousandth of a
# point. A whole point is learned hardly faster. With a repair the probability stays below 0.36.
# </details>
#
# **Verdict: right in arithmetic.** Noise of this size cost 0.009 of pass@1, if that is not luck. A
# small preference for one word is dangerous: where all else is equal, GRPO learns it nearly as fast
# as a large one. A floor, or no division, prevents that: one line each.

# %% [markdown]
# ## 5. It is hacked more easily
#
# > **Objection.** With a Bradley-Terry reward model, GRPO is hacked more easily. It writes long
# > responses that earn reward instead of good ones.
#
# A *Bradley-Terry reward model* is one that learned from pairs of responses, like ours (lesson 08).
# **Reward hacking** means that the score rises and the quality does not. We trained on the film
# reviews with a small KL coefficient of 0.1: 24 steps of 64 responses, three seeds. PPO has 64
# prompts per step. GRPO and the others have 16 prompts with four responses each.
#
# There are two scores. The **proxy** is the reward model that training maximises. **Gold** is the
# rating that people would give, predicted by another model that training never sees. One method is
# new: `grpo-no-std` is GRPO without the division.
#
# **Predict.** After 24 steps, which has the higher proxy score, GRPO or PPO? Which has the higher
# gold score? Do the reviews become longer or shorter?

# %% tags=["predict"]
hacking = experiments.results("hacking")
experiments.shown(hacking, {"proxy": "proxy", "gold": "gold", "length": "tokens"})

# %% [markdown]
# <details><summary>What you should see</summary>
#
# PPO has more of both on average: a proxy score of 2.63 against 2.48, and a gold score of 2.77
# against 2.60.
# Reviews become *shorter* with every method: about 12 tokens. They had 19 in the first step of
# training (the record `hacking_history`).
# </details>
#
# The next figure draws each method's path from the first step (lower left) to the last, on the
# batches of training. (The table has test films, so its scores differ a little.) If GRPO were hacked
# more easily, its line would run below the others: less gold at the same proxy score.

# %%
steps = experiments.results("hacking_history")
show.frontier(
    steps,
    x="score",
    y="gold",
    along="step",
    xlabel="proxy score, maximised in training",
    ylabel="gold score",
)

# %% [markdown]
# The lines lie close together. At the same proxy score, the gold scores of GRPO and PPO differ by
# less than 0.15 everywhere. And gold rises with the proxy. Near its end, hidden under the others,
# GRPO's line turns back, and both fall: gold from 2.75 to 2.59. So gold shows no hacking. Now read
# what the policies write, not selected:

# %%
reviews = experiments.samples(hacking, ["grpo", "ppo"]).head(3)
show.texts(reviews.melt(var_name="method", value_name="review", ignore_index=False))

# %% [markdown]
# Both have found the same trick: a short rave about almost any film. Of all word pairs 44 % are
# different with GRPO, and 35 % with PPO (`distinct_2` in the record). For the untrained model it is
# 86 % (SFT in the record `tour`). Gold does not notice this loss, because it was fitted on reviews
# that people write.
#
# **Verdict: not confirmed.** Gold shows no hacking. The texts do, with GRPO as with PPO. PPO's
# proxy score is higher by 0.15 on average [−0.05, 0.36]: undecided. And PPO had four times the
# prompts. Whether *long* responses are rewarded cannot be tested here: this reward model prefers
# short ones.

# %% [markdown]
# ## The verdicts
#
# | objection | what we ran | verdict |
# |---|---|---|
# | Sampling is expensive | cost model, 70B on 64 GPUs | **Half right.** GRPO takes 16 to 41 % less time at equal samples. With 1.5 times the responses it depends on how they are decoded. |
# | Hardly simpler | models and memory at 70B | **Right about the system.** One of four models goes, with 43 % of the memory. |
# | Not better than PPO | arithmetic, 12 methods beside GRPO, three seeds | **Undecided.** Neither is shown to be ahead, at different or at equal prompts. REINFORCE and REINFORCE++ with more prompts are ahead of GRPO, but counting all twelve comparisons only REINFORCE++ is. |
# | Blows up small differences | noise of 0.001; an exact world | **Right in arithmetic.** Noise costs 0.009 of pass@1 or nothing. A small preference for one word is learned nearly as fast as a large one. |
# | Hacked more easily | film reviews, five methods, three seeds | **Not confirmed.** The texts look hacked, with PPO too. At the same proxy score GRPO's gold is within 0.15 of PPO's. |
#
# ## What to remember
#
# - Turn an opinion into a number that you could be wrong about. Then measure it.
# - Ask what is held equal: responses, prompts, seconds or memory.
# - Pair the runs by seed, take the differences, and build the interval. With three seeds it is wide:
#   the factor is 4.30.
# - "Undecided" is not "equal". For *equal* the whole interval must lie within the margin that you
#   chose beforehand.
# - Dividing by the standard deviation makes small differences large. A floor prevents it.
#
# ## Exercises
#
# Solutions are in `solutions/11b_five_objections.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Which groups teach?** *(easy, 5 minutes)*. The third repair of section 4 keeps only groups
# whose scores differ enough. `group_scores` has the shape (N, G): N prompts with G responses each.
# Return N booleans: true for the groups whose highest and lowest score differ by more than
# `spread`.


# %% tags=["exercise"]
def kept_groups(group_scores, spread): ...  # your code


check.kept_groups(kept_groups)


# %% tags=["solution"]
def kept_groups(group_scores, spread):
    return group_scores.amax(1) - group_scores.amin(1) > spread


check.kept_groups(kept_groups)

# %% [markdown] tags=["exercise"]
# **2. An interval over seeds** *(medium, 15 minutes)*. `ours` and `theirs` have the shape (S, P):
# the share of right samples of two methods, for S seeds and P problems. Runs in the same row have
# the same seed. Return a tensor of three numbers: the mean of ours minus theirs, and the low and the
# high end of its 95 % interval over seeds. `factor` is 4.30 for three seeds; the checker also has
# four and five.


# %% tags=["exercise"]
def interval_over_seeds(ours, theirs, factor): ...  # your code


check.interval_over_seeds(interval_over_seeds)


# %% tags=["solution"]
def interval_over_seeds(ours, theirs, factor):
    by_seed = (ours - theirs).mean(1)
    half = factor * by_seed.std() / len(by_seed) ** 0.5
    return torch.stack([by_seed.mean(), by_seed.mean() - half, by_seed.mean() + half])


check.interval_over_seeds(interval_over_seeds)

# %% [markdown] tags=["exercise"]
# **3. Six verdicts** *(medium, 15 minutes)*. Six variants are compared with GRPO, on 400 problems
# and with three seeds. The numbers are made up: the variant's pass@1 minus GRPO's. Give each its
# verdict by section 3b: `"ahead"`, `"behind"`, `"equal"`, `"undecided"`, or `"ahead, reason open"`.
# Use the interval over seeds.
#
# | variant | what differs from GRPO | seed 0 | seed 1 | seed 2 | interval over prompts alone |
# |---|---|---|---|---|---|
# | A | the baseline | 0.05 | 0.06 | 0.04 | [0.04, 0.06] |
# | B | the clip | 0.01 | 0.05 | 0.03 | [0.02, 0.04] |
# | C | the division | −0.03 | −0.04 | −0.05 | [−0.05, −0.03] |
# | D | the learning rate | 0.002 | −0.003 | 0.001 | [−0.008, 0.008] |
# | E | the temperature | 0.03 | −0.03 | 0.00 | [−0.01, 0.01] |
# | F | the baseline, and 128 prompts instead of 16 | 0.04 | 0.05 | 0.06 | [0.04, 0.06] |
#
# *Hint:* your function takes (S, P). `torch.tensor([0.05, 0.06, 0.04])[:, None]` has the shape
# `(3, 1)`. Compare it with `torch.zeros(3, 1)`.

# %% tags=["exercise"]
answers = {"A": "", "B": "", "C": "", "D": "", "E": "", "F": ""}
check.six_comparisons(answers)

# %% tags=["solution"]
variants = {
    "A": [0.05, 0.06, 0.04],
    "B": [0.01, 0.05, 0.03],
    "C": [-0.03, -0.04, -0.05],
    "D": [0.002, -0.003, 0.001],
    "E": [0.03, -0.03, 0.00],
    "F": [0.04, 0.05, 0.06],
}
none = torch.zeros(3, 1)
ends = {
    name: interval_over_seeds(torch.tensor(x)[:, None], none, 4.30).tolist()
    for name, x in variants.items()
}
pd.DataFrame(ends, index=["mean", "low", "high"]).T.round(3)

# %% tags=["solution"]
answers = {"A": "ahead", "B": "undecided", "C": "behind", "D": "equal"}
answers |= {"E": "undecided", "F": "ahead, reason open"}
check.six_comparisons(answers)

# %% [markdown] tags=["exercise"]
# **4. When does the critic pay?** *(medium, 10 minutes)*. Your GRPO needs twice as many responses
# as PPO to learn equally well. Is it still faster for some numbers of responses decoded together?
# And about how many times PPO's responses may it take at most, with 8 and with 512 decoded together?
# Predict first. `parts` of section 1 returns a dict: `parts(64, "none", prompts=256)` has twice the
# responses. Responses are decoded in whole rounds: with 512 together, 1,056 responses need three
# rounds, as 1,536 do. The answers are in the solutions.

# %% tags=["exercise"]
# your code

# %% tags=["solution"]
together = [8, 32, 128, 512, 1024]
of_ppo = pd.DataFrame({n: parts(n, "separate") for n in together}).sum()
of_grpo = pd.DataFrame({n: parts(n, "none") for n in together}).sum()
twice = pd.DataFrame({n: parts(n, "none", prompts=256) for n in together}).sum()
times = {"PPO": of_ppo, "GRPO": of_grpo, "GRPO, twice the responses": twice}
pd.DataFrame(times | {"PPO / GRPO": of_ppo / of_grpo}).round(2)

# %% [markdown] tags=["solution"]
# With twice the responses GRPO is faster nowhere. Training on them takes about as long as training
# PPO's two models, so the critic saves nothing there, and sampling and scoring take longer. If all
# rounds are full, the time grows in proportion to the responses. So GRPO may take at most PPO's time
# divided by GRPO's as many: 1.19 times with 8 decoded together, 1.7 times with 512. The last round of
# 512 is not full at that number, which costs a little: at 208 prompts (1.63 times) GRPO takes 84.0
# seconds, at 212 prompts 85.4, and PPO takes 85.4. With 8 together, a round that is not full hardly
# matters.

# %% [markdown] tags=["exercise"]
# **5. GSPO's loss** *(medium, 15 minutes)*. "Going further" explains GSPO. `logprobs`,
# `old_logprobs` and `mask` have the shape (B, R), `advantages` has (B,). Return the loss of each
# response, (B,). GSPO has one ratio per response, the geometric mean of its tokens' ratios, and
# clips it as PPO does. The checker compares the gradient, too.
#
# *Hint:* the geometric mean is exp of the mean logarithm. Padding can hold NaN, and NaN times 0 is
# NaN: replace it with `torch.where(mask, x, 0.0)` first.


# %% tags=["exercise"]
def gspo_loss(logprobs, old_logprobs, advantages, mask, eps): ...  # your code


check.gspo_loss(gspo_loss)


# %% tags=["solution"]
def gspo_loss(logprobs, old_logprobs, advantages, mask, eps):
    new, old = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs))
    ratio = ((new - old).sum(1) / mask.sum(1)).exp()
    clipped = ratio.clamp(1 - eps, 1 + eps)
    return -torch.minimum(ratio * advantages, clipped * advantages)


check.gspo_loss(gspo_loss)

# %% [markdown] tags=["exercise"]
# **6. Design the experiment** *(hard, 15 minutes)*. "GRPO beats PPO on maths by two points." Turn
# this opinion into an experiment. Write down what you measure, what you hold equal, and which
# interval would make you say that it is wrong. How many seeds do you need, if the differences
# scatter as RLOO's do in section 3a? The interval should reach no further than two points to each
# side. The factors are 4.30, 3.18, 2.78, 2.57, 2.45 and 2.36 for three to eight seeds. The solutions
# have an answer.

# %% tags=["exercise"]
# your notes

# %% tags=["solution"]
factors = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
pd.Series({n: f * 0.0185 / n**0.5 for n, f in factors.items()}).round(3)

# %% [markdown] tags=["solution"]
# **What a good answer contains**
#
# - Equal numbers of responses, and the same number of *prompts* per step. Section 3 shows why.
# - A learning rate for each method, chosen with equally many trials on problems that are not the
#   test problems.
# - How PPO's critic starts, and whether it was trained first.
# - Runs paired by seed, and an interval over prompts and seeds. If the interval of GRPO minus PPO
#   lies below 0.02, the claim is wrong. If it contains 0 and 0.02, the experiment was too small.
# - Six seeds: half the interval is then 0.019. Three seeds give 0.046. This scatter is itself an
#   estimate from three numbers, so take some more.
# - Both costs: responses and seconds.
# - Pass@1 and pass@16. If only pass@1 rises, the model became surer of what it could do before.
# - The length of the responses, because some methods move it by themselves.

# %% [markdown]
# ## Questions
#
# <details><summary>1. Why does a difference of a thousandth reach GRPO at full size, and RLOO as a thousandth?</summary>
#
# GRPO measures each group in the group's own unit, its standard deviation. If all scores are equal
# except for a small difference, that difference is the unit. RLOO does not divide.
# </details>
#
# <details><summary>2. The length of responses grows during my run. Is that hacking?</summary>
#
# Find out what length earns. In lesson 11 it grows because written steps lead to right answers. If
# wrong responses grow faster than right ones, look at how the loss divides by length. If a score
# that training does not see falls, look at the reward model.
# </details>
#
# <details><summary>3. Two methods have overlapping ranges of three seeds. Are they equal?</summary>
#
# No. And ranges that do not overlap are no proof of a difference either: see REINFORCE and PPO in
# section 3. Pair the runs and build the interval. Its ends are the differences that are still
# possible.
# </details>
#
# <details><summary>4. A problem is solved with probability 0.02. How many groups of eight must you sample until 16 of them teach something? And with probability 0.4?</summary>
#
# A group teaches nothing if all eight are right or all are wrong. With 0.02 it teaches with
# probability 0.15, so 107 groups are needed on average. With 0.4 it is 0.98, and 16 groups are
# enough. Replacing groups does not make hard problems cheaper. It keeps the batch full, and it pays
# with more sampling.
# </details>
#
# <details><summary>5. Why does one more response per prompt not help PPO as it helps GRPO?</summary>
#
# GRPO needs a second response to have a baseline at all. PPO has its critic. For PPO, more
# responses per prompt only mean fewer different prompts.
# </details>
#
# ## Going further
#
# **The interval over prompts and seeds.** $D_{sp}$ is the difference for seed $s$ and problem $p$,
# with $S$ seeds and $P$ problems. $D_{s\cdot}$ is its mean over the problems, $D_{\cdot p}$ its mean
# over the seeds, $D$ the mean of all. Three *mean squares* say how far seeds, problems and the rest
# scatter:
#
# $$ M_s = \frac{P \sum_s (D_{s\cdot} - D)^2}{S - 1} \qquad
# M_p = \frac{S \sum_p (D_{\cdot p} - D)^2}{P - 1} \qquad
# M_r = \frac{\sum_{sp} (D_{sp} - D_{s\cdot} - D_{\cdot p} + D)^2}{(S - 1)(P - 1)} $$
#
# The standard error and the *degrees of freedom* $\nu$ (Satterthwaite's rule) are
#
# $$ V = \max(M_s + M_p - M_r,\; M_s,\; M_p) \qquad
# \text{standard error} = \sqrt{\frac{V}{SP}} \qquad
# \nu = \frac{V^2}{\frac{M_s^2}{S - 1} + \frac{M_p^2}{P - 1} + \frac{M_r^2}{(S - 1)(P - 1)}} $$
#
# The factor is that of Student's t with $\nu$ degrees of freedom: `scipy.stats.t.ppf(0.975, nu)`.
# With $M_s$ alone this is section 3a: $\nu = S - 1$. Why is $M_r$ subtracted? The noise of single
# differences is part of $M_s$ and part of $M_p$. Their sum counts it twice.
#
# If the seeds scatter most, $\nu$ is near 2 and the factor near 4.30. If the problems do, $\nu$ is
# large and the factor near 1.96. The seeds of REINFORCE++ agree closely, so it lies between: $\nu$ is
# 7.2 and the factor 2.35. Its interval [0.030, 0.052] is therefore *narrower* than the one over seeds
# alone, [0.026, 0.056]. The code is `experiments.difference_over_prompts_and_seeds`.
#
# **Intervals over prompts alone** (`experiments.difference_over_prompts`). They are narrower: they
# say where the difference would lie with other problems and the *same* three runs. Over prompts
# alone PPO is higher than GRPO by 0.018 [0.008, 0.027], DAPO by 0.015 [0.006, 0.024], and ReMax by
# 0.013 [0.003, 0.023]. With the critic trained first, PPO is lower than plain PPO by 0.022 [0.014,
# 0.029]. Over prompts *and* seeds, all four intervals contain 0. A table that gives only intervals
# over prompts makes such differences look settled. One can also take each seed alone, and its
# interval over prompts. For REINFORCE minus GRPO all three of these intervals lie above 0, and so
# they do for REINFORCE++. For PPO with eight responses per prompt, minus plain PPO, all three lie
# below 0.
#
# **Twelve comparisons.** All twelve intervals of section 3 should hold *together* in 95 % of cases.
# For that, each may miss in a twelfth of 5 % (Bonferroni's rule). So the factors grow: from 4.31 to
# 15.5 for REINFORCE, and from 2.35 to 4.1 for REINFORCE++. That of REINFORCE++ is so small because
# its three seeds agree, which may be luck. From the seeds alone it would be undecided, too:
# [−0.012, 0.094]. REINFORCE's lowest seed is above the highest seed of PPO, of ReMax and of every
# method with groups. But that is no proof (question 3).
#
# **What is held equal in section 3.** The number of responses to train on, the learning rate, and
# the number of steps. The learning rate was not tuned for any method. The number of responses that
# are *sampled* is not equal: DAPO replaces groups, and ReMax samples a second response for its
# baseline. Why is REINFORCE ahead of GRPO? The number of prompts alone is not the reason: ReMax has
# 128 prompts, too, and is behind REINFORCE by 0.033 [0.025, 0.042]. These two differ in the
# baseline only. The missing division alone is not the reason either: RLOO and Dr. GRPO do not
# divide by a standard deviation, and REINFORCE is ahead of them by 0.042 [0.028, 0.056] and 0.043
# [0.033, 0.053]. PPO's critic starts as a copy of the policy with a new last layer, so it knows the
# language but not the scores. PPO's step costs about twice the arithmetic of GRPO's, because the
# critic reads and learns, too. Who is ahead at equal arithmetic we have not run.
#
# **What a group's baseline can gain.** It removes the differences *between* problems. How large are
# they at the start of training?

# %%
start = experiments.by_prompt(family[family.variant == "start"], "pass_1")
p = start.groupby("prompt").pass_1.mean()  # of 3 runs with 16 samples each
within = (p * (1 - p)).mean()  # variance of a score of 0 or 1
between = p.var() - within / 48  # without the noise of 48 samples
share = between / (between + within)
print(f"share of a score's variance between problems: {share:.0%}")

# %% [markdown]
# Five sixths of the variance lie *within* a problem: the same problem is solved once and missed once.
# A baseline that is the same for all responses to a problem cannot remove that part. So a group has
# little to gain here.
#
# **Exact scores in section 4.** *no std* on noisy scores is behind GRPO on exact scores by 0.008
# [0.001, 0.015], as noisy GRPO is. (The figure compares with noisy GRPO only.)
#
# **Where noise is blown up in section 4.** Only where all answers are right, or all wrong. In the
# runs with exact scores these are 9 % of the groups in the first ten steps and 19 % in the last ten.
#
# **GSPO and CISPO.** Both change how a batch is used more than once.
#
# - **GSPO** takes one ratio per response instead of one per token: the geometric mean of its tokens'
#   ratios. Why? The score judges the whole response, and the ratio of a single token is a noisy
#   weight for it. A mean of many ratios stays near 1, so the clip is narrow: from 0.9997 to 1.0004.
# - **CISPO** keeps the gradient of every token. PPO's clip takes it away from tokens that have moved
#   far. These are often rare and important ones, such as *wait* or *however*. CISPO clips the
#   *weight* of the token instead. Its loss is $-\min(\rho_t, 5)\, A \log \pi(y_t \mid s_t)$, where
#   the weight $\min(\rho_t, 5)$ counts as a constant. It takes the token mean, like DAPO.
#
# Right after sampling all ratios are 1, and there we can compare them exactly. Take one response of
# four tokens and one of two:

# %%
old = torch.tensor([[-0.5, -1.0, -1.5, -2.0], [-0.7, -1.2, 0.0, 0.0]])
mask, A = old < 0, torch.tensor([1.0, -1.0])  # one advantage per response
by_token = core.over_tokens(A[None], mask)


def gradient(loss, advantages, how, **settings):
    logprobs = old.clone().requires_grad_(True)
    losses = loss(logprobs, old, advantages, mask, **settings)
    core.aggregate(losses, mask, how=how).backward()
    return logprobs.grad


grpo = gradient(core.ppo_clip, by_token, "sequence_mean")
grpo_token_mean = gradient(core.ppo_clip, by_token, "token_mean")
gspo = gradient(core.sequence_clip, A, "sequence_mean", by_length=True, clip_eps=3e-4)
assert torch.allclose(gspo, grpo) and not torch.allclose(grpo_token_mean, grpo)
assert torch.allclose(gradient(core.cispo, by_token, "token_mean"), grpo_token_mean)

# %% [markdown]
# So at ratio 1, GSPO has the same gradient as GRPO. (Their runs in section 3 still differ a little,
# because the two formulas round differently.) CISPO has the same gradient as GRPO *with a
# token mean* (the value of its loss is another one: $-A \log \pi$ instead of $-A$). A token mean has
# another gradient than GRPO's mean per response, because it weighs long responses more. From the
# second update on, the clips matter. This is how strongly each loss pulls on the log-probability of
# a token, by its ratio:


# %%
ratio = torch.linspace(0.05, 6, 1191, dtype=torch.float64)[:, None]
losses = {"GRPO": core.ppo_clip, "CISPO": core.cispo}
panels = {"good token, A = 1": {}, "bad token, A = -1": {}}
for curves, advantage in zip(panels.values(), (1.0, -1.0)):
    for name, loss in losses.items():
        logprobs = ratio.log().requires_grad_(True)
        given = torch.zeros_like(ratio), torch.full_like(ratio, advantage), ratio > 0
        loss(logprobs, *given).sum().backward()
        curves[name] = -logprobs.grad[:, 0]
show.lines(panels, ratio[:, 0], xlabel="ratio", ylabel="pull on the log-probability")

# %% [markdown]
# A good token that has become 1.2 times as likely gets no further pull from GRPO. CISPO goes on,
# with a weight of at most 5. A bad token that has become *more* likely is pulled down by both. Only
# CISPO bounds this pull.
#
# **When a batch is used four times.** In section 3 every batch is used once, so clips do not act.
# We also ran GRPO, GSPO and CISPO with four epochs per batch and half as many steps. **pass@16** is
# the chance that at least one of sixteen samples is right.
#
# | four epochs | greedy answers right, three seeds | pass@1, three seeds | pass@16, mean | tokens without gradient |
# |---|---|---|---|---|
# | GRPO | 0.78, 0.84, 0.81 | 0.681, 0.707, 0.685 | 0.969 | 1.4 % |
# | GSPO | 0.85, 0.86, 0.85 | 0.649, 0.651, 0.651 | 0.985 | 54 % |
# | CISPO | 0.77, 0.74, 0.78 | 0.635, 0.633, 0.650 | 0.943 | none |
#
# On each seed GSPO's greedy answers are best, and GRPO's single samples are best. So which one is
# ahead depends on how you sample. CISPO has lost something that it could do before: its pass@16 is
# below that of the untrained model by 0.033 [0.018, 0.049]. GRPO's is below it on every seed, too,
# by 0.007 on average, but its interval [−0.006, 0.020] contains 0. GSPO's narrow clip takes the
# gradient from half of the tokens. The first epoch has ratio 1 and clips nothing, so in the other
# three it is 72 %. This is no ranking: the clip ranges are those of the papers, and were not tuned
# for four epochs of a small model.
#
# **Other methods in section 5.** Four methods are compared with GRPO. Of their proxy scores only one
# interval excludes 0: RLOO, with the same prompts as GRPO, is behind by 0.146 [0.011, 0.280]. Its
# gold score is lower by 0.076 on average [−0.151, 0.304]: undecided.
#
# **The machine of section 1.** Its GPUs reach 40 % of their speed in arithmetic and 60 % of their
# speed in reading memory.
#
# **Length in section 5.** Dr. GRPO divides by a constant so that wrong responses do not grow
# (lesson 11). We see no effect of that: compared with `grpo-no-std`, which differs in nothing else,
# its reviews are longer on one seed and shorter on two. The reward model's preference is stronger.
#
# **References.** Shao et al. 2024, *DeepSeekMath* (GRPO). Ahmadian et al. 2024, *Back to basics*
# (RLOO). Li et al. 2023 (ReMax). Hu 2025 (REINFORCE++). Liu et al. 2025, *Understanding
# R1-Zero-like training* (Dr. GRPO). Yu et al. 2025, *DAPO*. Zheng et al. 2025, *Group sequence
# policy optimization*. MiniMax 2025, *MiniMax-M1* (CISPO). Satterthwaite 1946 (the interval over
# prompts and seeds).
#
# *How this lab is checked:* every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_11b.py`).
