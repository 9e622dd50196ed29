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
# # 08 · The reward model
#
# **The question.** People can say which of two texts they prefer. PPO needs a number for one. How is it made, and what may one believe of it?
#
# **You need** lesson 02: what the ratings are. 35 minutes to read, 65 for the exercises.
#
# **Predict.** True or false?
#
# 1. Adding 10 to all scores of a reward model changes its loss.
# 2. Doubling all scores changes its loss.
# 3. A reward model that is right on 65 % of held-out pairs is poor.
# 4. When it says 80 %, it is right on 80 %.
# 5. The number at the fifth token says how good the first five tokens are.

# %%
# %matplotlib inline
import itertools
import math
from collections import Counter
from itertools import islice

import torch
from IPython.display import display
from matplotlib.figure import Figure
from torch.nn.functional import logsigmoid

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim, load_results
from minirlhf.core.bradley_terry import (
    last_token_scores,
    per_token_reward_loss,
    preference_probability,
    reward_model_loss,
)
from minirlhf.evaluate import bootstrap
from minirlhf.loops.reward import RewardConfig, comparison_batches
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.model import normalise_scores, prefix_scores, rollout_score, text_judge
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.show.strips import token_strip
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

set_threads()
sft, tokenizer = load_policy("tiny-reviews-sft")
scorer, _ = load_scalar("tiny-reviews-reward")

# %% [markdown]
# ## 1. From choices to scores
#
# Give each text a strength $e^{r} > 0$ and let it be chosen in proportion to it (Bradley and Terry 1952):
#
# $$ P(a \succ b) = \frac{e^{r_a}}{e^{r_a} + e^{r_b}} = \frac{1}{1 + e^{-(r_a - r_b)}} = \sigma(r_a - r_b) . $$
#
# Only differences enter. A constant added to all scores cancels (prediction 1: false); so scores have no zero. Doubling them does not cancel (2: true): it says that people are surer. A *difference* has a meaning, it is a log-odds.
#
# Fit by maximum likelihood: over the pairs that people decided, minimise
#
# $$ L = -\log \sigma(r_c - r_r) , \qquad \frac{\partial L}{\partial r_c} = -\big(1 - \sigma(r_c - r_r)\big) = -\frac{\partial L}{\partial r_r} , $$
#
# using $\sigma' = \sigma (1 - \sigma)$. The chosen text is pushed up and the rejected down by the *same* amount: how surprised the model was. A pair that it gets right with confidence teaches nothing, one that it gets wrong with confidence teaches with
# weight 1, and there is no end of pushing: on pairs that are always decided one way $r_c - r_r$ grows for ever. What stops it are people who disagree, and stopping early.
#
# **By hand.** Scores 1 and 0: probability $\sigma(1) = 0.731$, loss $0.313$, gradient $\mp 0.269$.

# %%
chosen, rejected = torch.tensor([1.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)
loss = -math.log(1 / (1 + math.exp(-1.0)))
assert math.isclose(reward_model_loss(chosen, rejected).item(), loss, abs_tol=1e-6)
gradients = torch.autograd.grad(reward_model_loss(chosen, rejected).sum(), (chosen, rejected))
surprise = 1 - 1 / (1 + math.exp(-1.0))
assert math.isclose(gradients[0].item(), -surprise, abs_tol=1e-6) and math.isclose(
    gradients[1].item(), surprise, abs_tol=1e-6
)
assert torch.equal(
    preference_probability(chosen + 10, rejected + 10), preference_probability(chosen, rejected)
)
print(
    f"P {1 - surprise:.3f}, loss {loss:.3f}, gradient {gradients[0].item():+.3f} and {gradients[1].item():+.3f}"
)
print(
    "log(sigmoid(-200)):",
    torch.sigmoid(torch.tensor(-200.0)).log().item(),
    "  logsigmoid(-200):",
    logsigmoid(torch.tensor(-200.0)).item(),
)

# %% [markdown]
# The last line is why code says `logsigmoid`.
#
# **The exact verdict.** Suppose people *are* Bradley-Terry, and we had infinitely many of them: each pair of seven texts decided in its true shares. Does minimising $L$ give the scores back? Yes, up to a constant. With hard labels, where the better text always wins, it gives back the order only:

# %%
generator = torch.Generator().manual_seed(0)
truth = torch.randn(7, generator=generator, dtype=torch.float64)
i, j = torch.triu_indices(7, 7, 1)


def fitted(share, steps=200):
    """Scores (7,) that minimise the mean loss over all pairs, each decided for i in `share` of the cases; mean 0."""
    r = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [r], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
    )

    def closure():
        optimiser.zero_grad()
        loss = (
            share * reward_model_loss(r[i], r[j]) + (1 - share) * reward_model_loss(r[j], r[i])
        ).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (r - r.mean()).detach()


soft, hard = (
    fitted(preference_probability(truth[i], truth[j])),
    fitted((truth[i] > truth[j]).double(), steps=20),
)
print("true  ", [round(x, 2) for x in (truth - truth.mean()).tolist()])
print("shares", [round(x, 2) for x in soft.tolist()])
print("hard  ", [round(x, 2) for x in hard.tolist()])
assert torch.allclose(soft, truth - truth.mean(), atol=1e-5)
assert (
    hard.argsort() == truth.argsort()
).all() and hard.std() > 3 * truth.std()  # the order is kept, the distances are not

# %% [markdown]
# ## 2. Where the number is read
#
# A reward model is the language model with its last layer, hidden to vocabulary, replaced by `nn.Linear(hidden, 1)`. That gives a number at *every* token. The reward of a text is the one at its last real token: only there has the model read all of it. Ours ends every text in
# EOS, in training and in scoring, so that it is always read at EOS. By hand:

# %%
batch = encode(
    tokenizer,
    ["the film\n"] * 2,
    ["A dull and lifeless film.", "A moving, funny, wise film that one does not forget."],
)
with torch.no_grad():
    everywhere = token_scores(scorer, batch)
last = (
    batch.attention_mask.long().cumsum(1).argmax(1)
)  # the first place where the count of real tokens is complete
by_hand = everywhere[torch.arange(2), last]
assert torch.equal(by_hand, last_token_scores(everywhere, batch.attention_mask))
assert [batch.sequences[b, k].item() for b, k in enumerate(last.tolist())] == [
    tokenizer.eos_token_id
] * 2
print(
    {"A dull ...": round(by_hand[0].item(), 2), "A moving, ...": round(by_hand[1].item(), 2)},
    "  at the full stop, one place before EOS:",
    [round(everywhere[b, k - 1].item(), 2) for b, k in enumerate(last.tolist())],
)

# %% [markdown]
# **Three pictures of one sentence**, all called "per-token rewards" in the literature. (a) each prefix with EOS, scored alone: a trained position, an unusual text. (b) one pass, read at each token: natural text, untrained positions. (c) a head *trained* at each token from the first that differs (DeepSpeed-Chat's loss),
# which we train now for a minute:


# %%
def train_per_token(steps=60, size=32):
    """A small run of the per-token loss from the SFT model, on pairs of one random rating a side."""
    torch.manual_seed(0)
    model = ScalarModel(trainable(sft.base_model))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    pairs = reviews.preference_pairs("reward", steps * size, seed=0, max_tokens=32, tokenizer=tokenizer)
    for start in range(0, steps * size, size):
        rows = pairs[start : start + size]
        both = encode(tokenizer, rows["prompt"] * 2, rows["chosen"] + rows["rejected"])
        scores = token_scores(model, both)[:, both.prompt_ids.shape[1] :]
        (c, r), (c_mask, r_mask), (c_ids, r_ids) = (
            x.chunk(2) for x in (scores, both.response_mask, both.response_ids)
        )
        optimiser.zero_grad()
        per_token_reward_loss(c, r, c_mask, r_mask, c_ids, r_ids).mean().backward()
        optimiser.step()
    samples = sample_text(sft, tokenizer, reviews.rl_prompts()[: 4 * size], seed=0)
    return normalise_scores(model.eval(), samples, tokenizer.eos_token_id)


per_token = train_per_token(steps=2, size=4) if FAST else train_per_token()
sentence = "A moving and funny film, but the ending is dull."
tokens, with_eos, one_pass = prefix_scores(scorer, tokenizer, "the film\n", sentence)
_, _, trained_everywhere = prefix_scores(per_token, tokenizer, "the film\n", sentence)
for values, title in (
    (with_eos, "(a) each prefix + EOS, scored alone"),
    (one_pass, "(b) one pass; trained at EOS only"),
    (trained_everywhere, "(c) one pass; trained at every token"),
):
    display(token_strip(tokens, values, title=title))

# %% [markdown]
# How far may each be trusted at mid-text? A fair question to all: cut held-out pairs after eight tokens and ask which of the two beginnings belongs to the text that people preferred. Anything above a half is signal.

# %%
held = reviews.preference_pairs("test", 40 if FAST else 2000, seed=3, max_tokens=32, tokenizer=tokenizer)[:]


@torch.no_grad()
def read_at(model, texts, *, cut=None, eos=True):
    """Scores (N,) of texts cut to `cut` tokens, read at EOS or at the last token of the cut."""
    found = []
    for start in range(0, len(texts), 64):
        ids = [tokenizer(t).input_ids[:cut] for t in texts[start : start + 64]]
        one = encode(tokenizer, held["prompt"][start : start + 64], [tokenizer.decode(x) for x in ids])
        scores = token_scores(model, one)
        lengths = one.attention_mask.sum(1)
        left = (~one.attention_mask.bool()).long().cumprod(1).sum(1)  # padding on the left
        found.append(scores[torch.arange(len(scores)), left + lengths - (1 if eos else 2)])
    return torch.cat(found)


def by_film(x):
    """(films,) each film's part of the mean of x (pairs,): pairs of one film share texts, so an interval draws films anew, not pairs."""
    films = {p: i for i, p in enumerate(dict.fromkeys(held["prompt"]))}
    index = torch.tensor([films[p] for p in held["prompt"]])
    return torch.zeros(len(films)).index_add(0, index, x) * len(films) / len(x)


right = {}
for name, model, eos in (
    ("(a) prefix + EOS", scorer, True),
    ("(b) one pass, trained at EOS", scorer, False),
    ("(c) one pass, trained at every token", per_token, False),
):
    margins = read_at(model, held["chosen"], cut=8, eos=eos) - read_at(
        model, held["rejected"], cut=8, eos=eos
    )
    right[name] = (margins > 0).float()
    low, high = (0.5 + edge for edge in bootstrap(by_film(right[name] - 0.5)))
    print(f"{name:<38} right after eight tokens: {right[name].mean():.3f} [{low:.3f}, {high:.3f}]")
if not FAST:  # FAST trains too few steps and reads too few pairs
    claim(
        "After eight tokens each of the three tells more often than chance which text people preferred.",
        all(bootstrap(by_film(x - 0.5))[0] > 0 for x in right.values()),
        evidence=", ".join(f"{x.mean():.3f}" for x in right.values()),
    )
a, b, c = right.values()
less = {"(b) - (a)": by_film(b - a), "(c) - (a)": by_film(c - a), "(c) - (b)": by_film(c - b)}
for name, difference in less.items():  # paired: the same pairs
    low, high = bootstrap(difference)
    print(f"{name}: {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
if not FAST:  # as above
    claim(
        "None of them can be told from another; a difference that hid here is below a tenth of the pairs.",
        all(-0.1 < bootstrap(d)[0] < 0 < bootstrap(d)[1] < 0.1 for d in less.values()),
        evidence="the intervals above",
    )

# %% [markdown]
# (c) is a little behind, which this sample cannot tell from nothing, and it is no verdict on the methods: (c) is one training on 1,920 pairs, read once; the reward model behind (a) and (b) was trained on many times as many. So this says what *these* numbers are worth, not which method is better. Prediction 5, asked at eight tokens: the number forecasts the *whole* text, and by little; from a beginning it is right in six cases of ten.
#
# ## 3. No zero and no unit
#
# PPO pays $\text{score} - \beta\, \mathrm{KL}$: reward units against nats. Since a reward model's zero is arbitrary and its unit is whatever confidence the training stopped at, we fix both: shift and scale such that samples of the SFT model have mean 0 and standard deviation 1. Both numbers are
# stored with the weights. Then "+1" reads as "one standard deviation better than SFT", and `kl_coef` means the same for every reward model.

# %%
samples = sample_text(sft, tokenizer, reviews.rl_prompts()[: 64 if FAST else 256], seed=3)
fresh = torch.cat([rollout_score(scorer, tokenizer.eos_token_id)(s) for s in samples])
error = 1 / math.sqrt(len(fresh))
print(
    f"on fresh samples: mean {fresh.mean():+.2f} (standard error {error:.2f}), standard deviation {fresh.std():.2f}"
)
assert abs(fresh.mean()) < 4 * error and abs(fresh.std() - 1) < 0.2

# %% [markdown]
# Two additions to the loss stand in many papers. A **margin** inside the sigmoid, $-\log \sigma(r_c - r_r - m)$, asks for more distance where people said "much better" (Touvron et al. 2023). **Centring**, $+ c\,(r_c + r_r)^2$, chooses a zero during training rather than after it (Eisenstein et al. 2023). By hand: scores 2 and 1, margin 1/2, $c = 0.01$:

# %%
two, one = torch.tensor([2.0]), torch.tensor([1.0])
by_hand = -math.log(1 / (1 + math.exp(-(2 - 1 - 0.5)))) + 0.01 * (2 + 1) ** 2
assert math.isclose(
    reward_model_loss(two, one, margin=torch.tensor([0.5]), centering_coef=0.01).item(),
    by_hand,
    abs_tol=1e-6,
)

# %% [markdown]
# ## 4. What may one believe?
#
# **Accuracy** needs a ceiling beside it. A pair is decided by one random rating of each text, so even somebody who knows what everybody else said is wrong when the rater is unusual; how often he is right is the ceiling (lesson 02). Recorded on the 76 test films, by how far apart the *other* raters' means are:

# %%
recorded = load_results("reward_model")
bands = sorted({(row["low"], row["high"]) for row in recorded if (row["low"], row["high"]) != (0, 8)})


def over_seeds(key, band):
    x = [row[key] for row in recorded if (row["low"], row["high"]) == band]
    return sum(x) / len(x)


figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
left, reliability = figure.subplots(1, 2)
for key, colour, marker, style in (
    ("human ceiling", "#666666", "^", ":"),
    ("bag of words", COLOURS[1], "s", "--"),
    ("reward model", COLOURS[0], "o", "-"),
):
    left.plot(
        range(len(bands)),
        [over_seeds(key, band) for band in bands],
        style,
        marker=marker,
        color=colour,
        label=key,
    )
left.axhline(0.5, color="#bbbbbb", linewidth=0.8)
left.set_xticks(range(len(bands)), [f"{a:g} to {b:g}" for a, b in bands], fontsize=8)
left.set(
    xlabel="difference of the other raters' means",
    ylabel="ranks as one random rater did",
    ylim=(0.45, 1.02),
)
left.legend(fontsize=8, frameon=False)
assert all(
    over_seeds("reward model", band) <= over_seeds("human ceiling", band) + 0.05 for band in bands
)
assert over_seeds("reward model", bands[-1]) > over_seeds("reward model", bands[0]) + 0.2

pairs = {
    split: reviews.preference_pairs(split, 80 if FAST else 2000, seed=5, max_tokens=48, tokenizer=tokenizer)[:]
    for split in ("val", "test")
}
judge = text_judge([scorer], tokenizer)
margins = {
    split: (judge(p["prompt"], p["chosen"]) - judge(p["prompt"], p["rejected"])) * scorer.scale
    for split, p in pairs.items()
}  # log-odds


def expected_and_seen(margins, temperature=1.0, bins=8):
    """Pairs in equal groups by the model's confidence: (mean probability it gives its own choice, share in which it is right)."""
    confidence = torch.sigmoid(margins.abs() / temperature)
    groups = confidence.argsort().chunk(bins)
    return [(confidence[g].mean().item(), (margins[g] > 0).float().mean().item()) for g in groups]


seen = expected_and_seen(margins["test"])
overconfident, off = (sum(x) / len(seen) for x in ([p - a for p, a in seen], [abs(p - a) for p, a in seen]))
reliability.plot([0.5, 1], [0.5, 1], color="#888888", linewidth=0.8)
reliability.plot(*zip(*seen, strict=True), "o-", color=COLOURS[0], label="as trained")

# %% [markdown]
# **Calibration** asks whether its 80 % are right in 80 % of cases. The margin times the scale that normalisation took away is a log-odds again. If the model is sure of more than it knows, one number can mend it: divide the margins by a temperature $T$, chosen on *other* films.

# %%
candidates = torch.linspace(0.5, 6, 111)
val_loss = torch.stack([-logsigmoid(margins["val"] / t).mean() for t in candidates])
temperature = candidates[val_loss.argmin()].item()
mended = expected_and_seen(margins["test"], temperature)
reliability.plot(
    *zip(*mended, strict=True),
    "s--",
    color=COLOURS[1],
    label=f"divided by {temperature:.1f}, chosen on val",
)
reliability.set(
    xlabel="probability it gives its choice",
    ylabel="share in which it is right",
    xlim=(0.48, 1),
    ylim=(0.4, 1),
)
reliability.legend(fontsize=8, frameon=False)
display(figure)
test_loss = {
    name: -logsigmoid(margins["test"] / t).mean().item()
    for name, t in (("as trained", 1.0), ("mended", temperature))
}
print({name: f"{x:.3f} nats a pair" for name, x in test_loss.items()}, f"  a coin: {math.log(2):.3f}")
still = sum(abs(p - a) for p, a in mended) / len(mended)
if not FAST:  # FAST reads too few pairs
    claim(
        "The reward model is surer than it is right, and a temperature chosen on other films takes most of that away.",
        overconfident > 0.03
        and still < off / 2
        and test_loss["mended"] < test_loss["as trained"],
        evidence=f"mean excess of confidence {overconfident:+.3f}; mean distance from the diagonal {off:.3f}, after division by {temperature:.1f} {still:.3f}; one model",
    )

# %% [markdown]
# Prediction 4 is false, then, as the model was trained. For PPO a common factor does not matter, normalisation takes it out. For whoever reads a margin as a probability it does.
#
# ## 5. How many labels?
#
# Recorded with `minirlhf grid labels`: a reward model from the SFT model on 100 to 25,600 pairs, the same 160 steps each (so 100 pairs are read many times over, and of the most a good part never: printed below), three seeds, judged on the same 2,000 held-out pairs of all gaps. **Predict** the accuracy of 100 pairs, and how sure that model will be of itself.

# %%
recorded = load_results("labels")
sizes = sorted({row["pairs"] for row in recorded})
rows_of = {n: [row for row in recorded if row["pairs"] == n] for n in sizes}
whole = [row for row in load_results("reward_model") if (row["low"], row["high"]) == (0.0, 8.0)]
ceiling = sum(row["human ceiling"] for row in whole) / len(whole)
figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2)
for axes, keys in ((left, ("accuracy", "confidence")), (right, ("loss",))):
    for key, colour, style in zip(keys, COLOURS, ("o-", "s--"), strict=False):
        mean = [sum(row[key] for row in rows_of[n]) / 3 for n in sizes]
        axes.plot(sizes, mean, style, color=colour, label=key)
        axes.fill_between(
            sizes,
            [min(row[key] for row in rows_of[n]) for n in sizes],
            [max(row[key] for row in rows_of[n]) for n in sizes],
            color=colour,
            alpha=0.2,
        )
    axes.set(xscale="log", xlabel="pairs, one rater a side")
    axes.grid(alpha=0.3)
left.axhline(ceiling, color="#444444", linestyle=":", label="the ceiling of agreement")
left.axhline(0.5, color="#888888", linewidth=0.8)
left.legend(fontsize=8, frameon=False)
right.axhline(math.log(2), color="#888888", linewidth=0.8)
right.set(yscale="log", title="held-out loss, nats a pair (line: a coin's)")
display(figure)

# %%
for n in sizes:
    a, c, loss = (sum(row[key] for row in rows_of[n]) / 3 for key in ("accuracy", "confidence", "loss"))
    print(f"{n:>6} pairs: right {a:.3f}, sure {c:.3f}, loss {loss:.2f}")
for n in (sizes[0], sizes[-1]):
    rated = reviews.preference_pairs("reward", n, seed=0, max_tokens=RewardConfig.max_response, tokenizer=tokenizer)
    read = Counter(p for batch in islice(comparison_batches(rated, RewardConfig()), RewardConfig.steps) for p in batch)
    different = len(set(zip(rated["prompt"], rated["chosen"], rated["rejected"], strict=True)))
    print(f"of {n} pairs drawn {different} are different; {1 - len(read) / different:.0%} are never read, the others {sum(read.values()) / len(read):.0f} times")
    assert (len(read) == different and read.total() > 40 * n) if n == 100 else (0.2 < 1 - len(read) / different < 0.5 and read.total() < 3 * len(read))
claim(
    "A hundred pairs are learned by heart: held out the model is right hardly more often than a coin, sure of almost everything, and its loss is far above a coin's.",
    all(r["accuracy"] < 0.55 and r["confidence"] > 0.9 and r["loss"] > 2 for r in rows_of[100]),
    evidence=", ".join(
        f"{r['accuracy']:.2f} at {r['confidence']:.2f}, {r['loss']:.1f} nats" for r in rows_of[100]
    ),
    seeds=3,
)
accuracy = [sum(r["accuracy"] for r in rows_of[n]) / 3 for n in sizes]
gain = [b - a for a, b in itertools.pairwise(accuracy)]
claim(
    "Sixty-four times as many raise the accuracy by about a tenth and take more than two thirds of the overconfidence away; four times more again add as much as the four times before, and the end is far below the ceiling.",
    all(
        0.06 < r["accuracy"] - s["accuracy"] < 0.14
        for r, s in zip(rows_of[6400], rows_of[100], strict=True)
    )
    and all(r["loss"] < math.log(2) for r in rows_of[6400])
    and all(
        r["confidence"] - r["accuracy"] < (s["confidence"] - s["accuracy"]) / 3
        for r, s in zip(rows_of[6400], rows_of[100], strict=True)
    )
    and abs(gain[-1] - gain[-2]) < 0.01 < gain[-1]
    and max(r["accuracy"] for r in rows_of[25_600]) < ceiling - 0.15,
    evidence=", ".join(f"{n}: {a:.3f}" for n, a in zip(sizes, accuracy, strict=True)) + f"; the ceiling {ceiling:.2f}",
    seeds=3,
)

overall = {
    key: sum(row[key] for row in whole) / len(whole)
    for key in ("reward model", "bag of words", "human ceiling")
}
print({key: round(x, 2) for key, x in overall.items()})
assert 0.35 < (overall["reward model"] - 0.5) / (overall["human ceiling"] - 0.5) < 0.45
assert overall["reward model"] < overall["bag of words"]

# %% [markdown]
# Four times the labels buy two hundredths of accuracy, at the right end as one step before; no plateau yet, but at that pace the ceiling is many fourfold steps away. And more labels of the *same* films cannot be had without end: 25,600 pairs are already drawn from a few thousand snippets, each of which comes back many times. What is short may be comparisons, texts, passes (160 steps did not read them all) or the size of the model: this record varies the first alone.
#
# Mind the left end. The loss of a hundred pairs is that of somebody who is nearly always certain and half the time wrong: few labels, read some fifty times. Stopping earlier would have spared most of the loss, one expects; it was not run.
#
# And is such a model, here 64 %, poor (prediction 3)? Against 1, yes; against the ceiling of 0.84 it is two fifths of the way from a coin to what people know of people; and a bag of words that was given all mean ratings gets further (0.68). Read on its own, the number says nothing.
#
# ## What the libraries do
#
# | matter | decision here | elsewhere |
# |---|---|---|
# | where the score is read | at EOS, found by the mask | TRL: the last token before padding; OpenRLHF: at EOS; DeepSpeed-Chat: the last token before padding, trained at every token from the first that differs |
# | normalisation | shift and scale on SFT samples, stored with the model | OpenRLHF: mean and std on the training set, an option; TRL: none; DeepSpeed-Chat: scores clipped to ±5 in PPO |
# | head | new, its std $1/\sqrt{h + 1}$ | TRL: the transformers default; OpenRLHF: as small or smaller |
# | margin, centring | options | TRL: both; OpenRLHF: margin |
# | epochs | at most a few, with dropout | one, usually: the pairs of one prompt share texts, and a second epoch has seen them |
#
# ## Exercises
#
# **1. The loss** *(easy, 10 minutes)*. From scores of chosen and rejected texts, (B,) each, return the mean Bradley-Terry loss. Scores may be far apart: 200 or -200. *This function goes into your `my_rlhf.py`.*


# %%
def bradley_terry_loss(chosen_scores, rejected_scores): ...  # your code


print(check.bradley_terry_loss(bradley_terry_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def bradley_terry_loss(chosen_scores, rejected_scores):
#     return -torch.nn.functional.logsigmoid(chosen_scores - rejected_scores).mean()
# ```
# </details>
#
# **2. The best of several** *(medium, 15 minutes)*. Now people saw $K$ texts and pointed at the best. With strengths $e^{r}$, chosen in proportion to them, return the mean loss from scores (B, K) and the index (B,) of the one they chose. It is not in the package.
#
# *Hint:* for $K = 2$ it must be the loss of exercise 1.


# %%
def best_of_k_loss(scores, chosen): ...  # your code


print(check.best_of_k_loss(best_of_k_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def best_of_k_loss(scores, chosen):
#     return -scores.log_softmax(1).gather(1, chosen[:, None]).mean()
# ```
#
# The probability is a softmax over the scores; with $K = 2$ that is the sigmoid of the difference.
# </details>
#
# **3. Zero and unit** *(easy, 5 minutes)*. From `scores` (N,) and the raw scores (M,) of the SFT model's samples, return the scores with the samples' mean as zero and their standard deviation (dividing by M - 1) as unit.


# %%
def in_sft_units(scores, sft_scores): ...  # your code


print(check.in_sft_units(in_sft_units))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def in_sft_units(scores, sft_scores):
#     return (scores - sft_scores.mean()) / sft_scores.std()
# ```
# </details>
#
# **4. Find the bug** *(medium, 15 minutes)*. A colleague's reward model learns late and less. Theirs beside a right one, forty steps on real pairs. Look, read, mend.


# %%
def read_score(token_scores, attention_mask):
    """The score of each text (B,) from scores (B, T) at all tokens. Prompts are padded on the left, responses on the right."""
    last = attention_mask.long().sum(1)
    return token_scores.gather(1, last[:, None].clamp(max=token_scores.shape[1] - 1))[:, 0]


def accuracy_curve(read, steps=10 if FAST else 40, size=2 if FAST else 24):
    """Training accuracy, averaged over ten steps, of a reward model whose scores are read by `read`."""
    torch.manual_seed(0)
    model = ScalarModel(trainable(sft.base_model))
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.0)
    drawn, path = (
        reviews.preference_pairs(
            "reward", steps * size, seed=1, min_gap=2.0, max_tokens=32, tokenizer=tokenizer
        ),
        [],
    )
    for start in range(0, steps * size, size):
        rows = drawn[start : start + size]
        both = encode(tokenizer, rows["prompt"] * 2, rows["chosen"] + rows["rejected"])
        c, r = read(token_scores(model, both), both.attention_mask.bool()).chunk(2)
        path.append((c > r).float().mean().item())
        optimiser.zero_grad()
        reward_model_loss(c, r).mean().backward()
        optimiser.step()
    return [sum(path[i : i + 10]) / 10 for i in range(0, steps - 9)]


# %%
runs = {"a right one": accuracy_curve(last_token_scores), "the colleague's": accuracy_curve(read_score)}
figure = Figure(figsize=(6.4, 2.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, y), colour, style in zip(runs.items(), COLOURS, ("-", "--"), strict=False):
    axes.plot(y, style, color=colour, label=name, linewidth=2)
axes.axhline(0.5, color="#888888", linewidth=0.8)
axes.set(xlabel="step", ylabel="accuracy, mean of ten steps")
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)

# %%
print(check.read_score(read_score))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The number of real tokens is not the place of the last one: with padding on the left it lies somewhere in the middle, and without it one too far. Find the last True:
#
# ```python
# places = torch.arange(attention_mask.shape[1])
# last = torch.where(attention_mask, places, -1).argmax(1)
# ```
# </details>
#
# **5. Predict, then run** *(5 minutes)*. How much does a full stop matter? And an exclamation mark? Score the same text with ".", "!", "?" and without; write your guess down, take the hash away.

# %%
marks = {
    end: judge(["the film\n"], ["A moving and funny film" + end])[0].item()
    for end in ("", ".", "!", "!!!", "?")
}
# print(marks)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# A full stop and an exclamation mark weigh the same, a little less than no mark at all; a question mark costs near half a standard deviation, though the words praise as before: what people's reviews end with goes with what they say. (This is one sentence; not all show it.) A policy that is paid by this model could earn a little by leaving the mark away. Ours never found that out: see the samples of lesson 07, even without a leash. Lesson 18 makes such a bias on purpose.
# </details>

# %%
assert all(text.strip()[-1:] == "." for row in load_results("leash") for text in row["samples"].values())
assert abs(marks["."] - marks["!"]) < 0.05 < marks[""] - marks["."] < 0.3 < marks[""] - marks["?"] < 0.6

# %% [markdown]
# **6. Design the experiment** *(hard, 15 minutes)*. Your reward model has 72 % on held-out pairs; a colleague's has 74 %. Which would you train a policy on? What would you measure first?
#
# <details><summary>What a good answer has</summary>
#
# Whether the two percent are real: the same pairs, paired difference, interval over *prompts*. Where they come from: by gap, by length difference. How each does on what a policy writes rather than on what people wrote: the ranking of the policy's own samples, by a judge or people. Calibration, if scores of several models are combined. And the
# decisive one: best-of-n with each, judged by something that neither was trained on.
# </details>
#
# ## Questions
#
# <details><summary>1. Why can two reward models with the same loss give different scores to the same text?</summary>
# Only differences within a prompt enter the loss; a constant for each prompt is free.
# </details>
# <details><summary>2. Training accuracy 95 %, held-out 65 %, ceiling 84 %. What happened?</summary>
# It learned its pairs by heart. The labels are noisy (one rater a side), so beyond the ceiling in training there is only noise to learn.
# </details>
# <details><summary>3. Why are several comparisons of the same text kept in one batch?</summary>
# The text is then computed once for all its comparisons, and it is not seen again and again with different partners in different batches, which leads to overfitting (Ouyang et al. 2022, section 3.5).
# </details>
# <details><summary>4. The bag of words beats the reward model on these films. Is that a scandal?</summary>
# It is a fact about this size of model and amount of data: words of praise are most of the signal, and the bag was fitted on means of fifteen ratings while the model saw single ones. It is also why it is our gold.
# </details>
# <details><summary>5. Why not train the reward model on the mean ratings directly?</summary>
# Here one could (lesson 17 does). In most applications there are no ratings, only choices.
# </details>
#
# **References.** Bradley and Terry 1952. Ziegler et al. 2019, section 2.1. Stiennon et al. 2020, section 3.4. Ouyang et al. 2022, section 3.5. Touvron et al. 2023 (Llama 2), section 3.2.2 (margin). Eisenstein et al. 2023, section 3 (centring). Guo et al. 2017 (temperature scaling), section 4.
