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
# # 01 · Why RLHF?
#
# **The question.** A model can be trained by imitation on good texts. What is it that imitation cannot say, and a reward can?
#
# You need: PyTorch, and lesson 00. You will be able to say what a reward model reads at which token, why stopping has to be trained, and
# what three things supervised fine-tuning cannot express.

# %%
# %matplotlib inline
import math
from itertools import accumulate

import torch
from IPython.display import display

from minirlhf.classroom import check
from minirlhf.classroom.claims import claim, load_results
from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.core.exact import World
from minirlhf.core.masking import aggregate
from minirlhf.models.forward import encode, policy_logprobs, token_scores
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.model import prefix_scores
from minirlhf.runtime import set_threads
from minirlhf.show.exact import policy_bars
from minirlhf.show.strips import token_strip
from minirlhf.tasks import reviews

set_threads()
policy, tokenizer = load_policy("tiny-reviews-sft")
reward_model, _ = load_scalar("tiny-reviews-reward")

# %% [markdown]
# ## A number for a text
#
# Lecture notes on RLHF often open with the reward of every prefix of one sentence. These are the numbers of one such set of notes, from a
# model of their author's:

# %%
notes = {
    "I": 1.344,
    "I love": 1.152,
    "I love to": 2.174,
    "I love to walk": -0.385,
    "I love to walk the": 0.176,
    "I love to walk the dog": 2.305,
    "I love to walk the dog,": 1.619,
    "I love to walk the dog, what": -0.201,
    "I love to walk the dog, what do": 1.255,
    "I love to walk the dog, what do you": 2.377,
    "I love to walk the dog, what do you like": 1.179,
    "I love to walk the dog, what do you like?": 1.298,
}
sentence = list(notes)[-1]

# %% [markdown]
# **Predict, then run.** Our reward model learned from film reviews. Will its numbers for a sentence about a dog resemble these? Which prefixes will
# it like? Write your guess down.

# %%
tokens, with_eos, one_pass = prefix_scores(reward_model, tokenizer, "the film\n", sentence)
recorded = {row["method"]: row for row in load_results("smollm2")}  # a real language model: see below
smol = recorded["prefixes"]
smol_score = dict(zip(accumulate(smol["tokens"]), smol["with_eos"], strict=True))
print(f"{'prefix':>45} {'notes':>7} {'+ EOS':>7} {'one pass':>9} {'SmolLM2 + EOS':>14}")
for end, a, b in zip(accumulate(tokens), with_eos.tolist(), one_pass.tolist(), strict=True):
    theirs, real = notes.get(end, math.nan), smol_score.get(end, math.nan)
    print(f"{end[-45:]:>45} {theirs:7.2f} {a:7.2f} {b:9.2f} {real:14.2f}")
places = [k for k, end in enumerate(accumulate(tokens)) if end in notes]
theirs = torch.tensor([notes[end] for end in accumulate(tokens) if end in notes])
alike = [torch.corrcoef(torch.stack([theirs, x[places].float()]))[0, 1].item() for x in (with_eos, one_pass)]
print(f"correlation with the notes' numbers over {len(places)} prefixes: + EOS {alike[0]:+.2f}, one pass {alike[1]:+.2f}")
assert max(map(abs, alike)) < 0.3

# %% [markdown]
# Two columns of ours, because "the reward of a prefix" has two readings, and they must not be confused:
#
# - **(a) prefix + EOS**: the prefix is ended and scored alone. This is the position the head was trained at, but an unusual text: reviews
#   do not end in the middle of a phrase.
# - **(b) one pass**: the whole sentence goes through once, and the head is read at each token. The text is natural, but the head was never trained
#   at these positions; nothing says that the number there means anything.
#
# The last column is reading (a) by a real language model: SmolLM2-135M, an adapter and a head trained for some minutes on ratings of the same films (`minirlhf smollm2`; recorded; its unit is that of samples of the untuned SmolLM2). It knows
# what a dog is. As a judge of *reviews*, on pairs of films that no training of ours saw (what SmolLM2 read before, nobody knows):

# %%
head, tiny = recorded["reward head"], recorded["tiny-reviews-reward"]
claim(
    "SmolLM2's reward head ranks held-out pairs as one random rater did, more often than chance.",
    head["low"] > 0.5,
    evidence=f"{head['accuracy']:.2f} [{head['low']:.2f}, {head['high']:.2f}] over {head['films']} films",
)
print(
    f"the same pairs, by tiny-reviews-reward: {tiny['accuracy']:.2f} [{tiny['low']:.2f}, {tiny['high']:.2f}]; the intervals {'overlap' if head['low'] < tiny['high'] else 'are apart'}"
)

# %% [markdown]
# The units differ from the notes' as well. A Bradley-Terry reward model is trained on P(A preferred to B) = sigmoid(r_A - r_B): the *difference* of two scores is a log-odds,
# a single score has no zero. Ours is shifted and scaled so that samples of the SFT model have mean 0 and standard deviation 1: a convention, that makes runs comparable. And the sentence lies far from film reviews, so read nothing into it. (Does it resemble the notes? Not at all: the correlation is printed under the table. Another reward model learned from other people's choices.) A review, then:

# %%
review = "A brilliant, moving film with a terrible ending."
tokens, with_eos, one_pass = prefix_scores(reward_model, tokenizer, "the film\n", review)
display(token_strip(tokens, with_eos, title="(a) each prefix + EOS, scored alone"))
display(token_strip(tokens, one_pass, title="(b) one pass, read at each token"))

# %% [markdown]
# Reading (a)'s last text is the whole review and its EOS, so its last number is *the* reward of the review; reading (b)'s last token is the full stop, before EOS,
# so its last number is another. By hand: encode, one forward pass, take the score at the last real token.

# %%
batch = encode(tokenizer, ["the film\n"], [review])
with torch.no_grad():
    scores = token_scores(reward_model, batch)
by_hand = scores[0, int(batch.attention_mask[0].sum()) - 1]
assert torch.equal(by_hand, last_token_scores(scores, batch.attention_mask)[0])
assert torch.allclose(by_hand, with_eos[-1], atol=1e-4)

# %% [markdown]
# ## Where the text ends
#
# GPT-2 has no padding token; the end-of-text token is customarily used for it, here too. A mask made of `ids != pad` therefore drops EOS itself: it is never
# trained, and the model does not learn to stop. So masks come from the *first EOS*, which counts.

# %%
batch = encode(tokenizer, ["the film\n"] * 2, ["Short.", "A somewhat longer review of the same film."])
wrong = batch.response_ids != tokenizer.pad_token_id
print("real tokens, EOS included:", batch.response_mask.sum(1).tolist())
print("by `ids != pad`:          ", wrong.sum(1).tolist())
assert (batch.response_mask.sum(1) - wrong.sum(1)).tolist() == [1, 1]

# %% [markdown]
# ## What imitation cannot say
#
# **1. There are no negative examples.** SFT minimises
#
# $$ L = -\frac{1}{\text{tokens}} \sum_t \log \pi(y_t \mid x, y_{<t}) $$
#
# over good texts. By hand, and as the package computes it:

# %%
with torch.no_grad():
    logprobs = policy_logprobs(policy, batch)
by_hand = (
    -sum(
        logprobs[b, t] for b in range(2) for t in range(logprobs.shape[1]) if batch.response_mask[b, t]
    )
    / batch.response_mask.sum()
)
assert torch.allclose(by_hand, aggregate(-logprobs, batch.response_mask, how="token_mean"), atol=1e-5)

# %% [markdown]
# Every term pushes *up* some written token. Nothing in it says "not like this". A bad text can only be left out, and leaving out says nothing about
# what the model makes of it.
#
# **2. One title, many right reviews.** Imitation spreads probability over everything people wrote, in the proportion in which they wrote it; a reward
# says which of them is better. In the exact world both are visible at once. Three words, of which "." ends a text, responses of at most two words: seven texts. The reference
# (all logits 0: each word equally likely) is what people write, the reward, one number a text, is what they like. We look for the policy that maximises
#
# $$ J(\pi) = E_{y \sim \pi}[r(y)] - \beta \, KL(\pi \| \pi_{\text{ref}}) $$
#
# reward less beta times the distance from the reference; beta is what lesson 00's loop calls `kl_coef`.

# %%
world = World(
    ("good", "bad", "."), 2, torch.tensor([2.0, 0.0, 1.0, 0.0, -2.0, -1.0, 0.0]), torch.zeros(3, 3)
)
assert world.labels == ["goodgood", "goodbad", "good.", "badgood", "badbad", "bad.", "."]
display(
    policy_bars(
        [" ".join(world.vocab[i] for i in s) for s in world.sequences],
        {
            "imitation": world.probs(world.ref_logits),
            "optimum, beta = 1": world.gibbs(beta=1.0),
            "optimum, beta = 0.3": world.gibbs(beta=0.3),
        },
        rewards=world.rewards,
    )
)

# %% [markdown]
# The optimum under a KL leash is known in closed form: $\pi^*(y) \propto \pi_{\text{ref}}(y)\, e^{r(y)/\beta}$, the **Gibbs policy**. It is
# still a distribution: it keeps what people write and tilts it towards what they like. A smaller beta tilts more. Lessons 07 and 12 derive it; here it
# is checked against that objective: it beats the reference, and no step in any direction makes it better.

# %%
for beta in (1.0, 0.3):
    best = world.gibbs_logits(beta=beta)
    assert world.objective(best, beta=beta) > world.objective(world.ref_logits, beta=beta)
    assert world.gradient(best.double(), beta=beta).abs().max() < 1e-5  # nothing left to climb
expected = {
    name: (world.rewards * p).sum().item()
    for name, p in [
        ("imitation", world.probs(world.ref_logits)),
        ("beta 1", world.gibbs(beta=1.0)),
        ("beta 0.3", world.gibbs(beta=0.3)),
    ]
}
print({name: round(value, 3) for name, value in expected.items()})
assert expected["imitation"] < expected["beta 1"] < expected["beta 0.3"] < world.rewards.max()

# %% [markdown]
# **3. Training sees people's prefixes, use sees its own.** In SFT each token is predicted after words that a person wrote. When the model writes, it
# continues its *own* words, and an odd one leads to places no training text went to (*exposure bias*). RLHF trains on what the model itself writes.
#
# How odd are our model's own words to itself, and how odd are people's? The mean negative log-probability of a token, on held-out titles:

# %%
held = [
    r for r in reviews.load_reviews() if r.split == "test" and len(tokenizer(r.text).input_ids) < 32
][:128]
people = encode(tokenizer, [r.prompt for r in held], [r.text for r in held])
as_scored = SamplingConfig(
    temperature=1.0
)  # people are scored at temperature 1, so its own words are drawn at 1
own = sample_text(policy, tokenizer, [r.prompt for r in held], config=as_scored, batch_size=128)[0]
with torch.no_grad():
    surprise = {
        name: aggregate(-policy_logprobs(policy, b), b.response_mask).item()
        for name, b in (("people", people), ("its own", own))
    }
print({name: f"{value:.2f} nats a token" for name, value in surprise.items()})

# %% [markdown]
# By itself that says little: a model could be surprised by people because people are varied, and these are means over whole texts. Exercise 5 asks what would measure exposure
# bias. (Mind the temperature: drawn at 0.7 and scored at 1 its own words look far more likely, which says nothing but that.)
#
# ## What the libraries do
#
# Read in their sources (TRL 1.12, the last with a PPO trainer, OpenRLHF 0.11, DeepSpeed-Chat of 2025):
#
# - **TRL**'s PPO reads the score at the last token before padding (`get_reward` in experimental/utils.py) and adds it to the reward of the position after it, where there is
#   one. So padding must not be EOS there: the last token before it would be the last *word*. **OpenRLHF** reads and pays at the last action token, as we do.
# - **DeepSpeed-Chat** trains its reward model at every token from the first one that differs, so its per-token picture, reading (b), is at trained positions.
# - The mask `ids != pad` is common in teaching code; where padding is EOS, stopping is then never trained.
#
# ## Exercises
#
# **1. The mask** *(easy, 10 minutes)*. From response ids (B, R) and the id of EOS, make the mask: True for real tokens up to and including the first EOS. Rows
# without EOS are all real.
#
# *Hint:* `(ids == eos_id).long().cumsum(1)` counts the EOS seen so far; subtract the token's own.


# %%
def eos_mask(ids, eos_id): ...  # your code


print(check.eos_mask(eos_mask))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def eos_mask(ids, eos_id):
#     is_eos = (ids == eos_id).long()
#     return is_eos.cumsum(1) - is_eos == 0
# ```
# </details>
#
# **2. The score of a text** *(easy, 5 minutes)*. From scores (B, T) at every position and a mask of real tokens, right-padded, return the score of each text.
#
# *Hint:* the index of the last real token is their number minus one; `gather`.


# %%
def score_of_text(token_scores, mask): ...  # your code


print(check.score_of_text(score_of_text))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def score_of_text(token_scores, mask):
#     return token_scores.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
# ```
# </details>
#
# **3. Predict, then run** *(5 minutes)*. "The film is a brilliant" and "The film is a boring": at the word before the adjective, is reading (a) the same for both? Is (b)? And
# at the adjective, which reading would you trust to tell them apart?
#
# <details><summary>Answer</summary>
#
# Before the adjective both readings agree between the sentences: (a) scores the same prefix and EOS, (b) has read the same tokens and cannot look ahead. At the adjective
# both put "brilliant" above "boring", (b) even by more. But more is not truer: (a) stands at a position that was trained and scaled, (b) at one that was not, so nothing
# says what a difference of its numbers means; on another pair of words it may be the other way round.
# </details>

# %%
at_adjective = {}
for word in ("brilliant", "boring"):
    tokens, a, b = prefix_scores(reward_model, tokenizer, "the film\n", f"The film is a {word}")
    n = len(tokenizer("The film is a").input_ids)
    at_adjective[word] = (a[n - 1].item(), b[n - 1].item(), a[-1].item(), b[-1].item())
    print(
        f"{word:>9}: before (a) {a[n - 1]:+.2f} (b) {b[n - 1]:+.2f}   at it (a) {a[-1]:+.2f} (b) {b[-1]:+.2f}"
    )
good, bad = at_adjective["brilliant"], at_adjective["boring"]
assert all(math.isclose(x, y, abs_tol=1e-4) for x, y in zip(good[:2], bad[:2], strict=True))
assert good[2] > bad[2] and good[3] - bad[3] > good[2] - bad[2]

# %% [markdown]
# **4. Find the bug** *(medium, 10 minutes)*. A colleague's model never stops. Their loss:
# `mask = response_ids != tokenizer.pad_token_id; loss = -(logprobs * mask).sum() / mask.sum()`, with `tokenizer.pad_token = tokenizer.eos_token`. Say in one sentence what
# happens, and mend it with the function of exercise 1.
#
# **5. Design the experiment** *(hard, 15 minutes)*. How would you measure exposure bias rather than assert it? What would you compare at token 20 of a
# response, and with how many samples?
#
# <details><summary>What a good answer has</summary>
#
# Two sets of prefixes of equal length, people's and the model's own, at temperature 1; for each, what the model writes *next*, judged by something that is not the model (people, or a
# fixed scorer of fluency); the difference by prefix length with an interval over titles. Exposure bias predicts that the gap grows with the length of the prefix.
# </details>
#
# ## Questions
#
# <details><summary>1. Why does the reward of "I love to walk" say little about the sentence that it begins?</summary>
# Scored alone it is another text, one that ends in mid-phrase. The reward of the whole is read at its last token.
# </details>
# <details><summary>2. Why can two reward models that give every pair the same probability give different scores?</summary>
# Only differences of scores enter Bradley-Terry: to all scores of one prompt a constant can be added. (Models that agree on the order alone may differ by any increasing function.)
# </details>
# <details><summary>3. If imitation has no negative examples, why does its loss not make every text likely?</summary>
# Probabilities sum to 1: pushing up what was written pushes down all else, good and bad alike.
# </details>
# <details><summary>4. What does the Gibbs policy become as beta goes to 0, and as it grows?</summary>
# All its probability on the best text; the reference.
# </details>
# <details><summary>5. Which of the two readings would you show a user, and with what words?</summary>
# (a), with the remark that a prefix is not a review; or (b) of a model that was trained per token.
# </details>
#
# **References.** Ziegler et al. 2019, section 2.1 (the reward model and its normalisation). Stiennon et al. 2020, section 3.4. Ranzato et al. 2016, *Sequence level
# training*, section 1 (exposure bias). Korbak et al. 2022, *RL with KL penalties is better viewed as Bayesian inference*, section 3.
