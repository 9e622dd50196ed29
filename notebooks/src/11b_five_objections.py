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
# - read an interval over prompts and seeds, and see when three seeds are too few.
#
# **You need** lesson 11 (GRPO), lesson 06 (PPO) and lesson 10 (what four models cost). About 25
# minutes to read and 55 for the exercises.

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
# Critics of GRPO say that this saves less than it promises. Each section below states one of their
# five objections, asks for your prediction, and runs an experiment. Then comes a **verdict**. Write
# your prediction down before you run the next cell.

# %% [markdown]
# ## 1. Sampling is expensive
#
# > **Objection.** With models of 70 billion parameters (70B), sampling takes about as long as
# > training. GRPO removes the critic but samples more responses. So it may lose more time than it
# > saves.
#
# We have no such machine, so we use the cost model of lesson 10. It computes the time of a step
# from its arithmetic and from the bytes that it reads. We assume 64 H100 GPUs that reach 40 % of
# their speed in arithmetic and 60 % of their speed in reading memory. A step samples 1,024
# responses of 1,024 tokens each, for 128 prompts of 512 tokens.
#
# To sample one token, the GPUs read all weights once. Responses that are **decoded together** share
# this reading. So their number decides how fast sampling is.


# %% tags=["shared"]
machine = models.H100.times(64)


def parts(together, critic, prompts=128):
    """Seconds of sampling, scoring and training in one step."""
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
# Training always takes 53 seconds.
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
# - **Left.** The objection's ratio of 1 occurs at one place on each line: at about 23 responses
#   decoded together for PPO, at about 49 for GRPO.
# - **Right.** GRPO with the same number of responses takes less time than PPO everywhere. No critic
#   means 35 seconds less: 26 of training and 9 of *scoring*, where the other models read the
#   responses. The longer sampling takes, the smaller is this share: 16 % of the step at 8 responses
#   decoded together, 41 % at 512.
# - **Right, orange.** With one and a half times as many responses, GRPO takes about as long as PPO
#   at 49 responses decoded together. Below that it is slower, above it is faster.
#
# **Verdict: half right.** Sampling and training can take equally long. But with the same number of
# responses GRPO is faster. With 1.5 times as many it is anything from 27 % slower (8 decoded together)
# to 12 % faster (512).

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
# A trained model needs eight times as much memory as a frozen one. A weight and its gradient take 2
# bytes each, and the optimiser's three numbers per weight take 4 bytes each: 16 bytes instead of 2. Besides the actor, only the critic is trained.
#
# **Verdict: right about the system, silent about the memory.** Three of four models remain. You
# still sample, train, and copy the new weights to the sampler after every step. But the objection
# leaves out the largest saving: 43 % of the memory.

# %% [markdown]
# ## 3. It is not better than PPO
#
# > **Objection.** GRPO and its relatives do not clearly beat PPO. A baseline from samples may be
# > more accurate than a critic. But one can train the critic first, while the actor is frozen, or
# > give PPO more responses per prompt.
#
# We ran the methods on the arithmetic task of lesson 11: a rule gives 1 for a right answer and 0
# for a wrong one. Every run has 80 steps of 128 responses, and every method has three seeds. GRPO's
# groups of 8 leave room for 16 prompts per step. A method without groups takes 128 prompts.
#
# What each method changes (you need the details when you look at the figure):
#
# | method | prompts per step | baseline and changes |
# |---|---|---|
# | **RLOO** (REINFORCE leave-one-out) | 16 | the mean of the *other* responses to the prompt; no division by the standard deviation |
# | **Dr. GRPO** | 16 | GRPO without that division; a response's loss is divided by a constant, not by its own length |
# | **DAPO** | 16 | GRPO with a wider upper end of the clip (0.28 instead of 0.2) and the mean over all tokens of the batch; it replaces groups of equal scores and penalises responses close to the length limit |
# | **GSPO** | 16 | GRPO with one importance ratio for the whole response ("Going further") |
# | **CISPO** | 16 | GRPO in which every token keeps its gradient ("Going further"); the mean over all tokens of the batch |
# | **REINFORCE** | 128 | the running mean of earlier batches' scores |
# | **ReMax** | 128 | the score of a second response to the prompt, the greedy one |
# | **REINFORCE++** | 128 | the mean of the batch; advantages are divided by the standard deviation of the batch |
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
# How sure is that? A **95 % interval over prompts and seeds** says where the difference would lie
# with other problems *and* other seeds. Runs are paired by seed: for each seed we subtract GRPO's
# pass@1. What counts is how far these three differences lie apart. For RLOO they are −0.006, 0.026
# and −0.006: a wide interval. (The figure's small circles are something else: each run minus the mean
# of GRPO's three runs.)

# %%
groups = ["rloo", "dr-grpo", "dapo", "gspo", "cispo"]
single = ["reinforce", "remax", "reinforce++"]
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
# If an interval contains 0, the runs do not show which of the two methods is better in general.
#
# - **PPO and GRPO cannot be told apart.** PPO is ahead by 0.018, with an interval from −0.010 to
#   0.045. Three seeds say little: with other seeds GRPO could be ahead.
# - **The same holds for the methods with groups.** None of their intervals excludes 0. GSPO is GRPO
#   here: every batch is used once, so all ratios are 1, and both have the same gradient. Their runs
#   differ by rounding only.
# - **REINFORCE and REINFORCE++ are ahead of GRPO**, by 0.047 and 0.041. Their intervals do not
#   contain 0.
#
# Now the objection's two proposals, compared with plain PPO:

# %%
experiments.with_interval(
    experiments.difference_over_prompts_and_seeds(family, "pass_1", "ppo", ppos[1:]),
    digits=3,
).to_frame()

# %% [markdown]
# - Training the critic first did not help: PPO is lower by 0.022 on average, and lower on every
#   seed. The interval contains 0, so this may be luck. And the actor trains in 65 steps only.
# - Eight responses per prompt made PPO *worse*, by 0.034. The interval does not contain 0. Nothing
#   else was changed, so the reason is that PPO saw 16 different prompts per step instead of 128.
#
# Is it the number of prompts, then? Not alone: ReMax sees 128 prompts, too, and is below REINFORCE by
# 0.033, with an interval from 0.025 to 0.042. What can a group's baseline gain at most? It removes
# the differences *between* problems. How large are they at the start of training?

# %%
start = experiments.by_prompt(family[family.variant == "start"], "pass_1")
p = start.groupby("prompt").pass_1.mean()  # of 3 runs with 16 samples each
within = (p * (1 - p)).mean()  # variance of a score of 0 or 1
between = p.var() - within / 48  # without the noise of 48 samples
share = between / (between + within)
print(f"share of a score's variance between problems: {share:.0%}")

# %% [markdown]
# Five sixths of the variance lie *within* a problem: the same problem is solved once and missed
# once. No baseline that depends on the problem alone can remove that part. So a group has little to
# gain here.
#
# **Verdict: right that GRPO does not clearly beat PPO.** The two changes to PPO did not help. At equal samples, REINFORCE and REINFORCE++ with many
# prompts beat GRPO. We do not know why. This is one task, and the learning rate was tuned for no
# method.

# %% [markdown]
# ## 4. Small differences are blown up
#
# > **Objection.** When two rewards differ slightly, 1.001 and 1.000, the division by the standard
# > deviation may blow the difference up.
#
# The arithmetic is right (lesson 11, section 2): 1.001 and 1.000 get the advantages 0.62 and −0.62,
# nearly those of 1 and 0. There are simple repairs: do not divide, or set a lower limit (a **floor**)
# for the standard deviation. Here one of eight scores is higher:

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
# arithmetic task: a random number between 0 and 0.001. A reward model's scores
# differ like that. *groups dropped* is a third repair: a group whose scores differ by less than 0.01 is
# replaced by a new one.

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
# (*grpo, exact scores* is the `grpo` of section 3.) Exact scores are ahead by 0.009. The interval, from 0.001 to 0.016, just excludes 0. The intervals
# of all repairs contain 0. Why so little? In most groups some answers are right and some wrong, and
# the noise is tiny beside this difference. It is blown up only where all are right or all wrong. In
# the runs with exact scores these are 9 % of the groups in the first ten steps and 19 % in the last
# ten. And the noise has no direction: on average it pushes nowhere.
#
# **What if the small difference has a direction?** Suppose a reward model likes one word by 0.001.
# In a world with 7 possible responses every response scores 1, and those that begin with *good*
# score 1.001. We compute the exact mean update over all groups of four.
#
# **Predict.** A third of the responses begin with *good* at the start. How many do after 30 updates:
# with GRPO, with GRPO if *good* is worth a whole point, with a floor of 0.1, and without the division?


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
# **Verdict: right in arithmetic.** Noise of this size cost about 0.01 of pass@1. A small preference
# for one word is dangerous: where all else is equal, GRPO learns it nearly as fast as a large one.
# Each repair is one line, and our runs show no harm of any.

# %% [markdown]
# ## 5. It is hacked more easily
#
# > **Objection.** With a Bradley-Terry reward model, GRPO is hacked more easily. It writes long
# > responses that earn reward instead of good ones.
#
# A *Bradley-Terry reward model* is one that learned from pairs of responses, like ours (lesson 08).
# **Reward hacking** means that the score rises and the quality does not. We trained on the film
# reviews with a small KL coefficient of 0.1: 24 steps of 64 responses, three seeds. GRPO has 16
# prompts with four responses each, PPO has 64 prompts.
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
# PPO has more of both: a proxy score of 2.63 against 2.48, and a gold score of 2.77 against 2.60.
# Reviews become *shorter* with every method: from 19 tokens before training to about 12.
# </details>
#
# The next figure draws each method's path from the first step (lower left) to the last. If GRPO
# were hacked more easily, its line would run below the others: less gold at the same proxy score.

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
# less than 0.15 everywhere. And gold rises with the proxy, so gold shows no hacking. Now read what the
# policies write, not selected:

# %%
reviews = experiments.samples(hacking, ["grpo", "ppo"]).head(3)
show.texts(reviews.melt(var_name="method", value_name="review", ignore_index=False))

# %% [markdown]
# Both have found the same trick: a short rave about almost any film. Before training, 86 % of the
# word pairs in the reviews were different; now it is 44 % with GRPO and 35 % with PPO. Gold does
# not notice this loss, because it was fitted on reviews that people write.
#
# **Verdict: not confirmed.** Gold shows no hacking. The texts do, with GRPO as with PPO. On each of the
# three seeds PPO has the higher proxy score. But the difference of 0.15 has an interval from −0.05
# to 0.36, so three seeds do not settle it. Whether *long* responses are rewarded cannot be tested
# here: this reward model prefers short ones.

# %% [markdown]
# ## The verdicts
#
# | objection | what we ran | verdict |
# |---|---|---|
# | Sampling is expensive | cost model, 70B on 64 GPUs | **Half right.** GRPO takes 16 to 41 % less time at equal samples. With 1.5 times the responses it depends on how they are decoded. |
# | Hardly simpler | models and memory at 70B | **Right about the system.** One of four models goes, with 43 % of the memory. |
# | Not better than PPO | arithmetic, 11 methods beside GRPO, three seeds | **Right.** No difference shown between PPO and GRPO. REINFORCE with more prompts beats GRPO. |
# | Blows up small differences | noise of 0.001; an exact world | **Right.** Noise costs 0.009 of pass@1. A small preference for one word is learned nearly as fast as a large one. |
# | Hacked more easily | film reviews, five methods, three seeds | **Not confirmed.** The texts of all methods look hacked. At the same proxy score GRPO has as much gold as PPO. |
#
# ## What to remember
#
# - Turn an opinion into a number that you could be wrong about. Then measure it.
# - Ask what is held equal: responses, prompts, seconds or memory.
# - An interval over prompts says nothing about other seeds. With three seeds many differences are
#   open, and then the right verdict is "we do not know".
# - Removing the critic saves memory. It saves time if you do not sample more.
# - Dividing by the standard deviation makes small differences large. A floor prevents it.
#
# ## Exercises
#
# Solutions are in `solutions/11b_five_objections.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Which groups teach?** *(easy, 10 minutes)*. The third repair of section 4 keeps only groups
# whose scores differ enough. `group_scores` has the shape (N, G): N prompts with G responses each.
# Return N booleans: true for the groups whose highest and lowest score differ by more than
# `spread`.
#
# *Hint:* the standard deviation is not the difference of highest and lowest. For three scores of
# 0.9 it is not even 0, because their mean is rounded.


# %% tags=["exercise"]
def kept_groups(group_scores, spread): ...  # your code


check.kept_groups(kept_groups)


# %% tags=["solution"]
def kept_groups(group_scores, spread):
    return group_scores.amax(1) - group_scores.amin(1) > spread


check.kept_groups(kept_groups)

# %% [markdown]
# **2. What do hard problems cost?** *(easy, 5 minutes)*. A problem is solved with probability $p$,
# and a group has eight responses. The group teaches nothing if all eight are right or all eight are
# wrong. How often does it teach something if $p$ is 0.02? And if it is 0.4? A batch needs 16 groups
# that teach. How many groups must you sample on average? Write your numbers down, then run the
# cell.


# %% tags=["predict"]
def teaches(p, size=8):
    return 1 - p**size - (1 - p) ** size


pd.DataFrame(
    {p: {"teaches": teaches(p), "groups": 16 / teaches(p)} for p in (0.02, 0.4)}
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# With $p = 0.02$ a group teaches with probability 0.15, so 107 groups are needed. With $p = 0.4$ it
# is 0.98, so 16 groups are enough. Replacing groups does not make hard problems cheaper. It keeps
# the batch full, and it pays with more sampling.
# </details>

# %% [markdown] tags=["exercise"]
# **3. When does the critic pay?** *(medium, 10 minutes)*. Your GRPO needs twice as many responses
# as PPO to learn equally well. Use `parts` of section 1: is GRPO still faster for some numbers of
# responses decoded together? Predict first. `parts(64, "none", prompts=256)` has twice
# the responses.

# %% tags=["exercise"]
# your code

# %% tags=["solution"]
sizes = [8, 32, 128, 512, 1024]
ppo = pd.DataFrame({n: parts(n, "separate") for n in sizes}).sum()
twice = pd.DataFrame({n: parts(n, "none", prompts=256) for n in sizes}).sum()
pd.DataFrame({"PPO": ppo, "GRPO, twice the responses": twice}).round()

# %% [markdown]
# <details><summary>What you should see</summary>
#
# For none. Even where decoding is cheap, GRPO then takes longer, because it also trains the actor on
# twice as many responses.
# </details>

# %% [markdown] tags=["exercise"]
# **4. GSPO's loss** *(medium, 15 minutes)*. `logprobs`, `old_logprobs` and `mask` have the shape
# (B, R), `advantages` has (B,). Return the loss of each response, (B,). GSPO has one ratio per
# response, the geometric mean of its tokens' ratios, and clips it as PPO does. The checker compares the gradient, too.
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

# %% [markdown]
# **5. Design the experiment** *(hard, 15 minutes)*. "GRPO beats PPO on maths by two points." What
# would you have to see before you believe it? Write down at least five things.
#
# <details><summary>What a good answer contains</summary>
#
# - Equal numbers of responses, and the same number of *prompts* per step. Section 3 shows why.
# - A learning rate for each method, chosen on validation problems with equally many trials.
# - How PPO's critic starts, and whether it was trained first.
# - Several seeds, and intervals over problems and seeds. Beside them, how far two runs of the
#   *same* method are apart.
# - Both costs: responses and seconds.
# - Pass@1 and pass@16. If only pass@1 rises, the model became surer of what it could do before.
# - The length of the responses, because some methods move it by themselves.
# </details>
#
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
# No. The runs do not show a difference. That is not the same as showing that there is none. Look at
# the interval: its ends are the differences that are still possible.
# </details>
#
# <details><summary>4. Why does one more response per prompt not help PPO as it helps GRPO?</summary>
#
# GRPO needs a second response to have a baseline at all. PPO has its critic. For PPO, more
# responses per prompt only mean fewer different prompts.
# </details>
#
# ## Going further
#
# **Intervals over prompts alone.** They are narrower: they say where the difference would lie with
# other problems and the *same* three runs. Over prompts alone PPO is ahead of GRPO by 0.018 [0.008,
# 0.027], DAPO by 0.015 [0.006, 0.024], and ReMax by 0.013 [0.003, 0.023]. Training the critic first
# costs PPO 0.022 [−0.029, −0.014]. Over prompts *and* seeds, all four intervals contain 0. A table
# that gives only intervals over prompts makes such differences look settled. Other facts hold on
# each of the three seeds by itself, over prompts: REINFORCE and REINFORCE++ are ahead of GRPO, and
# eight responses per prompt make PPO worse.
#
# **Eleven comparisons.** A 95 % interval misses the true difference in one case of twenty. Among
# eleven intervals one such miss is not rare. The two that exclude 0 exclude it clearly. And
# REINFORCE's lowest seed is above the highest seed of PPO, of ReMax and of every method with
# groups.
#
# **What is held equal in section 3.** The number of responses, the learning rate, and the number of
# steps. The learning rate was not tuned for any method. REINFORCE also differs from GRPO in its
# unit: it does not divide by a standard deviation. ReMax samples a second response for its
# baseline, which is not counted among the 128. PPO's critic starts as a copy of the policy with a
# new head, so it knows the language but not the scores. PPO's step costs about twice the arithmetic
# of GRPO's, because the critic reads and learns, too. Who is ahead at equal arithmetic we have not
# run.
#
# **GSPO and CISPO.** Both change how a batch is used more than once.
#
# - **GSPO** takes one ratio per response instead of one per token: the geometric mean of its tokens'
#   ratios. Why? The score judges the whole response, and the ratio of a single token is a noisy weight for
#   it. A mean of many ratios stays near 1, so the clip is narrow: from 0.9997 to 1.0004.
# - **CISPO** keeps the gradient of every token. PPO's clip takes it away from tokens that have moved far. These are
#   often rare and important ones, such as *wait* or *however*. CISPO clips the *weight* of the token instead.
#   Its loss is $-\min(\rho_t, 5)\, A \log \pi(y_t \mid s_t)$, where the weight $\min(\rho_t, 5)$ counts as a
#   constant. It takes the token mean, like DAPO.
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
# So at ratio 1, GSPO has the same gradient as GRPO. CISPO has the same gradient as GRPO *with a token mean*
# (the value of its loss is another one: $-A \log \pi$ instead of $-A$). A token mean has another
# gradient than GRPO's mean per response, because it weighs long responses more. From the second update
# on, the clips matter. This is how strongly each loss pulls on the log-probability of a token, by its
# ratio:


# %%
ratio = torch.linspace(0.05, 2, 391, dtype=torch.float64)[:, None]
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
# A good token that has become 1.2 times as likely gets no further pull from GRPO. CISPO goes on, with a
# weight of at most 5 (outside the figure). A bad token that has become *more* likely is pulled down by
# both. Only CISPO bounds this pull.
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
# ahead depends on how you sample. CISPO's pass@16 is below that of the untrained model on every seed:
# it has lost something that it could do before. GSPO's narrow clip takes the gradient from half of
# the tokens. The first epoch has ratio 1 and clips nothing, so in the other three it is 72 %. This
# is no ranking: the clip ranges are those of the papers, and were not tuned for four epochs of a
# small model.
#
# **Length in section 5.** Dr. GRPO divides by a constant so that wrong responses do not grow
# (lesson 11). We see no effect of that: compared with `grpo-no-std`, which differs in nothing else,
# its reviews are longer on one seed and shorter on two. The reward model's preference is stronger.
# Gold follows the proxy: GRPO's gold score rises from 0.42 to 2.75 at its best step and ends at
# 2.59.
#
# **References.** Shao et al. 2024, *DeepSeekMath* (GRPO). Ahmadian et al. 2024, *Back to basics*
# (RLOO). Li et al. 2023 (ReMax). Hu 2025 (REINFORCE++). Liu et al. 2025, *Understanding
# R1-Zero-like training* (Dr. GRPO). Yu et al. 2025, *DAPO*. Zheng et al. 2025, *Group sequence
# policy optimization*. MiniMax 2025, *MiniMax-M1* (CISPO). Satterthwaite 1946 (the interval over
# prompts and seeds).
#
# *How this lab is checked:* every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_11b.py`).
