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
# # 06b · Reading a PPO run (a lab)
#
# After this lab you can
#
# - say what each curve of a PPO run shows, and which shapes are a warning,
# - work out from the curves which setting made a run go wrong,
# - compare two runs fairly: at equal KL.
#
# Lessons 04 to 06 added a critic, generalised advantage estimation (GAE) and the clip. Sections 4 and 5 ask what each
# of them buys.
#
# **You need** lesson 06 (PPO). About 35 minutes to read and 60 for the exercises.

# %%
import copy

import pandas as pd
import torch

from minirlhf import experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. A healthy run
#
# Lesson 06 wrote one training step of proximal policy optimisation (PPO). This lab reads whole runs. We recorded
# them, so that you do not have to wait: each is `train_ppo` with 24 training steps of 64 responses. Each was repeated
# with three seeds. In the figures a line is the mean over the seeds, and the band reaches from the lowest to the
# highest seed.
#
# The usual settings of `train_ppo` differ from lesson 06's loop in six ways:
#
# | | the loop of lesson 06 | `train_ppo` | why |
# |---|---|---|---|
# | learning rate of the actor | 2e-5 in all training steps | 1e-4. It starts at a fifth of that, rises for five training steps, and then falls towards 0 | learn faster |
# | learning rate of the critic | 6e-5 in all training steps | 3e-4, which rises and falls in the same way | the same |
# | gradient | as it is | shortened to length 1 if it is longer, as all are here (*gradient clipping*, which is not PPO's clip) | the gradients of all batches have the same length |
# | advantages of a batch | as they are | shifted and scaled to mean 0 and variance 1 (**whitening**) | the same scale in all batches |
# | critic's loss | half the squared difference | clipped, too: once a value has moved by 0.5 towards its target, it gets no gradient | no sudden jumps |
# | response without an end token (EOS) | no penalty | its score is lowered by 1 | reviews should end |
#
# Here are the curves of a healthy run. Before you read on, look at each one and ask yourself: is this what I expect?

# %%
show.curves(
    experiments.results("tour_history"),
    stage="ppo",
    columns=[
        *("score", "gold", "kl"),
        *("entropy", "clip_fraction", "explained_variance"),
    ],
)

# %% [markdown]
# Lesson 06 explained the first three:
#
# | curve | what it is | what you see |
# |---|---|---|
# | **score** | the reward model's score. The policy is trained to raise it | rises from about 0 to about 1.2 |
# | **gold** | the rating from −4 to 4 that people would give, predicted by another model. Training never sees it | rises too |
# | **kl** | how far the policy has moved from the reference, in nats per response | grows to about 2 and stays near that |
#
# The other three say how the training is going:
#
# **Entropy** says how undecided the policy is about the next token (lesson 03), in nats. Where it is low, the
# samples are alike. Here it stays between 2.1 and 2.6, so the reviews are still varied.
#
# **The clip fraction** (`clip_fraction`) is the share of clipped tokens, over all updates of a training step. It says
# how far the updates on one batch move the policy. It peaks at 8 to 9 %, and falls to 0 together with the learning
# rate.
#
# **The explained variance** says how well the critic predicts its targets. 1 is perfect, and 0 is as good as a
# constant. It starts near 0 or below: the critic is still a copy of the reward model, which has learned to score
# *finished* reviews. It reaches 0.42 after one training step, 0.48 after two, and 0.7 at the end. This flatters the
# critic. Its targets contain its own predictions (lesson 06, section 4), so it is partly compared with itself. Lesson
# 05 compared its critic with the returns $G_t$, and found 0.40.

# %% [markdown]
# ## 2. A run that goes wrong
#
# We trained PPO again with *eight* epochs on each batch instead of two: with the clip (orange) and without it (green).
# The runs called *as it is* (blue) have two epochs and the clip.
#
# **Predict.** The figure shows score, gold, KL, length, entropy and clip fraction. In which of these will the green
# runs differ from the others, and in which direction?

# %% tags=["predict"]
compared = ["as it is", "eight epochs", "eight epochs, no clip"]
history = experiments.results("ablations_history")
show.curves(
    history[history.variant.isin(compared)],
    columns=["score", "gold", "kl", "length", "entropy", "clip_fraction"],
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The green runs, with eight epochs and no clip, **collapse**: they write nearly the same review for many films.
#
# - The KL climbs above 10 nats.
# - The responses shrink to 6 tokens, and the entropy falls from 2.5 to about 1.
# - Score and gold fall back in between. At the end both look fine again.
# - The clip fraction is near 0, because "no clip" is a very wide range.
#
# With the clip (orange), eight epochs do not collapse. But these runs, too, show warnings: their responses shrink
# from 20 to 10 tokens, and the clip fraction reaches 42 %.
# </details>
#
# Score and gold look fine at the end of all three. So read samples. These are the first ones of seed 0, for three of
# the 76 test films, which training never sees:

# %%
runs = experiments.results("ablations", "leash", "parts")  # the names of three records
show.texts(experiments.samples(runs, compared).head(3))

# %% [markdown]
# With eight epochs and no clip, all three films have the same review. *As it is* and *eight epochs* are harder to
# tell apart by three samples.
#
# **What is the clip good for?** After the training, we measured gold on four responses to each test film. The table has
# the means of three seeds:
#
# | experiment | with the clip | without the clip |
# |---|---|---|
# | eight epochs | gold 1.76, KL 4.2 | gold 1.42, KL 6.7: collapsed |
# | two epochs | gold 1.36, KL 1.8 | gold 1.41, KL 2.3 |
#
# In both experiments, the policy moves less far with the clip. Is this all that the clip does? With two epochs the
# run without the clip even has more gold. Section 4 compares more carefully.

# %% [markdown]
# ## 3. A list of warnings
#
# How do you see that your own run goes wrong?
#
# | curve | healthy | a warning |
# |---|---|---|
# | score, gold | rise together, then flatten | fall back, or the score rises alone |
# | KL | grows, then stays | jumps, or grows to the end |
# | length | changes slowly | runs to very short or to the limit |
# | entropy | changes little | collapses, or jumps up |
# | clip fraction | a few percent | tens of percent: the updates on one batch go far. If KL, length or samples look bad, too, lower the learning rate or the number of epochs |
# | explained variance | rises within a few training steps | stays near 0. (A high value proves nothing: in the collapsed runs it ends at 0.73) |
#
# One warning alone does not prove that a run goes wrong. Look at the other curves, and read samples.
#
# **One number more.** PPO does not maximise the score. It maximises the score minus $\beta$ times the KL, because the
# penalty is a part of the reward (lesson 06). Before the training this number is about 0. Here it is over the last
# eight training steps:
#
# | run | score | KL | score − 0.5 · KL |
# |---|---|---|---|
# | **as it is** | 1.17 | 1.95 | 0.20 |
# | **no clip** | 1.23 | 2.59 | −0.07 |
# | **eight epochs** | 1.47 | 4.41 | −0.73 |
# | **eight epochs, no clip** | 1.34 | 7.68 | −2.50 |
#
# By what they are trained for, the runs with eight epochs end worse than no training at all. One reason may be that
# the penalties of a batch are computed before its updates. So the updates do not see how far they go. (The number
# depends on $\beta$. To compare methods, section 4 has a measure that does not.)

# %% [markdown]
# ## 4. A fair comparison: at equal KL
#
# With the clip, eight epochs end with more gold than two: 1.76 against 1.36. Do more epochs pay, then?
#
# Look at the KL as well. It is 4.2 with eight epochs, and 1.8 with two. Perhaps a policy that moves further from the
# reference finds more gold, whatever has moved it. We can test this: a smaller KL coefficient moves it further, too.
#
# | KL coefficient, two epochs | 2 | 1 | 0.5 | 0.25 | 0.1 |
# |---|---|---|---|---|---|
# | its KL | 0.73 | 1.00 | 2.04 | 4.06 | 9.14 |
# | its gold | 0.61 | 0.91 | 1.43 | 2.01 | 2.78 |
#
# (The usual coefficient is 0.5. These settings were run twice with three seeds: gold 1.36 above, 1.43 here. Rounding
# and sampling make that difference.)
#
# The further, the more gold. The coefficient 0.25 goes as far as eight epochs, and has 2.01 instead of 1.76. So at
# the same distance from the reference, eight epochs are *worse*.
#
# **Why does the distance matter?** To have more gold in these runs, it is enough to choose a smaller coefficient. So
# more gold alone proves nothing. And far from the reference, the reviews become alike (already at 9 nats: "Going
# further"), and the reward model can no longer be trusted (lessons 07 and 16). Without any penalty, the KL on the
# test films is 91 nats, and the gold is lower again, 2.63. So the fair question is: how much gold does a method have
# *at a given KL*?
#
# We draw the five runs of the table as a line of gold over KL. Between two of its points the line is straight, on a
# logarithmic KL axis. Another run is compared **at equal KL**: is it above the line, or below it, at its own KL?
#
# **Predict.** The figure shows five runs of PPO beside the line: *as it is*, *one epoch*, *no clip*, *eight epochs*,
# and *eight epochs, no clip*. Which of them lie clearly below the line?

# %% tags=["predict"]
ppo = ["kl_coef 2", "kl_coef 1", "kl_coef 0.5", "kl_coef 0.25", "kl_coef 0.1"]
others = ["as it is", "one epoch", "no clip", "eight epochs", "eight epochs, no clip"]
shown = runs[runs.variant.isin([*ppo, *others])]
show.frontier(shown, curves={"PPO": ppo}, log=True, ylabel="gold")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Those with eight epochs. *No clip* is a little below it, too, but its interval contains 0:
#
# | | KL | gold minus that of the line at the same KL | 95 % interval |
# |---|---|---|---|
# | *as it is* | 1.8 | 0.01 | −0.14 to 0.15 |
# | *one epoch* | 1.4 | 0.07 | −0.19 to 0.32 |
# | *no clip* | 2.3 | −0.14 | −0.42 to 0.14 |
# | *eight epochs* | 4.2 | −0.29 | −0.50 to −0.08 |
# | *eight epochs, no clip* | 6.7 | −1.07 | −1.37 to −0.77 |
#
# In the figure the line goes through the means. For the table, each seed is compared with a line of its own runs.
# The interval says how sure the difference is: 95 of 100 such intervals contain the mean over all seeds and films.
# ("Going further" says how it is made.)
# </details>
#
# **More epochs** do not pay here: eight epochs lie 0.29 below the line.
#
# **The clip.** With eight epochs, the run with the clip has more gold *and* a smaller KL, so it is better in both.
# With two epochs, the line itself has the clip. Without it, the run is 0.14 lower: by 0.02, 0.16 and 0.24 on the
# three seeds. But the interval contains 0: three seeds are too few to say. At least, the run without the clip only
# *looked* better than *as it is*: it had gone further. (On single batches of the small world in lesson 06, stopping
# early did as well as the clip.)

# %% [markdown]
# ## 5. What does each part of PPO buy?
#
# Now we can compare PPO with REINFORCE. On the way from one to the other we add a critic, then GAE, then several
# updates of each batch, with the clip. We also try larger steps: a learning rate that is two or four times as large.
#
# | name | critic | $\lambda$ | updates per batch | learning rate |
# |---|---|---|---|---|
# | **REINFORCE** | no | | 1 | 1e-4 |
# | **with a critic** | yes | 1 | 1 | 1e-4 |
# | **with GAE** | yes | 0.95 | 1 | 1e-4 |
# | **REINFORCE, double steps** | no | | 1 | 2e-4 |
# | **with GAE, double steps** | yes | 0.95 | 1 | 2e-4 |
# | **REINFORCE, larger steps** | no | | 1 | 4e-4 |
# | **with GAE, larger steps** | yes | 0.95 | 1 | 4e-4 |
# | **PPO**, the line of section 4 | yes | 0.95 | 4 | 1e-4 |
#
# All sample the same number of responses. The first seven have the KL coefficient 0.5. REINFORCE takes the KL of the
# whole response off its score, as one number. The others pay for each token (lesson 06), and whiten the advantages.
#
# **Predict.** Which of the seven points lie clearly below PPO's line?

# %% tags=["predict"]
sizes = ["", ", double steps", ", larger steps"]
curves = {
    "PPO, five KL coefficients": ppo,
    "REINFORCE, three step sizes": ["REINFORCE" + size for size in sizes],
    "with GAE, three step sizes": ["with GAE" + size for size in sizes],
}
shown = runs[runs.variant.isin([*sum(curves.values(), []), "with a critic"])]
show.frontier(shown, curves=curves, log=True, ylabel="gold")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Those with larger steps, and REINFORCE with double steps:
#
# | | gold minus that of the line at the same KL | 95 % interval | tokens per review |
# |---|---|---|---|
# | REINFORCE | 0.03 | −0.07 to 0.14 | 16 |
# | with a critic | 0.01 | −0.06 to 0.09 | 16 |
# | with GAE | 0.12 | −0.23 to 0.47 | 17 |
# | REINFORCE, double steps | −0.40 | −0.57 to −0.23 | 12 |
# | with GAE, double steps | −0.09 | −0.32 to 0.14 | 15 |
# | REINFORCE, larger steps | −0.77 | −1.08 to −0.45 | 8 |
# | with GAE, larger steps | −0.43 | −0.75 to −0.10 | 11 |
#
# The interval of *with GAE* is wide because of one seed. Its KL is smaller than any on its line, so it is compared
# with the end of the line, and has 0.28 more.
# </details>
#
# **Two ways to go further.** The points of PPO's line differ in their KL coefficient. The other two lines differ in the
# size of their steps. A smaller coefficient brings more gold for the same KL than larger steps.
#
# **Why do larger steps cost gold?** The gradient of a batch is partly luck: it depends on which responses were
# sampled. A large step follows this luck a long way before the next batch can correct it. Luck moves the policy away
# from the reference, and brings no gold. If this is a reason, larger batches should help, because luck averages out.
# We repeated the runs with larger steps, now with 256 responses in each batch instead of 64:
#
# | runs | 64 responses in a batch: KL, gold | 256 responses: KL, gold |
# |---|---|---|
# | *REINFORCE, larger steps* | 5.9, 1.60 | 3.9, 1.66 |
# | *with GAE, larger steps* | 3.8, 1.53 | 2.8, 1.56 |
#
# With larger batches the same steps lead less far, and end with as much gold. At equal KL, they have 0.19 (−0.17 to
# 0.56) and 0.15 (−0.05 to 0.34) more than their own lines with 64 responses. All six runs have more, but both
# intervals contain 0. So luck is likely to be a part of the reason; three seeds are too few to be sure. It is
# not the whole: all six runs still lie below PPO's line, by 0.32 (−0.05 to 0.70) and 0.12 (0.05 to 0.20). And they
# cost four times as many samples.
#
# **What does the critic buy?** Compare the two lines with three step sizes:
#
# | steps | REINFORCE: KL, gold | with GAE: KL, gold |
# |---|---|---|
# | small | 1.5, 1.22 | 1.0, 1.01 |
# | double | 3.2, 1.39 | 1.8, 1.27 |
# | larger | 5.9, 1.60 | 3.8, 1.53 |
#
# With steps of the same size, the runs with GAE move less far. (With a critic and $\lambda = 1$, the KL is 1.5, as far
# as REINFORCE. So this may come from $\lambda = 0.95$.) And at equal KL? Now the line *with GAE* is
# the measure. REINFORCE minus this line is 0.05 (−0.02 to 0.13) with small steps, and −0.07 (−0.16 to 0.01) with double
# steps. So we see no clear difference. (With larger steps, REINFORCE goes beyond the end of the line: no
# comparison.)
#
# **A trap.** With double steps, REINFORCE is 0.40 below PPO's line, and *with GAE* only 0.09. Does the critic bring
# 0.31? No. The first run is at 3.2 nats and the second at 1.8, and the distance to PPO's line grows with the KL. Two
# distances from a line must not be subtracted if they were taken at a different KL.
#
# **What does the reuse buy?** Speed. This is the mean score over all batches but the first, lowest to highest seed:
#
# | | mean score | KL at the end |
# |---|---|---|
# | *REINFORCE* | 0.64 to 0.75 | 1.5 |
# | *with GAE* | 0.63 to 0.70 | 1.0 |
# | *PPO*: four updates of each batch | 0.94 to 1.00 | 1.8 |
# | *with GAE, double steps* | 0.89 to 0.93 | 1.8 |
# | *REINFORCE, double steps* | 0.99 to 1.05 | 3.2 |
#
# Four updates of each batch are faster than one. *REINFORCE, double steps* is as fast, but pays with a KL of 3.2. And
# one update with twice the learning rate is nearly as fast (*with GAE, double steps*). It even ends at the same KL as
# PPO, and only 0.09 below the line.
#
# **Why PPO, then?** Where samples are expensive, each should be used several times, and the clip limits the damage.
# PPO was made for simulated robots and video games (Schulman et al. 2017). Here samples are cheap, and a larger
# learning rate does nearly the same. Others have found, too, that REINFORCE is enough for language models that start
# from supervised fine-tuning (Ahmadian et al. 2024). What we have seen of each part:
#
# | part | what it is for | what this course shows |
# |---|---|---|
# | critic and GAE | less spread | in the small world a right critic saves samples, and a wrong one can be worse than none (lesson 05). Here: with GAE the policy moves less far. No clear difference at equal KL |
# | several epochs | more from each sample | faster than one update, hardly faster than one with twice the learning rate. Eight epochs: less gold at equal KL |
# | clip | limits how far one batch moves the policy | it prevents the collapse with eight epochs. With two epochs, perhaps a little more gold at equal KL |
# | KL penalty | keeps the policy where the reward model can be trusted | without it the KL of the last batch is about 86 nats, and nearly all reviews are the same few words (exercise 2) |

# %% [markdown]
# ## What to remember
#
# - Watch KL, length, entropy and samples, not only the score. The score does not show every damage.
# - With the usual clip, a clip fraction of a few percent is healthy. Without a clip it says nothing.
# - More gold alone proves nothing: a run that goes further usually has more. Compare at equal KL.
# - The clip holds back what one batch does. With eight epochs, it brought more gold and a smaller KL.
# - Here, plain REINFORCE with small steps has as much gold as PPO at equal KL. To go further, a smaller KL coefficient
#   of PPO was better than larger steps.
#
# ## Exercises
#
# Solutions are in `solutions/06b_reading_a_run.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Three altered lines** *(medium, 10 minutes)*. Somebody alters one of these lines in the `ppo_step` of lesson
# 06. Which curve of section 1 shows it, and how? Write your answers down before you unfold ours.
#
# (a) `critic_optimizer.step()` is deleted.
#
# (b) `temperature=0.7` is deleted in the update, in `models.policy_logprobs(actor, ...)`.
#
# (c) `actor_optimizer.step()` is deleted.
#
# <details><summary>What a good answer contains</summary>
#
# (a) The explained variance stays near 0 or below, because the critic never learns.
#
# (b) The clip fraction is tens of percent from the first training step. The policy has not changed yet, but most ratios
# already lie outside the range: they compare two temperatures.
#
# (c) The KL and the clip fraction are 0 in all training steps, because the policy never changes. Score and gold stay
# level. The explained variance looks healthy: the critic learns without the actor.
# </details>

# %% [markdown] tags=["exercise"]
# **2. Three runs without a name** *(medium, 15 minutes)*. Runs A, B and C differ in one setting only. Each was
# repeated with three seeds: a line is their mean, the band their range. At least two settings can give such curves:
# name two. Which further curve tells you which of them it is, and at which training step do you look? Which run has
# the warnings of section 3, and in which curves? Which of the three policies would you give to people?
#
# *Hint:* what is the KL penalty in the very first batch? In each run the learning rate starts at a fifth of its full
# value.

# %% tags=["shared"]
three_runs = check.three_runs()  # A, B and C
show.curves(three_runs, columns=["score", "gold", "length"])

# %% [markdown] tags=["exercise"]
# <details><summary>Which settings fit, and where to look</summary>
#
# **Two settings fit.** One is the KL coefficient: high in run A, low in run B. The other is how far each
# batch moves the policy: the learning rate or the number of epochs, low in run A and high in run B.
#
# **Look at the clip fraction of the first training step.** The rewards of a batch are computed once, before its
# updates. In the first batch the policy is then still the reference, so the KL penalty is 0 at every token. So the KL
# coefficient cannot change the first training step, but the other settings can. In its first training step, the loop
# of lesson 06 clips 6 % of the tokens. With five times its learning rate it clips about a quarter. (The test of this
# page repeats both.) The KL of the second batch tells the same, because it shows what the first training step has
# done.
#
# Now run the cell: which of the two settings is it?
# </details>

# %% tags=["exercise", "solution"]
show.curves(three_runs, columns=["clip_fraction", "kl", "entropy"])

# %% [markdown] tags=["exercise"]
# <details><summary>What a good answer contains</summary>
#
# In all three runs the clip fraction of the first training step is the same, 6 %. So it is the KL coefficient: 2 in
# run A, 0 in run B and 0.25 in run C.
#
# The warnings:
#
# - **Run B has collapsed.** Its gold falls back in the second half. Its responses are nearly as long as allowed, and
#   almost the same for all films. The KL grows to about 86 nats, and the entropy falls to about 0.4. The clip fraction
#   gives a weak warning at most: from training step 4 to 9 it stays near 0.10, while in A and C it falls from 0.08
#   to below 0.05.
# - **Run A** has none of these warnings, and has learned little. But the number of section 3 is negative: with its
#   coefficient 2, score minus 2 · KL is −1.37 over the last eight training steps. Its KL of 0.88 costs more than the
#   score has gained.
# - **Run C** has milder ones. Run the next cell: without run B, the two others can be compared. In C the length falls
#   from 20 to 12 tokens, the entropy from 2.5 to 2.0, and the KL reaches about 4 nats. So do the runs with eight
#   epochs and the clip in section 2, nearly. Only the clip fraction differs: at most 9 % here, 42 % there.
#
# **Which one for people?** Not B. Between A and C it is a choice. C has much more gold on test films, 2.01 against
# 0.61. But its reviews are shorter and less varied. Lesson 07 sets a limit to the loss of variety, which C exceeds.
# Read samples before you decide.
#
# Here are the first responses of the three policies (seed 0) to two test films:
#
# | film | A | B | C |
# |---|---|---|---|
# | *american psycho 2* | This is a movie that will uncover the kids of step along with their lives and the mind. | A funny and funny and funny and funny, funny and funny and funny and funny and hilarious. | It's a beautiful, entertaining movie; a very few not smart laughs and funny moments in. |
# | *big bad love* | Compelling is the kind of movie that's actually watchable. | A funny and funny and funny and hilarious and funny and funny and funny and funny and funny and funny and funny and funny and funny. | A very funny, entertaining story. |
#
# Still, run B ends with the highest gold of the three. The gold model, like the reward model, was fitted on reviews
# that people write. So both overrate a text that only repeats praise.
# </details>

# %% tags=["exercise", "solution"]
show.curves(
    three_runs[three_runs.variant != "B"],
    columns=["kl", "length", "entropy"],
    order=["A", "B", "C"],  # the colours of the figures above
)

# %% [markdown] tags=["exercise"]
# **3. Above or below?** *(medium, 10 minutes)*. Use the table of section 4. Three methods P, Q and R, which we made
# up, have these results on the same task:
#
# | method | KL | gold |
# |---|---|---|
# | P | 1.43 | 1.40 |
# | Q | 6.1 | 2.20 |
# | R | 20 | 2.95 |
#
# How much more gold has each of them than the line, at its own KL? Write a negative number if it has less, and `None`
# where the line does not reach. Give two decimals.
#
# *Hint:* the line of section 4 is straight on a *logarithmic* KL axis. So in the middle between two points, the KL is
# the square root of the product of their KLs.

# %% tags=["exercise"]
check.three_methods(P=..., Q=..., R=...)  # replace the dots

# %% tags=["solution"]
check.three_methods(P=1.40 - (0.91 + 1.43) / 2, Q=2.20 - (2.01 + 2.78) / 2, R=None)

# %% [markdown] tags=["exercise"]
# <details><summary>What a good answer contains</summary>
#
# - **P is above.** $\sqrt{1.00 \cdot 2.04} = 1.43$. There the line has the mean of 0.91 and 1.43, which is 1.17. P
#   has 0.23 more.
# - **Q is below.** $\sqrt{4.06 \cdot 9.14} = 6.1$. There the line has the mean of 2.01 and 2.78, which is 2.39. Q has
#   0.2 less.
# - **R cannot be compared.** The line ends at 9.14. R has more gold than any of its points, but it also went further
#   than all of them. Run PPO with a smaller coefficient first.
#
# For P and Q you would ask for more before you believe it: how many seeds, and how wide is the interval? In section 4
# the interval of *no clip* is about 0.6 wide with three seeds.
# </details>

# %% [markdown] tags=["exercise"]
# **4. Make a run go wrong** *(medium, 20 minutes)*. `config` has the settings of lesson 06's loop. Change *one* of
# them, so that you see a warning within three training steps. First write down what you change, and what you expect
# of each column of the table. Then run the cell. It takes about a minute. The upper half of the table is the
# unchanged loop, from the record.
#
# *Hint:* `help(loops.PPOConfig)` lists the settings.

# %% tags=["exercise"]
config = loops.PPOConfig.plain(
    steps=1 if FAST else 3,
    actor=loops.OptimiserConfig.plain(lr=2e-5),
    critic=loops.OptimiserConfig.plain(lr=6e-5),
)  # change one setting

# %% tags=["solution"]
config = loops.PPOConfig.plain(
    steps=1 if FAST else 3,
    actor=loops.OptimiserConfig.plain(lr=4e-4),  # twenty times as large
    critic=loops.OptimiserConfig.plain(lr=6e-5),
)

# %% tags=["exercise", "solution"]
torch.set_num_threads(1)
sft, tokenizer = models.load_policy("tiny-reviews-sft")
reward_model, _ = models.load_scalar("tiny-reviews-reward")
score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
actor, critic = copy.deepcopy(sft), copy.deepcopy(reward_model)
prompts = tasks.reviews.rl_prompts()
log = loops.train_ppo(actor, critic, tokenizer, prompts, score, config)[2]
columns = ["score", "kl", "length", "entropy", "clip_fraction", "explained_variance"]
healthy = experiments.results("one_batch_history").set_index("step")
mine = pd.DataFrame(list(log)).set_index("step")
pd.concat({"lesson 06": healthy, "mine": mine})[columns].round(2)

# %% [markdown] tags=["exercise"]
# <details><summary>What a good answer contains</summary>
#
# There are many ways. In the solutions the learning rate of the actor is twenty times as large. Then the clip
# fraction is tens of percent, where the unchanged loop has 6 % at most. The KL jumps above 10 nats with the first
# batch. The entropy rises first: the policy writes almost anything. Then the reviews shrink to about 5 tokens. The
# score alone would warn you too late in our run: after the first batch it is even higher.
#
# Some settings do no harm so soon. With a KL coefficient of 0, for example, you have to wait longer: in exercise 2
# the KL of run B is still below 2 nats after three training steps.
# </details>

# %% [markdown]
# ## Questions
#
# <details><summary>1. The score rises to the end, and gold has begun to fall. What has happened, and what do you do?</summary>
#
# The policy has found texts that the reward model overrates. This is over-optimisation, or reward hacking (lesson
# 16). Take the policy from before gold fell, or raise the KL coefficient. A longer training makes it worse.
# </details>
#
# <details><summary>2. The clip fraction is 0 from the first training step to the last. Name three possible reasons.</summary>
#
# The actor does not move: its optimiser does not step, or the learning rate is far too small. Or each batch is used
# for one update only, so that every ratio is 1. Or the range is so wide that nothing is ever clipped. The KL tells
# the first reason from the others: it stays at 0.
# </details>
#
# <details><summary>3. A colleague shows you a new method with more gold than PPO. What do you ask first?</summary>
#
# How large is its KL, and how much gold has PPO there, with a smaller KL coefficient? Then: how many seeds, and how
# wide is the interval? And are the samples still varied?
# </details>
#
# ## Going further
#
# **More of the runs of section 2.**
#
# - Is the collapse only a matter of distance? *Two* epochs with the coefficient 0.1 go further than the collapsed
#   runs, to 9.1 nats, and have a gold of 2.78. Yet their reviews are nearly as alike. We count *different pairs*: the
#   share of different pairs among 500 pairs of neighbouring words. It is 0.36 there, and 0.27 in the collapsed runs.
#   So the distance may explain why the reviews are alike. It does not explain the lost gold.
# - The collapse begins with the first batch: it moves the policy by 2.9 nats, and with the clip by 0.4.
# - The coefficient 0.25 with two epochs has more gold than eight epochs on each of the three seeds.
# - Eight epochs with the clip reach a clip fraction of 42 % at their peak, in training step 4, and still have a high
#   gold. So a high clip fraction alone is no damage.
#
# **What `train_ppo` adds to the loop of lesson 06:**
#
# - *A clip for the critic.* With $T$ for the target and $c = 0.5$, $L^V = \tfrac12 \max\big((\hat V - T)^2,\,
#   (\text{clip}(\hat V, \hat V_{\text{old}} - c, \hat V_{\text{old}} + c) - T)^2\big)$. A value that has moved by
#   more than $c$ towards its target gets no gradient. Without it, the explained variance in the last training step is
#   0.63 instead of 0.65. This is no difference: the runs of section 1 have the settings of those with 0.65, and end at
#   0.70. TRL and DeepSpeed-Chat clip the value at 0.2, OpenRLHF at 0.5 as here.
# - *Whitening.* Without it, the gold is 1.35 instead of 1.36, and at equal KL 0.06 below the line. The scale of the
#   advantages has no effect here, because all gradients of the actor are longer than 1 and are shortened to 1.
# - *A penalty for a missing EOS.* A response that is cut off at `max_new_tokens` has no end. Its score is lowered by 1.
# - *Micro-batches.* A minibatch that is too large for the memory is split, and the gradients of its parts are
#   added up. Divide the losses of each part by the number of tokens of the *whole* minibatch.
# - *A learning-rate schedule.* The clip fraction follows it. In training step 19 of section 1 the rate is 2e-5, as in
#   lesson 06. The clip fraction of this step is 0.5 %, as in the third training step there. (In the very first
#   training step it is 6 %, there and in section 1: our optimiser, AdamW, moves each weight by the full rate in
#   its first update.)
# - *A warm-up of the critic* (`critic_warmup`) trains it alone first. It is off. The critic learns fast beside the
#   actor: in the runs of section 1 its explained variance is 0.42 after one training step.
#
# **How the intervals of sections 4 and 5 are made** (`experiments.above_curve`). We have three seeds and 76 test films.
# The runs of one seed make a line of their own, and the run of this seed is compared with it: on each film, its gold
# minus the line's gold at the KL of the run. (Beyond its ends the line stays level.) This gives 3 × 76 differences. We
# show their mean. Three seeds are few, so the interval is wide where they disagree (the formula: lesson 11b, "Going
# further").
#
# **References.** Schulman et al. 2017, *Proximal policy optimization algorithms*. Ahmadian et al. 2024, *Back to
# basics: revisiting REINFORCE style optimization for learning from human feedback in LLMs*. Huang et al. 2022, *The
# 37 implementation details of PPO*. Engstrom et al. 2020, *Implementation matters in deep policy gradients*. Gao et
# al. 2023, *Scaling laws for reward model overoptimization* (gold over KL). Huang et al. 2024, *The N+ implementation
# details of RLHF with PPO*.
#
# *How this lab is checked:* every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_06b.py`).
