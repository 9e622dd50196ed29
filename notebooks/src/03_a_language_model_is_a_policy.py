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
# # 03 · A language model is a policy
#
# **The question.** Reinforcement learning speaks of states, actions, values. Where are they in a language model, and which of its numbers are they?
#
# **You need** PyTorch and probability; no reinforcement learning. 30 minutes to read, 65 for the exercises.
#
# **Predict.** Write a number or a word beside each.
#
# 1. A model reads the tokens $x_0 \dots x_9$ and gives logits at ten positions. The logits at position 4 are about which token?
# 2. Sampling at temperature 0.5 instead of 1: does the entropy of the next token rise or fall? And the probability of the likeliest token?
# 3. A text of 30 tokens has log-probability -90. How likely is a *typical* token of it?
# 4. SFT on what people wrote, good and bad reviews alike. Will it write better reviews than they did?

# %%
# %matplotlib inline
import math
import random

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim
from minirlhf.core.exact import World
from minirlhf.core.logprobs import entropy, response_logprobs
from minirlhf.core.masking import aggregate
from minirlhf.evaluate import bootstrap, distinct_n
from minirlhf.models.forward import decode, encode, policy_logits, policy_logprobs
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.tasks import reviews

set_threads()
base, tokenizer = load_policy("tiny-reviews")
sft, _ = load_policy("tiny-reviews-sft")

# %% [markdown]
# ## 1. The dictionary
#
# | reinforcement learning | language model |
# |---|---|
# | state $s_t$ | prompt and text so far, $x, y_{<t}$ |
# | action $a_t$ | the next token $y_t$, one of $V$ |
# | policy $\pi(a \mid s)$ | the softmax of the logits |
# | transition | append the token: deterministic, and known |
# | end of an episode | EOS, or the longest length |
# | reward | what a scorer says of the finished text: 0 everywhere, a number at the end |
# | return $G_t$ | the rewards from token $t$ on, summed |
# | value $V(s)$ | the mean return when the policy goes on from $s$ |
# | $Q(s, a)$ | the same with the next token already chosen: the value of the longer text |
#
# Two views of one thing. **Bandit**: one action, the whole text, one reward. **Token**: a chain of small actions, the reward at the end. Since $\pi(y \mid x) = \prod_t \pi(y_t \mid x, y_{<t})$ they have the same objective; they differ in what an algorithm can *see*.
#
# **By hand**: the world that goes through lessons 04 to 07. Three words, *good*, *bad* and the stop, at most two of them, each equally likely; reward: *good* minus *bad*. The value after *good* is the mean of 2, 0 and 1. At the start it is the mean of the
# three values behind it:

# %%
world = World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
)
p = {
    "good good": 1 / 9,
    "good bad": 1 / 9,
    "good .": 1 / 9,
    "bad good": 1 / 9,
    "bad bad": 1 / 9,
    "bad .": 1 / 9,
    ".": 1 / 3,
}
assert torch.allclose(world.probs(world.ref_logits), torch.tensor(list(p.values())).double())
after_good, after_bad = (2 + 0 + 1) / 3, (0 - 2 - 1) / 3
at_start = (after_good + after_bad + 0) / 3
v, q = world.values(world.ref_logits)
assert torch.allclose(v, torch.tensor([at_start, after_good, after_bad]).double())
assert torch.allclose(
    q[0], torch.tensor([after_good, after_bad, 0.0]).double()
)  # Q of a word is the value of the longer text
bandit = sum(share * r for share, r in zip(p.values(), world.rewards.tolist(), strict=True))
print(f"V at the start, token by token {at_start:.3f}; the bandit's mean reward {bandit:.3f}")
assert math.isclose(bandit, at_start, abs_tol=1e-12)

# %% [markdown]
# ## 2. Which number belongs to which token
#
# A transformer reads $T$ tokens and gives $T$ rows of logits. Row $i$ has read tokens $0 \dots i$, so it is about token $i + 1$. That shift is the commonest place for a bug, so here it is done by hand, on two titles and a review of each, of unequal length; prompts are
# padded on the left, responses on the right:

# %%
batch = encode(
    tokenizer, ["the film\n", "a night at the opera\n"], ["A dull film.", "Funny, and a little sad."]
)
with torch.no_grad():
    logits = sft(
        input_ids=batch.sequences,
        attention_mask=batch.attention_mask.long(),
        position_ids=batch.position_ids,
    ).logits
prompt_length = batch.prompt_ids.shape[1]
for row in range(2):
    for t in range(int(batch.response_mask[row].sum())):
        about = logits[row, prompt_length + t - 1].log_softmax(
            -1
        )  # one to the left of the token itself
        by_hand = about[batch.response_ids[row, t]].item()
        if row == 0:
            print(
                f"{tokenizer.decode([batch.response_ids[row, t]]):>16}   log-probability {by_hand:6.2f}   probability {math.exp(by_hand):.4f}"
            )
        with torch.no_grad():
            assert math.isclose(by_hand, policy_logprobs(sft, batch)[row, t].item(), abs_tol=1e-4)

# %% [markdown]
# Three things to see. The last line is EOS: ending is an action like any other, and it has a probability. The prompt's tokens are not used: nobody chose them, so they are masked in every loss. And there is no number for the *first* token of the prompt at all: nothing stands before it.
#
# ## 3. Sampling, temperature, entropy
#
# To draw a token, draw one uniform number $u$ and take the first word at which the sum of probabilities passes $u$. A **temperature** $\tau$ divides the logits first: $\pi_\tau(a) \propto \pi(a)^{1/\tau}$. Below 1 it sharpens, above 1 it flattens; at 0 only the
# likeliest is left. The **entropy** $H = -\sum_a \pi(a) \log \pi(a)$ says in nats how undecided the policy is: 0 is certain, $\log V$ is all alike, $e^H$ reads as "so many equally likely words".
#
# That entropy never falls as $\tau$ rises can be derived. Write $\theta = 1/\tau$ and $\ell_a$ for the logits: $\pi_\theta(a) = e^{\theta \ell_a} / Z_\theta$, $\log Z_\theta$ has the derivative $\mathbb{E}[\ell]$, and $\mathbb{E}[\ell]$ has the derivative $\mathrm{Var}(\ell)$. So
#
# $$ H = \log Z_\theta - \theta\, \mathbb{E}[\ell] , \qquad \frac{dH}{d\theta} = \mathbb{E}[\ell] - \mathbb{E}[\ell] - \theta\, \mathrm{Var}_\theta(\ell) = -\theta\, \mathrm{Var}_\theta(\ell) \le 0 . $$

# %%
next_word = logits[0, prompt_length - 1].double()  # the first word of a review
temperatures = torch.linspace(0.2, 2.0, 19).double()
h = [-(x := (next_word / tau).log_softmax(0)).exp().dot(x).item() for tau in temperatures]
assert h == sorted(h)
slope = -(next_word / 0.99).log_softmax(0).exp().dot((next_word / 0.99).log_softmax(0)) + (
    next_word / 1.01
).log_softmax(0).exp().dot((next_word / 1.01).log_softmax(0))
d_theta = 1 / 0.99 - 1 / 1.01
probs = next_word.softmax(0)
variance = probs.dot(next_word.square()) - probs.dot(next_word) ** 2
assert (
    abs(slope / d_theta + variance) / variance < 0.01
)  # dH/dtheta = -Var at theta = 1, by a difference quotient

# %%
figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
left.plot(temperatures, h, color=COLOURS[0], linewidth=2)
left.axhline(math.log(len(next_word)), color="#888888", ls=":")
left.text(0.25, math.log(len(next_word)) - 0.5, "log V: all words alike", fontsize=8, color="#666666")
left.set(xlabel="temperature", ylabel="entropy of the first word, nats")
top = next_word.topk(12).indices
for tau, colour, offset in ((0.5, COLOURS[0], -0.27), (1.0, COLOURS[1], 0.0), (1.5, COLOURS[2], 0.27)):
    right.bar(
        [i + offset for i in range(12)],
        (next_word / tau).softmax(0)[top],
        0.27,
        color=colour,
        label=f"temperature {tau}",
    )
right.set_xticks(range(12), [tokenizer.decode([i]) for i in top.tolist()], rotation=45, fontsize=8)
right.set(ylabel="probability", title="the twelve likeliest first words")
right.legend(fontsize=8, frameon=False)
display(figure)

# %% [markdown]
# **One temperature.** The log-probabilities that enter RL are those of the policy that *sampled*. If texts are drawn at 0.7 and scored at 1, then the ratio of "new" to "old" probability is not 1 though nothing was trained, and every KL is of two different policies.
# The loop's `sample` records them as it draws; a second look with the same temperature agrees, with another it does not:

# %%
(own,) = sample_text(
    sft,
    tokenizer,
    reviews.eval_prompts("test")[: 8 if FAST else 64],
    config=SamplingConfig(temperature=0.7),
    seed=0,
    batch_size=64,
)
with torch.no_grad():
    off = {
        tau: (policy_logprobs(sft, own, temperature=tau) - own.old_logprobs).abs().max().item()
        for tau in (0.7, 1.0)
    }
print(
    "largest difference of a token's log-probability:", {tau: f"{x:.1e} nats" for tau, x in off.items()}
)
assert off[0.7] < 1e-4 and off[1.0] > 0.5

# %% [markdown]
# ## 4. SFT is imitation
#
# Supervised fine-tuning minimises the mean surprise at what people wrote, $L = -\mathbb{E}_{y \sim \text{people}} \log \pi(y)$. Add and subtract people's own entropy, and it is a KL in the *other* direction than the one that keeps RL near its reference (lesson 01):
#
# $$ L = \mathrm{KL}(\text{people} \,\|\, \pi) + H(\text{people}) . $$
#
# Its gradient is $-\mathbb{E}_{y \sim \text{people}}[\nabla \log \pi(y)]$. Put beside the policy gradient of lesson 04, $\mathbb{E}_{y \sim \pi}[r(y) \nabla \log \pi(y)]$, it is the same push, with two differences: *whose* texts are pushed, and that everything people wrote has reward 1.
#
# What did it change in our model? On 384 short reviews (fewer than 32 tokens) of films that no training saw, how surprised are base and SFT model by people's reviews, token by token?

# %%
short = [r for r in reviews.load_reviews() if r.split == "test" and len(tokenizer(r.text).input_ids) < 32]
held = random.Random(0).sample(short, 48 if FAST else 384)
people = encode(tokenizer, [r.prompt for r in held], [r.text for r in held])
mask = people.response_mask


@torch.no_grad()
def at_each_token(model):
    """(2, N, R): the surprise at people's tokens and the entropy there, from one pass over 64 texts at a time."""
    found = []
    for rows in torch.arange(len(held)).split(64):
        x = people.select(rows)
        logits = policy_logits(model, x)
        both = torch.stack([-response_logprobs(logits, x.response_ids, x.response_mask), entropy(logits, x.response_mask)])
        found.append(torch.nn.functional.pad(both, (0, mask.shape[1] - both.shape[2])))
    return torch.cat(found, 1)


surprise, undecided = {}, {}
for name, model in (("base", base), ("SFT", sft)):
    surprise[name], undecided[name] = at_each_token(model)
means = {name: aggregate(x, mask).item() for name, x in surprise.items()}
print({name: f"{x:.3f} nats, mean over tokens" for name, x in means.items()})
assert FAST or round(means["base"] - means["SFT"], 2) == 0.16
per_text = (surprise["base"] - surprise["SFT"]).mul(mask).sum(1) / mask.sum(1)
films = list(dict.fromkeys(r.movie for r in held))
part = torch.zeros(len(films)).index_add(0, torch.tensor([films.index(r.movie) for r in held]), per_text) * len(films) / len(held)
low, high = bootstrap(part)
claim(
    "SFT lowered the surprise at people's reviews of films that it never saw.",
    low > 0.1,
    evidence=f"{per_text.mean():.2f} nats a token, mean over {len(per_text)} texts of {len(films)} films, 95 % over films [{low:.2f}, {high:.2f}]",
)

# %%
figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
for axes, numbers, title in zip(
    figure.subplots(1, 2),
    (surprise, undecided),
    ("surprise at people's token, nats", "entropy of the policy there, nats"),
    strict=True,
):
    for (name, x), colour, style in zip(numbers.items(), COLOURS, ("--", "-"), strict=False):
        axes.plot(
            [aggregate(x[:, t : t + 1], mask[:, t : t + 1]).item() for t in range(24)],
            style,
            color=colour,
            label=name,
            linewidth=2,
        )
    axes.set(xlabel="token of the review", title=title)
    axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False)
display(figure)

# %% [markdown]
# (Mean over all tokens, the gain is 0.16; mean over texts of each text's own mean, it is 0.19, because there a short text counts as much as a long one, and the gain is at the beginning. Lesson 04 comes back to such denominators.)
#
# Where is the gain? Mostly at the beginning, where the base model does not know that after a title and a new line a review begins; later the two are about equally surprised: SFT teaches the format, hardly the language (the base model had read these very snippets in training, without their titles: there was little left to learn). And the surprise at the first tokens is high for both: there are many ways to begin.
#
# Now let both write, and look at what RL will need: that texts *end*.

# %%
first = {
    name: aggregate((surprise["base"] - surprise["SFT"])[:, :4], mask[:, :4]).item()
    if name == "first four"
    else aggregate((surprise["base"] - surprise["SFT"])[:, 8:], mask[:, 8:]).item()
    for name in ("first four", "from the ninth on")
}
print("gain of SFT, nats a token:", {name: round(x, 3) for name, x in first.items()})
assert first["first four"] > 2 * first["from the ninth on"]

print(f"{'':>6} {'temperature':>12} {'cut off':>8} {'distinct-2':>11}   first sample")
ends = {}
for name, model in (("base", base), ("SFT", sft)):
    for tau in (0.4, 0.7, 1.0):
        drawn = sample_text(
            model,
            tokenizer,
            reviews.eval_prompts("test")[: 8 if FAST else 76],
            config=SamplingConfig(temperature=tau),
            seed=1,
            batch_size=76,
        )[0]
        texts = decode(tokenizer, drawn)
        ends[name, tau] = 1 - drawn.finished(tokenizer.eos_token_id).float().mean().item()
        print(
            f"{name:>6} {tau:12.1f} {ends[name, tau]:8.2f} {distinct_n(texts, 2):11.2f}   {texts[0][:60]}"
        )
assert all(ends["SFT", tau] <= ends["base", tau] for tau in (0.4, 0.7, 1.0))

# %% [markdown]
# ## 5. What imitation cannot do
#
# Suppose people write good and bad reviews, a little more good. SFT copies the proportion, whatever we like: its optimum is people themselves, $\mathrm{KL} = 0$. Leaving the bad ones out of the data changes the proportion, but what becomes of their probability is decided by
# how the model generalises, not by us. In the small world that can be followed to the end:

# %%
people_like = world.gibbs(beta=2.0)  # what people write: exp(reward / 2) times as likely as by chance
table = world.ref_logits.clone().requires_grad_(True)
optimiser = torch.optim.LBFGS([table], max_iter=200, line_search_fn="strong_wolfe")


def imitate():
    optimiser.zero_grad()
    loss = -(people_like * world.sequence_logprobs(table)).sum()
    loss.backward()
    return loss


optimiser.step(imitate)
imitation = world.probs(table.detach())
print("people    ", [round(x, 3) for x in people_like.tolist()])
print("imitation ", [round(x, 3) for x in imitation.tolist()])
assert torch.allclose(
    imitation, people_like.detach(), atol=1e-5
)  # it becomes people: never better than what it is shown
best = (world.rewards * imitation).sum().item()
print(
    f"mean reward of people and of their imitation {best:.3f}; the best text has {world.rewards.max():.0f}"
)
colder = {tau: (world.rewards * world.probs(table.detach() / tau)).sum().item() for tau in (1.0, 0.7, 0.5)}
print("sampled at a temperature:", {tau: f"{x:.3f}" for tau, x in colder.items()})
assert math.isclose(colder[1.0], best) and best < colder[0.7] < colder[0.5]

# %% [markdown]
# So as a distribution the imitation is never better than what it is shown. *Sampled colder* it may be, where people's more likely texts are also the better ones, as here: a temperature of 0.7 is a first, blind step towards the middle of what people do, and it is what our SFT model is sampled at.

# %% [markdown]
# ## What the libraries do
#
# | matter | decision here | elsewhere |
# |---|---|---|
# | loss on the prompt | never | TRL: with `prompt` and `completion` columns, on the completion only; with one `text` column, on everything |
# | EOS | added to every response, and trained | TRL adds it for prompt-completion data; where padding is EOS and masks are `ids != pad`, it is lost |
# | temperature in RL | one, for sampling, policy, old policy and reference | TRL divides policy and reference logits by it; DeepSpeed-Chat ignores it |
# | positions with left padding | counted from the mask | a forward pass without `position_ids` gives wrong log-probabilities with absolute positions |
#
# ## Exercises
#
# **1. Log-probabilities** *(medium, 15 minutes)*. From the logits (B, T, V) of whole sequences, their ids (B, T), and the length P of the (padded) prompt, return the log-probabilities (B, T - P) of the response's tokens.
#
# *Hint:* shift, then `log_softmax`, then `gather`.


# %%
def token_logprobs(logits, ids, prompt_length): ...  # your code


print(check.token_logprobs(token_logprobs))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def token_logprobs(logits, ids, prompt_length):
#     about = logits[:, prompt_length - 1 : -1].log_softmax(-1)
#     return about.gather(-1, ids[:, prompt_length:, None])[..., 0]
# ```
# </details>
#
# **2. Draw a word** *(medium, 10 minutes)*. From logits (B, V), a temperature, and one uniform number a row, (B,), return the ids (B,) that the inverse of the cumulative distribution gives.
#
# *Hint:* count the words whose cumulative probability is at most $u$. Rounding may leave the last sum just below 1, and $u$ above it.


# %%
def draw_word(logits, temperature, uniform): ...  # your code


print(check.draw_word(draw_word))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def draw_word(logits, temperature, uniform):
#     cumulative = (logits / temperature).softmax(-1).cumsum(-1)
#     return (cumulative <= uniform[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
# ```
# </details>
#
# **3. How undecided** *(easy, 10 minutes)*. Return the entropy (B,) of the next word from logits (B, V). Some logits are minus infinity: forbidden words.
#
# *Hint:* $0 \cdot (-\infty)$ is NaN; what should it be?


# %%
def next_word_entropy(logits): ...  # your code


print(check.next_word_entropy(next_word_entropy))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def next_word_entropy(logits):
#     log_p = logits.log_softmax(-1)
#     return -torch.where(log_p.isinf(), 0.0, log_p.exp() * log_p).sum(-1)
# ```
# </details>
#
# **4. Find the bug** *(medium, 15 minutes)*. A colleague's SFT reports a loss that falls below what the texts allow, and its samples are noise. Below: the loss they report, and the true surprise of the same model. Look, read, mend.


# %%
def sft_loss(logits, ids, mask):
    """Mean surprise at real tokens: logits (B, R, V) about the tokens ids (B, R)."""
    logprobs = logits.log_softmax(1).gather(-1, ids[..., None])[..., 0]
    return -torch.where(mask, logprobs, 0.0).sum() / mask.sum()


def fit(loss_of, steps=150):
    """A free table of logits for each place, fitted to four texts of three words. Returns (reported, true) surprise."""
    torch.manual_seed(0)
    ids, real = torch.randint(8, (4, 3)), torch.ones(4, 3, dtype=torch.bool)
    table, path = torch.zeros(1, 3, 8, requires_grad=True), []
    optimiser = torch.optim.Adam([table], lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = loss_of(table.expand(4, -1, -1), ids, real)
        true = -table.log_softmax(-1).expand(4, -1, -1).gather(-1, ids[..., None]).mean()
        path.append((loss.item(), true.item()))
        loss.backward()
        optimiser.step()
    return path


# %%
path = fit(sft_loss)
figure = Figure(figsize=(6.4, 2.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
axes.plot([a for a, _ in path], color=COLOURS[0], linewidth=2, label="the loss they report")
axes.plot(
    [b for _, b in path],
    "--",
    color=COLOURS[1],
    linewidth=2,
    label="the surprise of the model's own distribution",
)
axes.set(xlabel="step", ylabel="nats a token")
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)

# %%
print(check.sft_loss(sft_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# `log_softmax(1)` normalises over the *places* of a text, not over the words: it asks "which place has this word", and places are few. The words are in the last axis: `log_softmax(-1)`.
# </details>
#
# **5. Predict, then run** *(5 minutes)*. Take people's reviews and shuffle the *titles* among them. Will the SFT model's surprise rise? By how much of its gain over the base model? Write it down, take the hash away.

# %%
order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0)).tolist()
swapped = encode(tokenizer, [held[i].prompt for i in order], [r.text for r in held])
with torch.no_grad():
    mixed_up = aggregate(-policy_logprobs(sft, swapped), mask).item()
# print(mixed_up, means)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# It hardly moves. A model of four million parameters that has not seen these films has little to connect a title with; SFT taught it that *a* title is followed by a review. (It is also why we pair reviews within a film: what differs between two of them is not the title.)
# </details>

# %%
assert abs(mixed_up - means["SFT"]) < 0.05 * (means["base"] - means["SFT"])

# %% [markdown]
# **6. Design the experiment** *(hard, 10 minutes)*. "Our SFT model is better than the base model." Name three numbers that could show it, what each would miss, and the texts you would measure them on.
#
# <details><summary>What a good answer has</summary>
#
# Surprise at held-out human texts (blind to what the model writes by itself); share of samples that end and keep the format (blind to content); a judge's score of samples, with length and variety beside it (blind to whatever the judge is blind to). On prompts that no training saw, the same for both,
# paired, with an interval.
# </details>
#
# ## Questions
#
# <details><summary>1. A text of 30 tokens has log-probability -90. What does that say of a token?</summary>
# On average log-probability -3: its geometric mean probability is about 1 in 20. Sums over texts of different lengths are not comparable as they stand.
# </details>
# <details><summary>2. Why is the prompt masked in the losses of RL?</summary>
# Nobody chose its tokens, so there is nothing to make likelier. It is a state, not an action.
# </details>
# <details><summary>3. At temperature 0.7, which policy does RL improve?</summary>
# The one at 0.7: its log-probabilities enter all losses. At temperature 1 the same weights are another policy.
# </details>
# <details><summary>4. SFT and RL's leash are both KLs. What is the difference in what they forgive?</summary>
# KL(people || policy) punishes giving no chance to what people write (it covers). KL(policy || reference) punishes writing what the reference would not (it stays inside, and may leave much of it out).
# </details>
# <details><summary>5. V of a text, or Q of a token: which do you need to know how good the token was?</summary>
# V twice: Q(s, a) is V of the longer text, because appending is deterministic. The difference of the two Vs is the token's advantage (lesson 05).
# </details>
#
# **References.** Sutton and Barto 2018, chapter 3 (the dictionary). Ranzato et al. 2016, section 2 (sequence models as policies). Ouyang et al. 2022, section 3.5 (SFT, and the bandit view). Ziegler et al. 2019, section 2.
