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
# # 16 · Over-optimisation
#
# After this lesson you can
#
# - say how far best-of-n and reinforcement learning (RL) have moved, and what they gain on the way,
# - fit the law of over-optimisation to a run, and find its peak,
# - choose what to do about it: more labels, an ensemble, an early stop, a KL penalty.
#
# **You need** lesson 07 (the KL penalty), lesson 08 (reward models) and lesson 11 (GRPO). About
# 30 minutes to read and 60 for the exercises.

# %%
import copy
import math

import pandas as pd
import torch

from minirlhf import core, evaluate, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. When a measure becomes a target
#
# We want a policy that writes good reviews. What we *want* is called **gold**. In this lesson it is
# a judge that scores reviews from −4 to 4: a regression on words that predicts people's ratings
# (more in section 7). Training never sees these scores. It gets a few labels
# only: which of two reviews is better. From these a reward model is made, the **proxy**, and the
# policy is trained for the proxy. The proxy agrees with gold on most reviews, and is wrong on some.
#
# A policy that is optimised for the proxy finds two things: reviews that are better, and reviews on
# which the proxy is wrong. At first it finds more of the former, later more of the latter. So gold
# rises, reaches a peak, and falls, while the proxy keeps rising. This is **over-optimisation**.
#
# Gao, Schulman and Hilton (2023) measured it for large models, and found a law. Let the
# **distance** $d$ be the square root of the KL divergence from the first policy, in nats per
# response. Then the gold score that has been *gained* at distance $d$ is
#
# $$ \text{best-of-}n: \;\; d\,(\alpha - \beta d) , \qquad
# \text{RL}: \;\; d\,(\alpha - \beta \log d) . $$
#
# In words: the bracket is the gain *per unit of distance*. It begins with $\alpha$, and falls as the policy
# goes further. $\beta$ says how fast it falls. In the end the gain itself falls, too. $\alpha$ and $\beta$ are
# two numbers that are fitted to a run. (The formula for RL holds from about $d = 1$ on: near
# the start it is too steep. And this $\beta$ is not the KL coefficient of lesson 07.)

# %% [markdown]
# ## 2. Best-of-n by hand
#
# **Best-of-n** trains nothing. It samples $n$ responses and keeps the one with the highest proxy
# score. It is still a policy: it writes some responses more often than the first policy does. How
# often exactly?
#
# Take a first policy that knows only four responses. The proxy likes D most. Gold does not:
#
# | response | probability $p$ | proxy | gold |
# |---|---|---|---|
# | A | 0.4 | 0 | 0 |
# | B | 0.3 | 1 | 2 |
# | C | 0.2 | 2 | 3 |
# | D | 0.1 | 3 | −1 |
#
# **When is C kept, for $n = 2$?** Neither of the two samples may be D. This has the probability
# 0.9 · 0.9 = 0.81. And not both may come
# from A and B: this has 0.7 · 0.7 = 0.49. What is left is
# 0.81 − 0.49 = 0.32. So best-of-2 writes C more often than the first policy, which has 0.2.
#
# It is the same for any response $y$ and any $n$. Let $F$ be the probability that a sample scores *at most*
# as high as $y$, and $F^-$ that it scores *lower*. $y$ is kept if all $n$ samples score at most as high, but
# not all of them lower:
#
# $$ P_n(y) = F^n - (F^-)^n . $$
#
# **Predict.** At which of $n$ = 1, 2, 4, 16, 64 is the mean gold score highest? And does the KL from
# the first policy grow without end?

# %% tags=["predict"]
p, proxy = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.0, 1.0, 2.0, 3.0])
gold = torch.tensor([0.0, 2.0, 3.0, -1.0])
table = pd.DataFrame(index=pd.Index([1, 2, 4, 16, 64], name="n"))
for n in table.index:
    kept = core.best_of_n_probs(p, proxy, n)
    table.loc[n, ["A", "B", "C", "D"]] = kept.tolist()
    table.loc[n, "mean proxy"] = (kept @ proxy).item()
    table.loc[n, "mean gold"] = (kept @ gold).item()
    table.loc[n, "KL"] = (kept * (kept / p).log()).nansum().item()
    table.loc[n, "bound"] = core.best_of_n_kl(n)
table.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Gold** is highest for $n$ = 2, with 1.43. At $n$ = 16 it is below the start: in 81 % of the
#   cases D is kept, which only the proxy likes.
# - **The proxy** rises all the way. It cannot warn us.
# - **The KL** does not grow without end. It approaches $\log(1 / 0.1)$ = 2.30 nats, where D is always
#   kept.
# - **bound** is $\log n - (n-1)/n$. The KL is never larger than this (Beirami et al. 2024), and hardly
#   smaller than this while every single response is much rarer than $1/n$. Whole reviews of a language model are, so
#   we use this bound as their KL. It needs only $n$. ("Going further" derives it.)
# </details>

# %% [markdown]
# ## 3. Best-of-n from samples
#
# A language model has too many responses to list. We can only draw samples and score them. How do
# we estimate the gold score of best-of-n from them?
#
# We could draw $n$ samples and keep the best. That is one noisy number. It is better to draw many more,
# $N$, and to take the mean over *all sets of $n$* that they contain.
#
# **By hand.** Three samples have the proxy scores 1, 2, 3 and the gold scores 10, 20, 0. Take
# $n = 2$. There are three sets of two:
#
# | set | its best | gold of the best |
# |---|---|---|
# | first and second | second | 20 |
# | first and third | third | 0 |
# | second and third | third | 0 |
#
# The mean is 20 / 3 = 6.67.
#
# We need not list the sets. Sort the samples by their proxy scores, the lowest first. Sample $i$ is
# the best of a set if the other $n - 1$ members are among the $i - 1$ samples below it. There are
# $\binom{i-1}{n-1}$ such sets, of $\binom{N}{n}$ in all. So
#
# $$ \text{gold of best-of-}n \;\approx\; \sum_{i=1}^{N}
# \frac{\binom{i-1}{n-1}}{\binom{N}{n}}\; \text{gold}_i . $$
#
# For our three samples the weights are 0, 1/3 and 2/3.

# %%
three = torch.tensor([[10.0, 20.0, 0.0]])  # one prompt, three samples
estimate = core.best_of_n_mean(three, torch.tensor([[1.0, 2.0, 3.0]]), n=2)
assert torch.allclose(estimate, torch.tensor([20 / 3]))

# %% [markdown]
# ## 4. A poor proxy, and best-of-n
#
# Now real reviews. The first policy is the review writer of lesson 03. It writes 200 pairs of
# reviews, each pair about one film. A label says which review of a pair is preferred. It is drawn
# from gold: the first one is preferred with probability $\sigma(\text{gold of the first} -
# \text{gold of the second})$, where $\sigma$ is the sigmoid. The errors of the
# proxy come from its few labels, from the chance in them, and from its small network: 2 layers of width 64.
# (The cell takes about half a minute.)

# %%
policy, tokenizer = models.load_policy("tiny-reviews-sft")
pairs = experiments.gold_pairs("reward", count=200, seed=0)
# A small base model, which has seen no labels yet. Three epochs over the pairs:
small, _ = models.load_policy("tiny-reviews-2x64")
config = loops.RewardConfig(steps=18, texts_per_prompt=200)
proxy_model, _ = loops.train_reward_model(
    small.base_model.requires_grad_(True), tokenizer, pairs, config
)
prompts = tasks.reviews.rl_prompts()
first = models.sample_text(policy, tokenizer, prompts, seed=9000, batch_size=256)
rewards.normalise_scores(proxy_model, first, tokenizer.eos_token_id)  # mean 0, std 1
proxy_score = rewards.rollout_score(proxy_model, tokenizer.eos_token_id)
gold_score = rewards.rollout_judge(rewards.gold_judge(), tokenizer)

# %% [markdown]
# Is it any good? On 1,000 new pairs it prefers the review with the higher gold score in 61 % of the
# cases. Chance is 50 %.
#
# We sample 256 reviews for each of eight test films, and estimate best-of-n.
#
# **Predict.** From $n$ = 1 to 64, the mean proxy score rises by 2 points. By how much does gold
# rise? How much would it rise if we chose by gold itself (last column)?

# %% tags=["predict"]
films = tasks.reviews.eval_prompts("test")[:8]
asked = [film for film in films for _ in range(256)]
batches = models.sample_text(policy, tokenizer, asked, batch_size=256)
proxy = torch.cat([proxy_score(batch) for batch in batches]).view(8, 256)
gold = torch.cat([gold_score(batch) for batch in batches]).view(8, 256)
table = pd.DataFrame(index=pd.Index([1, 2, 4, 8, 16, 32, 64], name="n"))
for n in table.index:
    table.loc[n, "d"] = core.best_of_n_kl(n) ** 0.5
    table.loc[n, "proxy"] = core.best_of_n_mean(proxy, proxy, n).mean().item()
    table.loc[n, "gold"] = core.best_of_n_mean(gold, proxy, n).mean().item()
    table.loc[n, "gold, chosen by gold"] = (
        core.best_of_n_mean(gold, gold, n).mean().item()
    )
table.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Gold rises by about 0.5 only, from 0.4 to 0.9. If you choose by gold itself, it rises to about 2.5.
# So the poor proxy finds a quarter of what there is to gain. But gold still rises: best-of-n
# does not go far, $d$ is 1.8 at the end.
# </details>

# %% [markdown]
# ## 5. Reinforcement learning goes further
#
# Now we train the policy for the same proxy: 24 steps of group relative policy optimisation (GRPO,
# lesson 11), without a KL penalty, and without a penalty for responses that are cut off at the limit of
# 32 tokens: we want to see everything that the policy finds. Gold is only logged. (One to
# two minutes.)
#
# **Predict.** Draw both curves over the distance $d$: the proxy and gold. Where does each end?

# %%
config = loops.GroupConfig.named(
    "grpo",
    steps=3 if FAST else 24,  # FAST=1 is for the tests of this page
    missing_eos_penalty=0.0,
    kl=loops.KLConfig(kl_coef=0.0),
)
trained = copy.deepcopy(policy).requires_grad_(True)
trained, log = loops.train_group(
    trained,
    tokenizer,
    prompts,
    proxy_score,
    config,
    reference=policy,
    monitors={"gold": gold_score},
)

# %% tags=["predict"]
run = pd.DataFrame(log)
d = run.kl.clip(lower=0) ** 0.5
show.lines(
    {"proxy": run.score, "gold": run.gold}, d, xlabel="distance d", ylabel="mean score"
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Gold rises with the proxy at first. From some distance on it gains nothing more, while the proxy rises to the
# end: this is over-optimisation. Best-of-64 went to $d$ = 1.8 only. RL goes several times
# as far.
# </details>
#
# What does it write? Here are reviews of the first policy and of the trained one for the same films:

# %%
samples = {"first policy": policy, "trained": trained}
batch = {
    name: models.sample_text(model, tokenizer, films[:3], seed=1)[0]
    for name, model in samples.items()
}
show.texts(pd.DataFrame({k: models.decode(tokenizer, v) for k, v in batch.items()}))

# %% [markdown]
# Our policy has found *the chick with the chick*. (Yours may find something else: a longer run for
# this same proxy found *anarchy of anarchy*.) Why does the proxy like this? The token microscope shows the
# proxy's score of each prefix: of the review as it would be if it ended there.

# %%
table = evaluate.token_table(
    batch["trained"], tokenizer, reward_model=proxy_model, reference=policy
)
show.microscope(table, "prefix_reward", text="all")

# %% [markdown]
# *The chick with the chick with the chick* gets a score of 5. With *film* in the place of *chick* it is 1. This is a
# fault of *this* proxy. Two others, each trained on 200 other labels, led to *young young* and to *if if if if*. In
# the 400 reviews of our labels, *chick* stands only once. One review can hardly teach the proxy what *chick* is
# worth. And nothing corrects it now: the labels are older than such reviews.

# %% [markdown]
# ## 6. The law, measured
#
# Does every proxy do this? We made nine kinds of proxies: three sizes of network, with 200, 1,000 or 5,000 labels
# each. Every kind was made with three seeds, which change the labels and the training. (With one seed, the three
# sizes learn from the same labels.) Each proxy was then optimised by best-of-n up to $n$ = 1,024, and by 36 steps of
# GRPO as in section 5 (`minirlhf experiment overoptimisation`).
#
# **Predict.** The next figure has the three sizes of network, with 1,000 labels each. `2 x 64` is two
# layers of width 64. The *gain* is the score minus that of the first policy, whose gold is 0.4. Do both
# panels keep rising? Which network is best?

# %% tags=["shared"]
rows = experiments.results("overoptimisation")  # a row per run
history = experiments.results("overoptimisation_history")  # a row per step, and per n
sizes = ("2 x 64", "3 x 192", "4 x 256")
kinds = [f"{size}, {labels} labels" for labels in (200, 1000, 5000) for size in sizes]

# %% tags=["predict"]
curves = experiments.gain_curves(history, rows, "rl", kinds)
mean = curves.groupby(["variant", "step"])[["d", "proxy", "gold"]].mean()  # over seeds
panels = {
    score: {kind: mean.loc[kind][score] for kind in kinds[3:6]}
    for score in ("proxy", "gold")
}
x = {kind: mean.loc[kind].d for kind in kinds}
show.lines(panels, x, xlabel="distance d", ylabel="gain")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - The proxy rises to the end, by 5 to 6 standard deviations.
# - Gold does not. At $d$ = 5 it has gained 1.7 to 2.3, and later not much more. In the end it is lower again.
# - No network is clearly the best. The curves are means of three seeds, and the seeds differ more: with
#   `4 x 256`, the highest gain of a run (a mean over five steps) is 1.3, 2.6 or 2.3.
# </details>
#
# Now the labels. This is the middle size, `3 x 192`:

# %%
show.lines(
    {kind: mean.loc[kind].gold for kind in kinds[1::3]},
    x,
    xlabel="distance d",
    ylabel="gain in gold",
)

# %% [markdown]
# Near the start the curves agree. Further out, more labels are better. Averaged over all sizes, the
# highest gain of a run is 1.4 with 200 labels, 2.4 with 1,000 and 2.7 with 5,000.
#
# **Is there a peak?** Of these 27 runs, 20 end at least 0.3 below their highest gold. So yes, in most
# runs. But it lies at $d$ = 3 in one run and at 10 in another, and some runs do not fall at all.
#
# Now the law. We fit $\alpha$ and $\beta$ by least squares to the points with $d \ge 1$. (For RL,
# $\alpha$ and $\beta$ are means over the three runs.) Here is one kind, measured and fitted:

# %%
fits, panels, places = {}, {}, {}
for way, last in {"best-of-n": "n", "rl": "step"}.items():
    fits[way] = experiments.fitted_curves(history, rows, way, kinds)
    alpha, beta = fits[way].loc[kinds[4], ["alpha", "beta"]]
    points = experiments.gain_curves(history, rows, way, kinds[4:5])
    points = points.groupby(last)[["d", "gold"]].mean().query("d >= 1")
    places[f"{way}, measured"] = points.d
    places[f"{way}, law"] = grid = torch.linspace(1, points.d.max(), 50)
    law = core.overoptimisation_gain(grid, alpha, beta, form=way)
    panels[way] = {f"{way}, measured": points.gold, f"{way}, law": law}
show.lines(panels, places, xlabel="distance d", ylabel="gain in gold")

# %% [markdown]
# Best-of-n follows its law closely, RL roughly. All nine fits together (`fits["rl"]` has the numbers) say:
#
# - **RL**: $\alpha$ grows with the labels: on average 0.48 with 200, 0.78 with 1,000 and 0.95 with 5,000. $\beta$
#   grows in the same proportion. So the curve gets higher, but its peak, which depends on $\alpha / \beta$ only,
#   stays near $d$ = 8. On average, that is: in single runs it lies at 4 or beyond 20, too.
# - **Best-of-n**: gold still rises at $n$ = 1,024, for every kind. But that is only $d$ = 2.4. So we see no peak.
#   The fits put it between $d$ = 4 and 12, far outside of what we measured.
#
# %% [markdown]
# ## 7. What does the policy find?
#
# We follow one kind along its three runs: `3 x 192, 1000 labels`. Two more judges scored the same responses, and
# nothing was trained for them. *gold_ensemble* is the mean of three GPT-2 models that predict people's ratings.
# *lexicon* is a list of words with their tone, from −1 to 1.
#
# **Predict.** Gold falls after its peak. Do the others, too?

# %% tags=["predict"]
one = history[(history.variant == kinds[4]) & (history.way == "rl")]
judges = ["gold", "gold_ensemble", "lexicon"]
one.pivot_table(index="step", columns="seed", values=judges).loc[::5].round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **gold** rises to 3.0, 2.5 and 3.3, and ends at 1.9, 2.3 and 2.2: a clear fall in two of the three runs.
# - **gold_ensemble** rises to about 3 in each run, and stays there.
# - **lexicon** disagrees with itself. It ends at 0.97 in the run of seed 2, and at 0.00 in that of seed 1, which
#   writes *moving* again and again: its list does not have this word.
# </details>
#
# These are responses of the first run:

# %%
texts = one[one.seed == 0].set_index("step").texts
show.texts(pd.DataFrame({f"step {step}": texts[step] for step in (0, 8, 16, 32)}))

# %% [markdown]
# At step 16 a review is a list of words of praise, and at step 32 mostly one word, repeated until the limit: at the
# end of the three runs 99 % of the responses do not end by themselves. The list, where gold is highest, is no good
# review either.
#
# **Gold is a proxy, too.** It was fitted to people's ratings of people's reviews. It sees only which words, and which
# pairs of neighbouring words, a review has. All words of a review share one fixed weight, so a repeated word
# takes the place of others. *touching* gets 1.3, however often it is repeated, and
# *touching, compelling, moving, funny, lovely* gets 2.9.
#
# What may you conclude? Where the proxy goes on rising, gold and *gold_ensemble* gain nothing more. So a
# higher proxy score no longer means a better review. *How much worse* it becomes, the judges do not agree on.

# %% [markdown]
# ## 8. What helps?
#
# **More labels** help (section 6). Three other remedies:
#
# - **An ensemble.** Five reward models learn from the same labels, with other random numbers. The
#   score is the mean of the five, or the lowest, or the mean minus the variance. The last two punish
#   disagreement.
# - **A KL penalty** (lesson 07) holds the policy near its start.
# - **An early stop** keeps the policy of an earlier step.
#
# **Predict.** Which of these curves reach a higher gold than the plain run? Which only stop earlier on it?

# %% tags=["predict"]
plain = "3 x 192, 1000 labels"
remedies = {
    "ensembles": ("mean of 5", "lowest of 5", "mean - variance of 5"),
    "KL penalty": ("kl_coef 0.02", "kl_coef 0.1"),
}
panels, x = {}, {"plain": mean.loc[plain].d}
for title, names in remedies.items():
    panels[title] = {"plain": mean.loc[plain].gold}
    for name in names:
        curve = experiments.gain_curves(history, rows, "rl", [f"{plain}, {name}"])
        curve = curve.groupby("step")[["d", "gold"]].mean()
        panels[title][name], x[name] = curve.gold, curve.d
show.lines(panels, x, xlabel="distance d", ylabel="gain in gold")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **The mean of five** is better than the plain run with all three seeds: its highest gold is higher by 0.1,
#   1.0 and 1.3.
# - **The lowest** and **the mean minus the variance** are not better with every seed.
# - **The KL penalty** stays near the plain run's curve: at the same distance, gold is at most 0.34 away from
#   it. But it stops the policy at $d$ = 3.5 to 5.6, where most of the gain is made. Both coefficients end with
#   a gain of 2.1. The plain run goes on and ends with 1.7.
# </details>
#
# **When to stop?** Gold is not there to tell. So we take a second proxy of the same kind, trained on
# other labels. It judges the policy at every step, but the policy is not trained for it (column
# `held_out`). We keep the policy that it likes best.


# %%
def stopped(run):
    """Gold at its best, where the second proxy is highest, and at the end."""
    five = run.gold.rolling(5).mean()  # a single step is noisy
    stop = run.gold[run.held_out.idxmax()]
    return pd.Series({"best": five.max(), "stop": stop, "end": five.iloc[-1]})


rl = history[(history.way == "rl") & history.variant.isin(kinds)]
each = rl.groupby(["variant", "seed"])[["gold", "held_out"]].apply(stopped)
each.groupby("variant").mean().loc[kinds].round(2)

# %% [markdown]
# (Scores, not gains.) The stop is better than the end in 12 of the 27 runs and worse in 4; the others
# differ by less than 0.05. On average it gains 0.28, and the best step would gain 0.62. So it may help, but do not
# rely on it: the second proxy is built like the first one, and may share its errors.

# %% [markdown]
# ## What to remember
#
# - A proxy is right on average where its labels come from. Optimising for it leads to where it is
#   wrong.
# - The distance is $d = \sqrt{\mathrm{KL}}$, with the KL of *whole responses* in nats. Of
#   best-of-n it follows from $n$ alone.
# - Gold gains $d(\alpha - \beta d)$ with best-of-n, and $d(\alpha - \beta \log d)$ with RL.
# - The proxy cannot show the peak, because it rises to the end. Another judge may, where its errors differ
#   from the proxy's. So read samples, too.
# - More labels give a higher gain, and so does the mean of several reward models. A KL penalty ends the run while
#   gold is high.
#
# ## Exercises
#
# The checkers say "pass", or name the mistake. Solutions are in
# `solutions/16_over_optimisation.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Best-of-n, exactly** *(easy, 10 minutes)*. `probs` (Y,) has the probability of each response
# under the first policy, and `scores` (Y,) its proxy score. No two scores are equal. Return the
# probability that best-of-n keeps each response, (Y,).
#
# *Hint:* the responses are in no particular order. `(scores[:, None] > scores).float()` says which
# responses lie below which.


# %% tags=["exercise"]
def kept_probs(probs, scores, n): ...  # your code


check.kept_probs(kept_probs)


# %% tags=["solution"]
def kept_probs(probs, scores, n):
    below = (scores[:, None] > scores).to(probs) @ probs
    return (below + probs) ** n - below**n


check.kept_probs(kept_probs)

# %% [markdown] tags=["exercise"]
# **2. Best-of-n from samples** *(medium, 10 minutes)*. `gold` (N,) and `proxy` (N,) are the scores of
# N samples for one prompt. No two proxy scores are equal. Return the estimate of section 3 of the gold
# score of best-of-n, one number.
#
# *Hint:* `math.comb(a, b)` is $\binom{a}{b}$, and `0` if $b$ is larger than $a$. Python counts from `0`, the
# formula from `1`.


# %% tags=["exercise"]
def best_of_n_gold(gold, proxy, n): ...  # your code


check.best_of_n_gold(best_of_n_gold)


# %% tags=["solution"]
def best_of_n_gold(gold, proxy, n):
    ordered = gold[proxy.argsort()]
    sets = [math.comb(below, n - 1) for below in range(len(gold))]
    return ordered @ torch.tensor(sets).to(gold) / math.comb(len(gold), n)


check.best_of_n_gold(best_of_n_gold)

# %% [markdown] tags=["exercise"]
# **3. Find the bug** *(medium, 10 minutes)*. A colleague draws best-of-n and RL in one figure and
# says: "At the same distance, RL gains more." Gao and colleagues found the opposite: RL goes much
# further for the same gold. The first cell has the colleague's figure, from our record. The second
# cell has the function that computed the distances of RL. Its inputs are the log-ratios
# $\log \pi - \log \pi_{\text{first}}$ of the response tokens, (B, R), and a mask that is true at real
# tokens. Padding can hold NaN. The distances of best-of-n are those of section 4.
#
# What is wrong? Mend `distance`. Then draw the right figure in the last cell. In the record, the
# column `kl` has the KL of whole responses, and `length` the mean number of tokens.


# %% tags=["exercise", "solution"]
def draw(distance_of_rl):
    one = history[(history.variant == "2 x 64, 1000 labels") & (history.seed == 0)]
    n, rl = one[one.way == "best-of-n"], one[one.way == "rl"]
    return show.lines(
        {"best-of-n": n.gold, "RL": rl.gold},
        {"best-of-n": n.kl**0.5, "RL": distance_of_rl(rl)},
        xlabel="distance d",
        ylabel="gold",
    )


draw(lambda rl: (rl.kl / rl.length).clip(lower=0) ** 0.5)


# %% tags=["exercise"]
def distance(log_ratios, mask):
    """The distance d of a batch of responses, one number."""
    return (torch.where(mask, log_ratios, 0.0).sum() / mask.sum()).sqrt()


check.distance(distance)

# %% [markdown] tags=["solution"]
# The mean runs over *tokens*, so this is the KL per token. The KL of best-of-n is that of whole
# responses. The responses of this run have 18 to 32 tokens on average, so the colleague's $d$ is too small by
# a factor of 4.2 to 5.7.


# %% tags=["solution"]
def distance(log_ratios, mask):
    """The distance d of a batch of responses, one number."""
    return torch.where(mask, log_ratios, 0.0).sum(1).mean().sqrt()


check.distance(distance)

# %% tags=["exercise"]
# your figure: draw(lambda rl: ...)

# %% tags=["solution"]
draw(lambda rl: rl.kl.clip(lower=0) ** 0.5)

# %% [markdown] tags=["exercise"]
# **4. Where is the peak?** *(medium, 15 minutes)*. `d` (N,) and `gain` (N,) are the points of an RL
# run, all with $d \ge 1$. Fit $\alpha$ and $\beta$ by least squares, and return the distance at which the
# fitted curve is highest. First on paper: where is the derivative of $d(\alpha - \beta \log d)$ zero?
#
# Then take a recorded run in the second cell: `4 x 256, 1000 labels`, `seed == 0`, `way == "rl"`. Is the
# fitted peak where gold was highest?
#
# *Hint:* the law is linear in $\alpha$ and $\beta$. So `torch.linalg.lstsq(A, b).solution` finds
# them, where $A$ has a column for each, `(N, 2)`, and $b$ is `(N, 1)`.


# %% tags=["exercise"]
def peak_of_rl(d, gain): ...  # your code


check.peak_of_rl(peak_of_rl)


# %% tags=["solution"]
def peak_of_rl(d, gain):
    columns = torch.stack([d, -d * d.log()], 1)
    alpha, beta = torch.linalg.lstsq(columns, gain[:, None]).solution[:, 0]
    return (alpha / beta - 1).exp()


check.peak_of_rl(peak_of_rl)

# %% [markdown] tags=["solution"]
# The derivative is $\alpha - \beta \log d - \beta$. It is 0 at $d = e^{\alpha/\beta - 1}$.

# %% tags=["exercise"]
# your look: columns kl and gold of history; the gain is gold minus gold at step 0

# %% tags=["solution"]
recorded = history[(history.variant == kinds[5]) & (history.seed == 0)]
recorded = recorded[recorded.way == "rl"].set_index("step")
far = recorded[recorded.kl >= 1]
gains = far.gold - recorded.gold[0]
away, won = (torch.tensor(x.to_numpy()) for x in (far.kl**0.5, gains))
print(f"fitted peak: d = {peak_of_rl(away, won):.1f}")
print(f"highest gold: d = {away[won.argmax()]:.1f}")

# %% [markdown] tags=["solution"]
# They are far apart. This run rises fast and then falls slowly, which the law cannot follow. And near its peak
# the fitted curve is flat. So take the fitted peak of one run as a rough number.

# %% [markdown] tags=["exercise"]
# **5. An early stop** *(medium, 15 minutes)*. Section 8 looked back at whole runs. While a run goes on, you
# do not know what is to come. So you have *patience*: you stop at the first step at which the highest score
# so far is `patience` steps old, or at the end of the run. `held_out` (N,) has the scores of the second proxy
# at each step. Return the step whose policy you keep: that of the highest score up to your stop.
#
# *Example:* with `held_out = [0, 1, 0.5, 0.4, 2]` and `patience = 2` you stop at step `3`, and keep step `1`.
#
# Then try it in the second cell on the run of exercise 4, with `patience = 5`: is your stop better than the end?
# Has the second proxy warned you?


# %% tags=["exercise"]
def early_stop(held_out, patience): ...  # your code


check.early_stop(early_stop)


# %% tags=["solution"]
def early_stop(held_out, patience):
    kept = 0
    for step in range(1, len(held_out)):
        if held_out[step] > held_out[kept]:
            kept = step
        elif step - kept >= patience:
            break
    return kept


check.early_stop(early_stop)

# %% tags=["exercise"]
# your try: column held_out of the run

# %% tags=["solution"]
kept_step = early_stop(torch.tensor(recorded.held_out.to_numpy()), patience=5)
print(f"kept: step {kept_step}, gold {recorded.gold[kept_step]:.2f}")
print(f"end: gold {recorded.gold.iloc[-1]:.2f}")

# %% [markdown] tags=["solution"]
# The stop is better, but by chance. The second proxy only pauses here. Later it rises further, to the end of the
# run, while gold falls. So it has not warned.

# %% [markdown]
# ## Questions
#
# <details><summary>1. My reward model is right on 78 % of new pairs. Is it a good proxy?</summary>
#
# You cannot tell from that. The new pairs were written by the first policy. The trained policy writes
# reviews that the first one never wrote, and nobody has counted how often the reward model is right
# there. Our proxies of the kind `2 x 64, 5000 labels` are right on 78 % of the new pairs. Gold
# falls under them all the same: by 0.7 on average.
# </details>
#
# <details><summary>2. Why the square root of the KL, and not the KL?</summary>
#
# Change the parameters of the policy by a small step $\varepsilon$ in one direction. The mean score
# changes by about $c\,\varepsilon$. The KL changes by about $a\,\varepsilon^2$: it is smallest at the
# first policy, so it has no slope there. So the score grows like the square root of the KL. With
# $d = \sqrt{\mathrm{KL}}$ on the axis, a curve begins as a straight line.
# </details>
#
# <details><summary>3. My best-of-64 responses are good. Does my reward model have no errors?</summary>
#
# It has errors, but best-of-64 goes only to $d$ = 1.8. It can only choose what the first policy writes
# by itself. A policy that is trained writes what the first policy would not write in a million
# samples.
# </details>
#
# <details><summary>4. Best-of-n gains more than RL at the same distance. Why use RL at all?</summary>
#
# Best-of-n needs $n$ samples for each answer, for ever. And its distance grows very slowly: the KL
# is about $\log n$. RL pays once. After that each answer costs one sample, and it can go as far as
# you let it.
# </details>
#
# ## Going further
#
# **The coefficients of RL** against the number of labels. The bands reach from the lowest to the highest
# of the three seeds:

# %%
fit, panels, bands = fits["rl"], {}, {}
for name in ("alpha", "beta"):
    low, high = fit[f"{name}_low"], fit[f"{name}_high"]
    panels[name] = {size: fit[name].iloc[i::3] for i, size in enumerate(sizes)}
    bands[name] = {size: (low[i::3], high[i::3]) for i, size in enumerate(sizes)}
show.lines(
    panels,
    [200, 1000, 5000],
    bands=bands,
    log="x",
    xlabel="labels",
    ylabel="coefficient",
)

# %% [markdown]
# Averaged over the sizes, both coefficients grow with the number of labels, with each of the three seeds. We see no
# order of the sizes: on average over all labels, the highest gain is 1.8 with `2 x 64`, 2.6 with `3 x 192` and
# 2.1 with `4 x 256`.
#
# **Does the law of RL fit?** A run of RL stays within about 0.23 of it (root mean square). The form of best-of-n would
# be a little nearer, with 0.19: our runs cannot tell which of the two is right for RL.
#
# **Can the $\beta$ of best-of-n be told from $d$ below 2.4?** Only roughly. In eight of the nine kinds its 95 %
# interval lies above 0, so the curve seems to bend. (The interval is a bootstrap over films and seeds. With three
# seeds it is rather too narrow: lesson 14b, exercise 2.) And it is wide: with `3 x 192, 1000 labels` from 0.03 to
# 0.11. The fitted peak then lies between 4 and 13, and only if the law goes on beyond what we measured.
#
# **What Gao and colleagues found, and what we see.** Their proxies have up to 3 billion parameters, ours up
# to 4 million.
#
# | they | here |
# |---|---|
# | Best-of-n has a peak within its range | None up to $n$ = 1,024 |
# | RL has a peak | In 20 of 27 runs; three seeds do not agree where |
# | At the same distance RL gains less than best-of-n | Yes: at $d$ = 2.4 it gains 1.1, best-of-n 1.6 (means of the nine kinds; RL on films of training, best-of-n on test films) |
# | The coefficients change smoothly with the size of the proxy | Not seen |
# | More labels are better | Yes |
# | A KL penalty stays on the same curve | Nearly |
#
# **How sure is the early stop?** Its 0.28 has a 95 % interval from −0.06 to 0.61. For it we first average over the
# three sizes, because they have the same labels. Nine numbers are left: three seeds for each number of labels.
#
# **Can other runs tell you when to stop?** Say you know the gold of two seeds, and want to stop the third. You
# choose the step at which the mean gold of the two is highest. Stopping there gives 0.25 more gold than the end
# of the run (95 % interval −0.03 to 0.53). So it is not clearly better than no stop.
#
# **Human labels.** 5,000 pairs rated by people, with the network `4 x 256`, make a proxy with which gold gains 1.9
# at most (mean of three runs). With 5,000 labels from gold it is 2.4. This proxy agrees less with gold. Two things
# differ: its pairs are reviews by people, not by the policy, and gold only predicts these people's taste.
#
# **Chosen by gold, and by length.** Best-of-1024 gains 2.8 if gold itself chooses. If the longest response is
# chosen, it gains 0.06. So gold is no judge of length.
#
# **The distance of best-of-n.** Let every single response be rare. Then best-of-n keeps $y$ about
# $n F^{n-1}$ times as often as the first policy writes it. This depends on $y$ through $F$ only, so the KL of the
# responses is the KL of their $F$. The $F$ of a sample is spread evenly between $0$ and $1$. The $F$ of the best
# of $n$ samples is at most $u$ with the probability $u^n$, so its density is $n u^{n-1}$. The KL between the two is
#
# $$ \int_0^1 n u^{n-1} \log (n u^{n-1}) \, du = \log n - \frac{n-1}{n} . $$
#
# **What is special here?** The policy and the proxies share their tokeniser and the texts that they read first.
# Gold is of another kind: a regression on words, fitted to ratings of films from which no proxy gets labels. If
# a proxy and gold learned from the same ratings, they could share errors, which hides a fall of gold.
#
# **References.** Gao, Schulman and Hilton 2023, *Scaling laws for reward model overoptimization*. Beirami
# et al. 2024, *Theoretical guarantees on the best-of-n alignment policy* (the KL is at most the bound).
# Nakano et al. 2021, *WebGPT*, appendix I (the estimator of section 3). Coste et al. 2024, *Reward model
# ensembles help mitigate overoptimization*. Stiennon et al. 2020, *Learning to summarize from human
# feedback* (the first such curves).
#
# *How this lesson is checked:* the estimator and the exact probabilities are compared with lists of
# all sets and all responses in `tests/core/test_best_of_n.py`. The fits recover known coefficients
# from simulated curves (`tests/core/test_overoptimisation.py`,
# `tests/experiments/test_overoptimisation_curves.py`). Every number of the prose is compared in
# `tests/claims/test_lesson_16.py`.
