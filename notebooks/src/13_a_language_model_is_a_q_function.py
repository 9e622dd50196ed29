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
# # 13 · Your language model is secretly a Q-function
#
# **The question.** DPO was derived for whole texts. A text is written word by word. What does the policy that DPO makes say about a single *word*, and can it tell us where a text went wrong?
#
# **You need** lesson 05 (values), 07 (the leash) and 12 (DPO). 30 minutes to read, 50 for the exercises.
#
# **Predict.** Write down a number or a yes before you read on.
#
# | | your prediction |
# |---|---|
# | $\beta \log \pi/\pi_{ref}$ of a text's words add up to its reward (up to a constant). Does that show that each word's is right? | |
# | One digit of a calculation is wrong. How often does the model, before any DPO, find it, by looking for the word that surprises it most? | |
# | And the implicit reward of a policy that DPO trained on 5,000 such calculations? | |

# %%
# %matplotlib inline
import math
import random

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim, load_results
from minirlhf.core.bradley_terry import preference_probability
from minirlhf.core.exact import World
from minirlhf.core.kl import exact_kl
from minirlhf.core.preference import dpo, implicit_rewards, tdpo
from minirlhf.evaluate import bootstrap
from minirlhf.experiments.planted import LOCATED, false_steps, planted_pairs
from minirlhf.experiments.practice import LEVELS
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.load import load_policy
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.show.strips import token_strip
from minirlhf.tasks import arithmetic, reviews

set_threads()

# %% [markdown]
# ## 1. From r to Q*: the same loss by another road
#
# **Writing is a walk.** A *state* $s$ is the text so far (prompt and words), an *action* $a$ the next word, the next state is the text with the word. Nothing is random but the policy. The reward $r(y)$ comes at the end, and each word pays the leash: $-\beta \log \frac{\pi(a|s)}{\pi_{ref}(a|s)}$. This is the world of lesson 07, read from the end to the beginning.
#
# **One state.** Let $Q(s, a)$ be what can still be had if the next word is $a$. The best policy at this state maximises
#
# $$ \sum_a \pi(a|s) \Big[ Q(s, a) - \beta \log \frac{\pi(a|s)}{\pi_{ref}(a|s)} \Big] . $$
#
# That is lesson 07's problem with words in the place of texts and $Q$ in the place of $r$, so its solution is $\pi_{ref}\, e^{Q^*/\beta}$, normalised. Call $\beta$ times the logarithm of the normaliser $V^*(s)$; then
#
# $$ \pi^*(a|s) = \pi_{ref}(a|s)\, e^{(Q^*(s, a) - V^*(s))/\beta} , \qquad V^*(s) = \beta \log \sum_a \pi_{ref}(a|s)\, e^{Q^*(s, a)/\beta} . $$
#
# and $V^*(s)$ is also what this policy gets: put it into the bracket above, and for *every* $a$ there stands $Q^* - (Q^* - V^*) = V^*$.
#
# **All states.** After the last word comes the reward, after any other the next state: $Q^*(s, a) = r(y)$ or $V^*(s')$. Begin at the end and walk back. Now read the first equation as lesson 12 read the Gibbs policy:
#
# $$ \beta \log \frac{\pi^*(a|s)}{\pi_{ref}(a|s)} = Q^*(s, a) - V^*(s) . $$
#
# A word's implicit reward is its **advantage**: how much better this word is than what could be had here under the leash. Read from left to right, $Q^* = V^* + \beta \log \frac{\pi^*}{\pi_{ref}}$: a policy *is* a Q-function, up to a number a state.
#
# **The pair again.** Add up the words of a text. Since $Q^*(s_t, a_t) = V^*(s_{t+1})$, all values cancel but the first and the last:
#
# $$ \sum_t \beta \log \frac{\pi^*(a_t|s_t)}{\pi_{ref}(a_t|s_t)} = \sum_t \big[ Q^*(s_t, a_t) - V^*(s_t) \big] = r(y) - V^*(s_0) . $$
#
# For two texts of one prompt $V^*(s_0)$ is the same and cancels in Bradley-Terry: DPO's loss, from words. ($V^*(s_0) = \beta \log Z$: it is lesson 12's constant.)
#
# **By hand**, on the page (notebook 91, number 6): *good*, *bad*, full stop, two words, $\beta = 1/\ln 2$, so $e^{r/\beta} = 2^r$ and $V^* = \log_2$ of a mean over the three words. After *good* the scores are 2, 0 and 1: $\log_2 \frac{4 + 1 + 2}{3} = 1.222$; after *bad* 0, -2 and -1: $\log_2 \frac{1 + 1/4 + 1/2}{3} = -0.778$; at the start $\log_2 \frac{7/3 + 7/12 + 1}{3} = 0.385$. So in *good good* the first word is worth $1.222 - 0.385 = 0.838$ (before rounding), the second $2 - 1.222 = 0.778$; together $1.615 = 2 - 0.385$.

# %%
hand = World.from_reward(("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad")))
values, q = hand.optimal_values(beta=1 / math.log(2))
advantages = q - values[:, None]
print(f"V*: start {values[0]:.3f}, after good {values[1]:.3f};  first word {advantages[0, 0]:.3f}, second {advantages[1, 0]:.3f}")
assert [round(x, 3) for x in values.tolist()] == [0.385, 1.222, -0.778]
assert [round(x, 3) for x in (advantages[0, 0].item(), advantages[1, 0].item())] == [0.838, 0.778]
assert abs(advantages[0, 0] + advantages[1, 0] - (2 - values[0])) < 1e-12
print(f"together {advantages[0, 0] + advantages[1, 0]:.3f} = 2 - {values[0]:.3f}")

# %% [markdown]
# ## 2. The exact world's verdict, at every prefix
#
# Lesson 12's world: 15 texts, a random reward. DPO is trained on *whole texts*, with the shares of people who prefer each to each. Left, at every prefix and for every word, $Q^* - V^*$ from the **true** reward by backward induction; right, what DPO's policy says.

# %%
world, beta = World.random(3, 3, seed=0), 0.5
i, j = torch.triu_indices(15, 15, 1)
share = preference_probability(world.rewards[i], world.rewards[j])
ref = world.sequence_logprobs(world.ref_logits)


def trained(loss_of, iterations=1000):
    """The logits where the mean of loss_of(logits, won, lost) over all pairs is least, or where LBFGS is after so many iterations."""
    logits = world.ref_logits.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=iterations, history_size=50, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        (loss := (share * loss_of(logits, i, j) + (1 - share) * loss_of(logits, j, i)).mean()).backward()
        return loss

    optimizer.step(closure)
    return logits.detach()


def on_whole_texts(logits, a, b):
    p = world.sequence_logprobs(logits)
    return dpo(p[a], p[b], ref[a], ref[b], beta=beta)


# %%
def words_of(logits):
    """beta log pi/pi_ref of every word at every prefix."""
    return implicit_rewards(logits.log_softmax(-1), world.ref_logits.log_softmax(-1), beta=beta)


best_values, best_q = world.optimal_values(beta=beta)
truth, at_end = best_q - best_values[:, None], trained(on_whole_texts)
prefixes = ["".join(world.vocab[w] for w in state) or "start" for state in world.states]
figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
for axes, table, title in zip(figure.subplots(1, 2), (truth, words_of(at_end)), ("Q* - V* of the true reward", "DPO's β log π/π_ref"), strict=True):
    image = axes.imshow(table, cmap="PuOr", vmin=-5, vmax=5, aspect="auto")
    axes.set_xticks(range(3), world.vocab)
    axes.set_yticks(range(7), prefixes, family="monospace")
    axes.set(xlabel="next word", title=title)
    for row in range(7):
        for column in range(3):
            axes.text(column, row, f"{table[row, column]:+.2f}", ha="center", va="center", fontsize=8)
figure.colorbar(image, ax=figure.axes, shrink=0.8, label="reward units")
display(figure)
assert torch.allclose(words_of(at_end), truth, atol=1e-4)

# %% [markdown]
# They agree to four digits, at all 21 places, though DPO never saw a prefix's value, only whole texts.
#
# **What does *not* show it.** "The words' implicit rewards add up to the text's" is true of *any* policy, trained or not: logarithms of conditional probabilities add up to the logarithm of the product. Only the comparison with $Q^* - V^*$ of the true reward can fail. And it does, off the optimum:

# %%
rows, gains = {}, world.rewards - best_values[0]
for iterations in (1, 2, 5, 10, 20, 1000):
    logits = trained(on_whole_texts, iterations)
    words, mask = words_of(logits), world.response_mask
    told = torch.where(mask, words[world.visited, world.response_ids], 0.0).sum(1)
    whole = beta * (world.sequence_logprobs(logits) - ref)
    rows[iterations] = (words - truth).abs().max().item(), (whole - gains).abs().max().item(), (told - whole).abs().max().item()
    print(
        f"after {iterations:4d} iterations: a word is off by up to {rows[iterations][0]:.4f}, a text by {rows[iterations][1]:.4f};"
        f" a sum of words from its text's by {rows[iterations][2]:.0e}"
    )
assert all(telescopes < 1e-12 for *_, telescopes in rows.values())
assert rows[1][0] > 0.5 and rows[1][1] > 0.5 and max(rows[1000][:2]) < 1e-4

# %% [markdown]
# The sums of words agree with their texts to the last digit while both are wrong. So the identity tests nothing.
#
# **Another table has another optimum.** Token-level DPO (TDPO, Zeng et al. 2024) adds the KL of each place to the margin: with $D(y) = \sum_t \mathrm{KL}\big(\pi_{ref}(\cdot|s_t) \Vert \pi(\cdot|s_t)\big)$,
#
# $$ L = -\log \sigma\big( \beta h - \beta [D(y_r) - D(y_c)] \big) . $$
#
# So $\beta \log \frac{\pi}{\pi_{ref}}(y) + \beta D(y)$ stands where DPO has the first term alone. Its optimum is *not* the Gibbs policy: it is one step of improvement at each prefix, $\pi(a|s) = \pi_{ref}(a|s)\, e^{Q^{ref}(s, a)/\beta}/N(s)$, with the $Q$ of the *reference*, who will not follow our good word with another. To see it, note $\beta \log \frac{\pi}{\pi_{ref}} = Q^{ref} - \beta \log N$,
# and $\beta \mathrm{KL}(\pi_{ref} \Vert \pi) = \beta \log N - V^{ref}$, the mean of minus that. Their sum at a place is $Q^{ref} - V^{ref}$, and over a text these add up to $r(y) - V^{ref}(s_0)$: every pair is right. We solve for it:


# %%
def with_kl(logits, a, b):
    p = world.sequence_logprobs(logits)
    kl = exact_kl(world.by_token(world.ref_logits.clone()), world.by_token(logits), world.response_mask).sum(1)
    return tdpo(p[a], p[b], ref[a], ref[b], kl[a], kl[b], beta=beta)


one_step = world.ref_logits.log_softmax(-1) + world.values(world.ref_logits)[1] / beta
found = world.probs(trained(with_kl))
print(f"TDPO from one step on the reference: {(found - world.probs(one_step)).abs().max():.0e}, from Gibbs: {(found - world.gibbs(beta=beta)).abs().max():.2f}")
assert (found - world.probs(one_step)).abs().max() < 1e-6 < 0.03 < (found - world.gibbs(beta=beta)).abs().max()

# %% [markdown]
# ## 3. On film reviews: a strip for each word
#
# In the exact world DPO reached its optimum. On the tiny GPT-2 it makes sixty steps on noisy votes. What do its words say, of two pairs of validation films that people found far apart? Blue: likelier than before; orange: less likely. The scale is common to all four strips.

# %%
policy, tokenizer = load_policy("tiny-reviews-sft")
actor = load_policy("tiny-reviews-sft")[0].requires_grad_(True)
pairs = reviews.preference_pairs("reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer)
config = DPOConfig(steps=2, batch_size=4) if FAST else DPOConfig(steps=60)
_, history = train_dpo(actor, tokenizer, pairs, config, reference=policy)
shown = reviews.preference_pairs("val", 40, seed=3, min_gap=3.5, max_tokens=24, tokenizer=tokenizer)[:]
texts = [text for n in (0, 1) for text in (shown["chosen"][n], shown["rejected"][n])]
batch = encode(tokenizer, [p for n in (0, 1) for p in [shown["prompt"][n]] * 2], texts)

# %%
with torch.no_grad():
    told = implicit_rewards(policy_logprobs(actor, batch), policy_logprobs(policy, batch), beta=0.1)
limit = told[batch.response_mask].abs().max().item()
for row, name in enumerate(("chosen", "rejected") * 2):
    real = batch.response_mask[row]
    words = [tokenizer.decode([w]) for w in batch.response_ids[row, real]]
    total = told[row, real].sum().item()
    display(token_strip(words, told[row, real], title=f"{name}, whole text {total:+.2f}", limit=limit))
assert torch.equal(told[~batch.response_mask], torch.zeros_like(told[~batch.response_mask]))
sums = told.sum(1).tolist()
print("chosen minus rejected:", [round(sums[n] - sums[n + 1], 2) for n in (0, 2)])

# %% [markdown]
# Read them with care. Some words of judgement are coloured as one hopes; others are not, fillers are coloured as strongly, and a whole text may stand on the wrong side of its pair: lesson 12's `right_order` on held-out pairs is not far above a coin's. The loss sees sums, and a network moves many words at once. The next section asks the question where the answer is known.

# %% [markdown]
# ## 4. Planted errors: who finds the place?
#
# tiny-steps writes calculations: `(7+5)*3-9=` is answered by `12*3-9=36-9=27`, a character a token. We take right solutions of held-out problems, make **one digit wrong** at a known place, and carry the wrong number on as a careful pupil would: `12*3-9=26-9=17`. Only the 2 of 26 is wrong. Four readers look for it, each blames one token:
#
# * **surprisal**: the token with the lowest $\log \pi_{ref}$, under the model as it was. It costs nothing. This is the baseline to beat.
# * **implicit reward**: the lowest $\log \pi/\pi_{ref}$ after DPO on pairs (right solution, the same with a planted error) of 5,000 *other* problems.
# * **surprisal after DPO**: the lowest $\log \pi$ of that policy.
# * **value**: the largest fall of $V$, a verifier (`loops/verifier.py`) that learned from the same texts how likely a right end is after each token.
#
# A second set of cases is harder: samples that the model wrote *itself*, of several steps with exactly one false. It did not find these errors surprising enough not to make them. Asked is the step: that of the blamed token. And two rules that look at nothing: *the last digit*, *the last step*. Recorded with `minirlhf grid planted`, three seeds; trained on planted pairs, or on the model's own right and wrong samples (of these there are fewer, so they are read more often: the counts are printed).

# %%
draw = random.Random(0)
for problem in arithmetic.problems("test", 4, levels=(3, 4)):
    wrong, place = arithmetic.planted_error(problem.expression, draw)
    print(f"{problem.prompt:>14} {arithmetic.solution(problem.expression):<22} planted: {wrong[:place]}[{wrong[place]}]{wrong[place + 1 :]}")
    assert arithmetic.steps_right(problem.prompt, wrong).count(False) == 1

# %%
found = load_results("planted")
readers = ("surprisal", "implicit reward", "surprisal after DPO", "value")


def shares(asked, reader, texts):
    return [row[f"{asked}, {reader}"] for row in found if row["variant"] == texts]


figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
for axes, asked, title in zip(figure.subplots(1, 2), ("planted", "own"), ("a planted digit: the very token", "an error of its own: the step"), strict=True):
    for n, texts in enumerate(("planted digits", "own samples")):
        for k, reader in enumerate(readers):
            x = shares(asked, reader, texts)
            axes.bar(k + 0.4 * n - 0.2, sum(x) / len(x), 0.38, color=COLOURS[n], label=f"trained on {texts}" if k == 0 else None)
            axes.plot([k + 0.4 * n - 0.2] * len(x), x, "k.", markersize=4)
    axes.axhline(found[0][f"{asked}, by chance"], color="#666666", linestyle=":", label="a token, or a step, at random")
    axes.set_xticks(range(4), [r.replace(" after", "\nafter").replace("implicit ", "implicit\n") for r in readers], fontsize=8)
    axes.set(ylim=(0, 1), ylabel="share found", title=title)
    axes.grid(alpha=0.3, axis="y")
axes.legend(fontsize=8, frameon=False)
display(figure)
for texts in ("planted digits", "own samples"):
    print(f"pairs of {texts}: {', '.join(str(row['pairs']) for row in found if row['variant'] == texts)}, each read {19_200 / sum(row['pairs'] / 3 for row in found if row['variant'] == texts):.1f} times")
for asked in ("planted", "own"):
    for texts in ("planted digits", "own samples"):
        print(f"{asked:>8}, trained on {texts:<14}: " + ",  ".join(f"{r} {sum(x := shares(asked, r, texts)) / len(x):.2f}" for r in readers))

# %%
first = found[0]
solver, digits = load_policy("tiny-steps")
asked = planted_pairs(problems := arithmetic.problems("test", 400, levels=LEVELS), 0)
last_digit = sum(place == len(text) - 1 for place, text in zip(asked["place"], asked["rejected"], strict=True)) / len(asked)
faulty = false_steps(solver, digits, problems[: 100 if FAST else 400], 0, 400)
last_step = sum(step == text.count("=") for step, text in zip(faulty["step"], faulty["rejected"], strict=True)) / len(faulty)
print(f"always the last digit finds {last_digit:.2f} of the planted ones; always the last step {last_step:.2f} of the model's own")
assert round(last_digit, 2) == 0.22 and (FAST or abs(last_step - 0.74) < 0.05)  # the samples may differ by a few on another machine
print(f"planted: {first['planted, cases']} cases, interval of surprisal {[round(x, 2) for x in first['planted, surprisal, interval']]}")
print(f"own: {first['own, cases']} cases, interval of surprisal {[round(x, 2) for x in first['own, surprisal, interval']]}, a step at random {first['own, by chance']:.2f}")
assert round(first["planted, surprisal"], 2) == 0.94 and round(first["own, surprisal"], 2) == 0.69
both = ("planted digits", "own samples")
claim(
    "A planted digit is found by the surprise of the model before DPO; whatever was trained finds fewer, on every seed and either kind of pairs.",
    all(x < first["planted, surprisal, interval"][0] for t in both for r in readers[1:] for x in shares("planted", r, t)),
    evidence=", ".join(f"{r} at most {max(x for t in both for x in shares('planted', r, t)):.2f}" for r in readers),
    seeds=3,
)
implicit = {t: shares("planted", "implicit reward", t) for t in both}
tops = [row["planted, implicit reward, interval"][1] for row in found]
claim(
    "The implicit reward finds about a quarter, a little more than the rule that always blames the last digit, or no more.",
    all(0.15 < x < 0.3 for t in both for x in implicit[t]) and max(tops) < 0.35,
    evidence="; ".join(f"trained on {t} {', '.join(f'{x:.2f}' for x in implicit[t])}" for t in both)
    + f"; intervals up to {max(tops):.2f}; the last digit {last_digit:.2f}",
    seeds=3,
)
own = encode(digits, faulty["prompt"], faulty["rejected"])
with torch.no_grad():
    blamed = torch.where(own.response_mask, policy_logprobs(solver, own), torch.inf).argmin(1).tolist()
hit = torch.tensor([float(text[:at].count("=") == step) for text, at, step in zip(faulty["rejected"], blamed, faulty["step"], strict=True)])
in_last = torch.tensor([float(step == text.count("=")) for step, text in zip(faulty["step"], faulty["rejected"], strict=True)])
low, high = bootstrap(hit - in_last)
print(f"surprisal minus the rule: {(hit - in_last).mean():+.2f} [{low:+.2f}, {high:+.2f}]")
print(f"errors in the last step ({int(in_last.sum())}): surprisal finds {hit[in_last == 1].mean():.2f}, the rule all; in an earlier one ({int((1 - in_last).sum())}): surprisal {hit[in_last == 0].mean():.2f}, the rule none")
best = max((row[f"own, {r}"], row[f"own, {r}, interval"]) for row in found for r in readers)
if not FAST:  # FAST asks for too few samples
    claim(
        "Of its own errors surprisal finds fewer than of planted ones. By the share found neither surprisal nor the best of the trained readers can be told from the rule that always blames the last step;",
        first["own, surprisal, interval"][1] < first["planted, surprisal, interval"][0] and low < 0 < high and best[1][0] < last_step < best[1][1],
        evidence=f"surprisal {first['own, surprisal']:.2f}, the best reader {best[0]:.2f} [{best[1][0]:.2f}, {best[1][1]:.2f}], the last step {last_step:.2f}",
        seeds=3,
    )
    claim(
        "but the errors that stand elsewhere the rule never finds, and surprisal nearly all of them.",
        hit[in_last == 0].mean() > 0.85 and (in_last == 0).sum() > 40,
        evidence=f"{hit[in_last == 0].mean():.2f} of {int((in_last == 0).sum())}",
    )
verified = [row["verifier_right"] for row in found]
print(f"the verifier says of {min(verified):.2f} to {max(verified):.2f} of its training texts rightly whether they end right")
assert max(verified) < 0.6

# %% [markdown]
# **The verdict.** On planted digits nothing beats the baseline that costs nothing: a model that can do a step of arithmetic finds a wrong digit surprising; asking what *training changed* throws that knowledge away. On the model's own errors surprisal is weaker (it was not surprised enough not to write them). $\log \pi$ after DPO on its own samples looks better than before, 0.77 against 0.69, until one
# sees that the rule *always the last step* has 0.74: a policy may have learned no more than where errors like to stand. Had we drawn only the line "at random" (0.43), we should have reported a success. And a share alone is a poor measure, where most errors stand in one place: of those that stand elsewhere surprisal finds nearly all, the rule none. (Of the trained readers the record holds the share only.) The free baselines are the ones to beat, in each part.
#
# Why so far from the theorem of section 2? Count its conditions (lesson 12). One pair a problem, with a label that is certain: no finite optimum at all. Nearly all texts in no pair. A network in the place of a table, and some hundred steps.
#
# **And the verifier?** On these texts it hardly learned to tell right from wrong at all (the line above), so its place says nothing about values as such. For DPO and for the verifier there was one learning rate, one beta and one length of training: we did not look for better ones.
#
# **Where does the blame fall instead?** One such DPO, trained here, and the distance from the planted digit to the token that its implicit reward blames. Below, one calculation with both readings.

# %%
learner = load_policy("tiny-steps")[0].requires_grad_(True)
practice = planted_pairs(arithmetic.problems("train", 100 if FAST else 5000, seed=1, levels=LEVELS), 0)
settings = LOCATED["dpo"] | ({"steps": 2, "batch_size": 16} if FAST else {})
train_dpo(learner, digits, practice.select_columns(["prompt", "chosen", "rejected"]), DPOConfig(**settings), reference=solver)
sums, good = (encode(digits, asked["prompt"], asked[side]) for side in ("rejected", "chosen"))
with torch.no_grad():
    (before, before_good), (after, after_good) = ([policy_logprobs(model, x) for x in (sums, good)] for model in (solver, learner))
whole = (after_good - before_good).sum(1), (after - before).sum(1)
free = before_good.sum(1), before.sum(1)
ordered, before_all = ((a > b).double().mean().item() for a, b in (whole, free))
print(f"whole texts: the right solution has the higher implicit reward in {ordered:.2f} of the held-out pairs; the higher log pi before any DPO in {before_all:.2f}")
assert before_all > 0.97 and (FAST or 0.75 < ordered < before_all)

# %%
places = torch.tensor(asked["place"])
distance = {
    name: torch.where(sums.response_mask, x, torch.inf).argmin(1) - places
    for name, x in (("surprisal", before), ("implicit reward", after - before))
}
figure = Figure(figsize=(6, 2.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
for n, (name, d) in enumerate(distance.items()):
    spots = range(-6, 13)
    axes.bar([s + 0.4 * n - 0.2 for s in spots], [(d == s).double().mean() for s in spots], 0.4, color=COLOURS[n], label=name)
axes.set(xlabel="tokens after the planted digit", ylabel="share of cases", xticks=range(-6, 13, 2))
axes.grid(alpha=0.3, axis="y")
axes.legend(fontsize=8, frameon=False)
display(figure)
sizes = sums.response_mask.sum(1)
late = {name: (d > 0).double().mean().item() for name, d in distance.items()} | {"any token": ((sizes - 1 - places) / sizes).mean().item()}
elsewhere = places != sizes - 2  # cases whose planted digit is not the last character itself
at_end = {name: (places + d == sizes - 2)[elsewhere].double().mean().item() for name, d in distance.items()} | {"any token": (1 / sizes)[elsewhere].mean().item()}
for where, x in (("behind the digit", late), ("on the last character, where the digit is not", at_end)):
    print(f"blamed {where}: " + ", ".join(f"{name} {v:.2f}" for name, v in x.items()))
assert FAST or (at_end["implicit reward"] > 0.3 > 2 * at_end["any token"] and late["surprisal"] < 0.1)

# %%
case = next(n for n in range(400) if len(asked["rejected"][n]) > 12)
assert asked["place"][case] == 1 and distance["surprisal"][case] == 0 and (FAST or distance["implicit reward"][case] > 0)
real = sums.response_mask[case]
words = [digits.decode([w]) for w in sums.response_ids[case, real]]
print(asked["prompt"][case], "planted at", asked["place"][case])
display(token_strip(words, before[case, real], title="log π_ref before: the more orange, the more surprising"))
display(token_strip(words, (after - before)[case, real], title="log π/π_ref after DPO"))

# %% [markdown]
# The blame falls on the *last character* before the end far more often than chance would have it. A likely reason: every text has one, and the last digits of a wrong calculation stand in rejected texts only, so pushing *them* down lowers the loss just as well. (Not all that follows is pushed down: see the strip.) In the strip the planted digit is the second token: surprisal points at it, DPO at the end of the
# calculation. And whole texts? There the implicit reward is right in most cases (0.88, where a coin has 0.5; of the places it found a quarter, where the last digit has 0.22); and here, too, the model was better before it was asked what training changed (the line above the figure).
#
# ## What the libraries do
#
# TRL and OpenRLHF sum the log-ratios before anything else; none of them logs or shows a token's implicit reward, though it is there. TRL's `DPOConfig` weighs tokens in one case only (`ld_alpha`, the words beyond the shorter text's length). Per-token credit is trained on purpose by process reward models (OpenRLHF, verl's recipes: PRIME uses exactly $\beta \log \pi/\pi_{ref}$ of a model
# trained on outcomes) and by TDPO's authors' own code. Here: `implicit_rewards` takes any shape, `minirlhf.show.strips` draws it.
#
# ## Exercises
#
# **1. The reward of each token** *(easy, 5 minutes)*. From `logprobs`, `ref_logprobs` (B, R), the mask and beta, return (B, R) the implicit rewards, 0 in the padding, which may hold NaN.


# %%
def token_rewards(logprobs, ref_logprobs, mask, beta): ...  # your code


print(check.token_rewards(token_rewards))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def token_rewards(logprobs, ref_logprobs, mask, beta):
#     return torch.where(mask, beta * (logprobs - ref_logprobs), 0.0)
# ```
# </details>
#
# **2. The value of a state** *(medium, 10 minutes)*. From the reference's log-probabilities of the next words (V,), their $Q^*$ (V,) and beta, return $V^*$. It must be finite for a $Q$ of 900, where $e^Q$ is not.
#
# *Hint:* `torch.logsumexp`.


# %%
def soft_value(ref_logprobs, q, beta): ...  # your code


print(check.soft_value(soft_value))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def soft_value(ref_logprobs, q, beta):
#     return beta * torch.logsumexp(ref_logprobs + q / beta, 0)
# ```
# </details>
#
# **3. What each token changed** *(medium, 15 minutes)*. `values` (B, R): column t is $V$ of the text *before* token t. `scores` (B,): the text's score, which is what stands after its last real token. Return (B, R): $V$ after each token minus $V$ before it, 0 in the padding, which may hold NaN.


# %%
def value_steps(values, scores, mask): ...  # your code


print(check.value_steps(value_steps))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def value_steps(values, scores, mask):
#     values = torch.where(mask, values, 0.0)
#     after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
#     last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
#     after = torch.where(last, scores[:, None], after)
#     return torch.where(mask, after - values, 0.0)
# ```
# </details>
#
# **4. Find the bug: which token is to blame?** *(easy, 10 minutes)*. A colleague's locator often points behind the end of the text. Mend it: return (B,) the column of the real token with the lowest evidence, the first of equals. Padding may hold NaN.


# %%
def blamed_token(evidence, mask):
    return torch.where(mask, evidence, 0.0).argmin(1)


print(check.blamed_token(blamed_token))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Where all real evidence is above 0, the zeros of the padding are the lowest: `torch.where(mask, evidence, torch.inf).argmin(1)`.
# </details>
#
# **5. Predict, then run** *(5 minutes)*. Take the hand-made world: what is the implicit reward of the full stop at the start, under the best policy? Is it a bad word? Write down its sign first; take the hash away.

# %%
# print(round(advantages[0, 2].item(), 3))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# -0.385. Its text scores 0, which is neither good nor bad; but at the start one could have had 0.385 (with the leash paid), so stopping gives that away. An advantage compares with what could be had *here*.
# </details>

# %%
assert round(advantages[0, 2].item(), 3) == -0.385

# %% [markdown]
# **6. Design the experiment** *(hard, 15 minutes)*. "DPO gives us a process reward model for free." What would you have to see before you believe it?
#
# <details><summary>What a good answer has</summary>
#
# Errors at known places that nobody trained on, several hundred, with an interval. Baselines that cost nothing: surprisal under the model before DPO, the last token or step, chance. Errors of the model's own, not only planted ones: planted ones are surprising by construction. And a use: does selecting or training by the token's reward give more right answers than by the text's?
# </details>
#
# ## Questions
#
# <details><summary>1. V or Q: which of them is the critic of PPO?</summary>
# V: the value of a text so far, before the next word is known (slides often write Q for it); the advantage is built from rewards and V. The policy itself, by this lesson, holds Q - V.
# </details>
# <details><summary>2. The implicit rewards of a text's tokens add up to its reward. Have we verified the theory?</summary>
# No: they add up for any policy, by the chain rule of probability. Only a comparison with Q* - V* from the true reward can fail.
# </details>
# <details><summary>3. Why did TDPO's optimum come out different, though its loss contains DPO's?</summary>
# Its margin has the places' KL in it, which is not zero at the Gibbs policy. What makes every pair right under that margin is the one-step policy, whose Q is the reference's.
# </details>
# <details><summary>4. Is the token with the lowest implicit reward an error?</summary>
# It is the token whose probability fell most against the reference. Some token is always lowest, in a perfect text too. At the optimum it is the one that gave most away; how much it gave away tells whether that was an error. After some hundred steps it may be a word that stands in many rejected texts.
# </details>
# <details><summary>5. Where would a process reward model get its labels?</summary>
# From people who mark steps (costly), from a verifier of steps where there is one (arithmetic), or from rollouts: how often does the policy end right from here? The last is the value of this lesson.
# </details>
#
# **References.** Rafailov et al. 2024, *From r to Q\*: your language model is secretly a Q-function*, sections 3 and 4. Zeng et al. 2024, *Token-level direct preference optimization*, section 4. Cobbe et al. 2021, *Training verifiers to solve math word problems*, section 4 (token-level). Haarnoja et al. 2017, *Reinforcement learning with deep energy-based policies*, section 2 (soft values).
# Cui et al. 2025, *Process reinforcement through implicit rewards* (PRIME). Xiong et al. 2024, *Building math agents with multi-turn iterative preference learning* (lesson 15).
