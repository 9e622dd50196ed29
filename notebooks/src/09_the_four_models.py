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
# # 09 · The four models
#
# **The question.** PPO from human feedback keeps four networks in memory. What does each of them say about one sentence, and how do their numbers become one step?
#
# **You need** lessons 03 to 08. 40 minutes to read, 150 for the exercises.
#
# **Predict.** Which of the four models (actor, reference, reward model, critic) ...
#
# 1. is trained? 2. reads the finished text only? 3. gives a number at each token that enters the advantage? 4. could be thrown away if `kl_coef` were 0? 5. is run token by token?

# %%
# %matplotlib inline
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from minirlhf.classroom import atlas, check
from minirlhf.classroom.claims import FAST, claim, load_results
from minirlhf.classroom.lessons.concepts import Questions, graded
from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.masking import aggregate, masked_whiten
from minirlhf.core.policy_gradient import ppo_clip, value_loss_clipped
from minirlhf.core.returns import gae
from minirlhf.evaluate import paired_difference, token_table
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.forward import decode, encode_prompts, policy_logprobs, response_values
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.rewards.model import rollout_score
from minirlhf.runtime import seed_all, set_threads
from minirlhf.show import COLOURS
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

set_threads()
sft, tokenizer = load_policy("tiny-reviews-sft")
scorer, _ = load_scalar("tiny-reviews-reward")

# %% [markdown]
# | model | begins as | trained? | reads | says |
# |---|---|---|---|---|
# | **actor** $\pi$ | the SFT model | yes | the text so far | the next token's distribution |
# | **reference** $\pi_{\text{ref}}$ | the SFT model | never | the text so far | the same, frozen: what the leash is tied to |
# | **reward model** $r$ | the SFT model, a head, trained on pairs | never again | the finished text | one number |
# | **critic** $V$ | the reward model, head and all | yes | the text so far | what the finished text will earn |
#
# Lecture notes often give the critic the letter Q. It computes V: it is read *before* each token. Appending a token is deterministic, so $Q(s_t, y_t) = r_t + V(s_{t+1})$, and nothing else is needed (lesson 05).
#
# ## 1. One batch, number by number
#
# Four titles, four reviews by the actor. Everything PPO will use is computed below, in the order in which the loop does it; nothing is hidden.

# %%
generator = seed_all(11)
actor, critic, reference = trainable(sft), trainable(scorer), sft
actor.eval(), critic.eval()
titles = reviews.rl_prompts()[:4]
ids, prompt_mask = encode_prompts(tokenizer, titles)
rollout = sample(
    actor, ids, prompt_mask, eos_id=tokenizer.eos_token_id, config=SamplingConfig(), generator=generator
)
mask = rollout.response_mask
with torch.no_grad():
    scores = rollout_score(scorer, tokenizer.eos_token_id)(rollout)  # reward model: one number a text
    ref_logprobs = policy_logprobs(reference, rollout, temperature=0.7)  # reference: one number a token
    values = response_values(critic, rollout)  # critic: one number before each token
rewards = kl_shaped_rewards(
    scores - 1.0 * ~rollout.finished(tokenizer.eos_token_id),
    rollout.old_logprobs,
    ref_logprobs,
    mask,
    kl_coef=0.5,
)
advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
for title, text, points in zip(titles, decode(tokenizer, rollout), scores.tolist(), strict=True):
    print(f"{points:+.2f}  {title.strip()}: {text}")

# %% [markdown]
# The actor is still a copy of the reference, so every KL is 0 and the rewards are the scores, each on its text's last token. To see a leash that pulls, we let the actor be one that has learned for a moment, and look at one of its reviews in the microscope. (The table shows the moment before the update: the log-probability is still the old one, every ratio is 1, nothing is clipped. A token's log-ratio, and the sum of one text, may be negative; only their mean over texts is a KL and is not.)

# %%
a_moment = {"steps": 1, "epochs": 1, "batch_size": 8, "minibatch_size": 8} if FAST else {"steps": 4, "epochs": 2}
short = PPOConfig(**a_moment, kl=PPOConfig().kl, seed=0)
moved, moved_critic, _ = train_ppo(
    trainable(sft),
    trainable(scorer),
    tokenizer,
    reviews.rl_prompts(),
    rollout_score(scorer, tokenizer.eos_token_id),
    short,
)
later = sample(
    moved, ids, prompt_mask, eos_id=tokenizer.eos_token_id, config=SamplingConfig(), generator=generator
)
row = int(later.response_mask.sum(1).argmin())
frame = token_table(
    later.select([row]),
    tokenizer,
    actor=moved,
    reference=reference,
    reward_model=scorer,
    critic=moved_critic,
    temperature=0.7,
    kl_coef=0.5,
)
later_scores = rollout_score(scorer, tokenizer.eos_token_id)(later)
table = frame.to_dict("records")
columns = ["token", "logprob", "old_logprob", "ref_logprob", "kl", "reward", "value"]
columns += ["td_error", "advantage", "return", "ratio", "clipped"]
display(frame[columns].round(3))

# %% [markdown]
# Check three numbers by hand, on any row: *kl* is old_logprob minus ref_logprob; *reward* is minus half of it (the last token has the score as well); *td_error* is reward plus the next row's value minus its own.
#
# And your predictions? *Trained* are actor and critic. *The finished text only* is what the reward model reads. *A number at each token* comes from the critic, and from actor and reference together: the charge. Without a price the *reference* could go. And *token by token* runs the actor alone, while it samples; all others, and the actor when it learns, read the finished texts in one pass.

# %%
for t, here in enumerate(table):
    assert math.isclose(here["kl"], here["old_logprob"] - here["ref_logprob"], abs_tol=1e-5)
    last = t + 1 == len(table)
    assert math.isclose(
        here["reward"], -0.5 * here["kl"] + (later_scores[row].item() if last else 0.0), abs_tol=1e-5
    )
    following = 0.0 if last else table[t + 1]["value"]
    assert math.isclose(here["td_error"], here["reward"] + following - here["value"], abs_tol=1e-5)
assert math.isclose(
    sum(r["reward"] for r in table),
    later_scores[row].item() - 0.5 * sum(r["kl"] for r in table),
    abs_tol=1e-4,
)

# %% [markdown]
# The whole flow, drawn with that review's own numbers:

# %%
figure = Figure(figsize=(9.5, 5.2), dpi=110)
axes = figure.add_axes((0, 0, 1, 1))
axes.set(xlim=(0, 100), ylim=(0, 56))
axes.axis("off")
first, total_kl = table[0], sum(r["kl"] for r in table)


def box(x, y, w, h, title, lines, colour):
    axes.add_patch(
        FancyBboxPatch(
            (x, y), w, h, boxstyle="round,pad=0.4", facecolor=colour, edgecolor="#444444", linewidth=1
        )
    )
    axes.text(x + w / 2, y + h - 1.8, title, ha="center", va="center", fontsize=9.5, weight="bold")
    axes.text(x + w / 2, y + (h - 3) / 2, "\n".join(lines), ha="center", va="center", fontsize=8.2)


def arrow(x, y, to_x, to_y):
    axes.annotate(
        "", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": "#444444", "lw": 1.2}
    )


blue, orange, plain = "#dce6f4", "#fbe3d0", "#f4f4f4"
box(2, 42, 18, 11, "title", [titles[row].strip()[:22]], plain)
box(
    27,
    42,
    22,
    11,
    "ACTOR (trained)",
    [f"writes {len(table)} tokens,", f"old log pi: first {first['old_logprob']:+.2f}"],
    blue,
)
box(
    57,
    42,
    40,
    11,
    "the review",
    [decode(tokenizer, later)[row][:46], decode(tokenizer, later)[row][46:92]],
    plain,
)
box(2, 24, 22, 11, "REFERENCE (frozen)", [f"log pi_ref: first {first['ref_logprob']:+.2f}"], orange)
box(39, 24, 22, 11, "REWARD MODEL (frozen)", [f"score {later_scores[row]:+.2f}, at EOS"], orange)
box(
    75,
    24,
    22,
    11,
    "CRITIC (trained)",
    [f"V before the first token {first['value']:+.2f}", f"before the last {table[-1]['value']:+.2f}"],
    blue,
)
box(
    14,
    7,
    34,
    10,
    "rewards",
    [
        f"-0.5 x KL of each token (sum of KL {total_kl:+.2f})",
        f"+ score on the last: total {sum(r['reward'] for r in table):+.2f}",
    ],
    plain,
)
box(
    60,
    7,
    34,
    10,
    "advantages, returns (GAE)",
    [f"first token: A {first['advantage']:+.2f}", f"return {first['return']:+.2f}"],
    plain,
)
for start in (
    (20, 47, 26, 47),
    (50, 47, 56, 47),
    (70, 41, 16, 36),
    (74, 41, 51, 36),
    (80, 41, 86, 36),
    (13, 23, 26, 18),
    (48, 23, 36, 18),
    (49, 12, 59, 12),
    (86, 23, 80, 18),
):
    arrow(*start)
axes.text(
    50,
    2.5,
    "then: minibatches, PPO's loss moves the actor, the value loss moves the critic; and the next batch of titles",
    ha="center",
    fontsize=8.5,
    color="#444444",
)
display(figure)

# %% [markdown]
# ## 2. The step, in one function
#
# The loop in `loops/ppo.py` is what follows, with batches and a log. Written out once, for one minibatch, it must make the same step as the package, bit for bit or nearly:


# %%
def one_step(actor, critic, seed=0, size=16):
    """One rollout, one pass, one minibatch. Returns the two losses."""
    generator = seed_all(seed)
    everything = reviews.rl_prompts()
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))[:size]
    ids, prompt_mask = encode_prompts(tokenizer, [everything[i] for i in order])
    rollout = sample(
        actor,
        ids,
        prompt_mask,
        eos_id=tokenizer.eos_token_id,
        config=SamplingConfig(),
        generator=generator,
    )
    mask = rollout.response_mask
    with torch.no_grad():
        scores = rollout_score(scorer, tokenizer.eos_token_id)(rollout) - 1.0 * ~rollout.finished(
            tokenizer.eos_token_id
        )
        values = response_values(critic, rollout)
        ref_logprobs = policy_logprobs(sft, rollout, temperature=0.7)
    rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, mask, kl_coef=0.5)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    advantages = masked_whiten(advantages, mask)
    logprobs = policy_logprobs(actor, rollout, temperature=0.7)
    policy_loss = aggregate(
        ppo_clip(logprobs, rollout.old_logprobs, advantages, mask), mask, how="token_mean"
    )
    value_loss = aggregate(
        value_loss_clipped(response_values(critic, rollout), values, returns, mask, clip_eps=0.5),
        mask,
        how="token_mean",
    )
    for model, loss, rate in ((actor, policy_loss, 1e-4), (critic, value_loss, 3e-4)):
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=rate / 5, betas=(0.9, 0.95), weight_decay=0.0
        )  # a fifth: the learning rate rises over the first five steps
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return policy_loss.item(), value_loss.item()


size = 4 if FAST else 16
mine, mine_critic = trainable(sft).eval(), trainable(scorer).eval()
losses = one_step(mine, mine_critic, size=size)
config = PPOConfig(steps=1, epochs=1, batch_size=size, minibatch_size=size, seed=0)
theirs, their_critic, history = train_ppo(
    trainable(sft),
    trainable(scorer),
    tokenizer,
    reviews.rl_prompts(),
    rollout_score(scorer, tokenizer.eos_token_id),
    config,
)
far = max(
    (a - b).abs().max().item()
    for a, b in zip(
        [*mine.parameters(), *mine_critic.parameters()],
        [*theirs.parameters(), *their_critic.parameters()],
        strict=True,
    )
)
# The policy loss is 0 before the first step, whatever its gradient: the ratios are 1 and whitened advantages sum to 0.
print(
    f"policy loss {losses[0]:+.6f} and {history[0]['policy_loss']:+.6f}, value loss {losses[1]:.4f} and {history[0]['value_loss']:.4f}; weights differ by at most {far:.1e}"
)
assert math.isclose(losses[0], history[0]["policy_loss"], abs_tol=1e-5) and math.isclose(
    losses[1], history[0]["value_loss"], rel_tol=1e-4
)
assert far < 4e-6  # no step at all would differ by 6e-5, the critic's learning rate here

# %% [markdown]
# ## 3. Where the critic comes from
#
# The critic can begin as a copy of the reward model, backbone *and* head; with the backbone and a new head; or as the SFT model with a new head. Six rollouts with the actor frozen (*warm-up*), $\lambda = 1$, and the share of the returns' variance that it explains:

# %%


def new_head(backbone):
    """The same new head on either backbone: its draw alone moves the first points by whole units."""
    torch.manual_seed(1)
    return ScalarModel(backbone)


starts = {
    "reward model, with its head": trainable(scorer),
    "its backbone, a new head": new_head(trainable(scorer).backbone),
    "the SFT model, a new head": new_head(trainable(sft).base_model),
}
a_while = {"steps": 1, "epochs": 1, "batch_size": 8, "minibatch_size": 8} if FAST else {"steps": 6, "epochs": 2}
warm = {}
for name, start in starts.items():
    config = PPOConfig(**a_while, critic_warmup=6, lam=1.0, seed=0)
    warm[name] = train_ppo(
        trainable(sft),
        start,
        tokenizer,
        reviews.rl_prompts(),
        rollout_score(scorer, tokenizer.eos_token_id),
        config,
    )[2]
figure = Figure(figsize=(6.4, 3), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, rows), colour, style in zip(warm.items(), COLOURS, ("-", "--", ":"), strict=False):
    axes.plot(
        [row["explained_variance"] for row in rows],
        style,
        marker="o",
        markersize=4,
        color=colour,
        label=name,
    )
axes.axhline(0, color="#888888", linewidth=0.8)
axes.set(xlabel="rollout of 64 reviews", ylabel="explained variance")
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)
ends = {name: rows[-1]["explained_variance"] for name, rows in warm.items()}
print({name: round(x, 2) for name, x in ends.items()})

# %% [markdown]
# Read it for what it is: one seed and few rollouts; another draw of the new head begins elsewhere. The first point says how well each start *guesses* before any training of V. The copy of the reward model begins below zero, worse than a constant: its head was trained at EOS only, and V asks it in mid-text. After one rollout it explains something, and so does its backbone with a new head:
# what matters here is the backbone, which has learned what makes a review good. The SFT model has not, and lags.

# %%
if not FAST:  # FAST makes one rollout
    claim(
        "After six rollouts a critic that begins with the reward model's backbone, with or without its head, explains more than one that begins as the SFT model.",
        min(list(ends.values())[:2]) > ends["the SFT model, a new head"] + 0.2,
        evidence=", ".join(f"{name} {x:+.2f}" for name, x in ends.items()),
    )
assert warm["reward model, with its head"][0]["explained_variance"] < 0

# %% [markdown]
# A warm-up (`critic_warmup` steps in which the actor stands still) costs rollouts. This package's default is 0: with the reward model's weights the critic catches up within a step or two, and whitened advantages are of the right size meanwhile.
#
# ## 4. Did it get better?
#
# The reward model is no judge: it is what was maximised. Nor is one sample of one film. What this course does (and `evaluate.py` in one place for all methods): the same held-out titles for every method, several samples each, a judge that no training saw, **paired** by title, an interval over titles, and KL, length and variety beside the score.
#
# Why paired? If some titles are easier to praise than others, for every method, the difference title by title takes that away. Here it gains almost nothing, and that is worth knowing too: how high a title's reviews score under one method says little of how high they score under another.

# %%
recorded = load_results("tour")


def by_title(method, seed=0):
    return next(row for row in recorded if row["method"] == method and row["seed"] == seed)[
        "gold_by_prompt"
    ]


one, other = (torch.tensor(by_title(m)) for m in ("PPO", "best-of-4"))
difference, low, high = paired_difference(by_title("PPO"), by_title("best-of-4"))
resampled = torch.randint(len(one), (2, 2000, len(one)), generator=torch.Generator().manual_seed(0))
unpaired = one[resampled[0]].mean(1) - other[resampled[1]].mean(1)
wide = (unpaired.quantile(0.975) - unpaired.quantile(0.025)).item()
print(
    f"PPO - best-of-4, seed 0: {difference:+.2f}, paired interval [{low:+.2f}, {high:+.2f}], {high - low:.2f} wide; unpaired {wide:.2f} wide"
)
for rival in ("best-of-4", "best-of-16"):
    for seed in range(3):
        d, *edges = paired_difference(by_title("PPO", seed), by_title(rival, seed))
        mine, theirs = (next(r for r in recorded if (r["method"], r["seed"]) == (m, seed)) for m in ("PPO", rival))
        print(f"PPO - {rival}, seed {seed}: {d:+.2f} [{edges[0]:+.2f}, {edges[1]:+.2f}]; KL {mine['kl']:.2f} against {theirs['kl']:.2f}, tokens {mine['length']:.0f} against {theirs['length']:.0f}, distinct-2 {mine['distinct_2']:.2f} against {theirs['distinct_2']:.2f}")
        assert d > 0 if rival == "best-of-4" else d < 0
alike = torch.corrcoef(torch.stack([one, other]))[0, 1].item()
print(f"correlation of the two over titles: {alike:.2f}")
assert high - low < wide and abs(alike) < 0.2

# %% [markdown]
# The verdict, with its price: more gold than the best of four, at more KL; less than the best of sixteen, which goes about as far (and pays at every answer, in sixteen samples). One number alone would have said "better".
#
# And seeds: an interval over titles says how the *same trained policy* would do on other titles. Training again (here SFT and reward model as well) gives another policy:

# %%
for method in ("PPO", "DPO", "GRPO"):
    gold = [row["gold"] for row in recorded if row["method"] == method]
    row = next(r for r in recorded if r["method"] == method and r["seed"] == 0)
    print(
        f"{method:>5}: gold by seed {[round(g, 2) for g in gold]}; interval over titles, seed 0: [{row['gold_low']:.2f}, {row['gold_high']:.2f}]; KL {row['kl']:.1f}, {row['length']:.0f} tokens, unfinished {row['missing_eos']:.0%}"
    )

# %% [markdown]
# ## 5. Read the log
#
# Eight runs of PPO, recorded with `minirlhf grid atlas --seeds 1`. One is healthy. Seven have something wrong: a setting, or a planted bug. Every row below is one run, A to H; each column has one scale for all; where a curve leaves its frame, the table below has the numbers.
#
# | what can be wrong | |
# |---|---|
# | `hacked` | no leash: the policy found what the reward model likes and people do not |
# | `collapsed` | steps far too large |
# | `dead critic` | V is 0, whatever it is shown |
# | `KL sign wrong` | drifting from the reference is paid instead of charged |
# | `reward scale wrong` | scores not normalised: twenty times too large for the KL's price and the value clip |
# | `EOS never trained` | the start is an SFT model whose loss masked EOS |
# | `whitening at the optimum` | every text has the same score; there is nothing to learn |
#
# **Write down a diagnosis for each** before you open the answers (exercise 4).

# %%
logs = atlas.runs()
shown = {
    "score": (-1, 5),
    "gold": (-1, 3.6),
    "kl": (-2, 100),
    "entropy": (0, 4),
    "length": (0, 33),
    "clip_fraction": (0, 0.45),
    "explained_variance": (-1, 1),
}
drawn = {letter: logs[letter] for letter in ("AB" if FAST else logs)}  # drawing all eight takes a while
figure = Figure(figsize=(13, 11.5), dpi=100, layout="constrained")
grid = figure.subplots(len(drawn), len(shown), sharex=True)
for (letter, rows), line in zip(drawn.items(), grid, strict=True):
    for (key, limits), axes in zip(shown.items(), line, strict=True):
        axes.plot([row[key] for row in rows], color=COLOURS[0], linewidth=1.8)
        axes.axhline(0, color="#888888", linewidth=0.6)
        axes.set_ylim(limits)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
        if letter == "A":
            axes.set_title(key, fontsize=9)
    line[0].set_ylabel(letter, rotation=0, fontsize=13, weight="bold", labelpad=14)
display(figure)

# %%
print(f"{'':>3} {'score':>14} {'value loss':>16} {'KL':>14} {'cut texts':>14}   first -> last")
for letter, rows in logs.items():
    cells = [
        f"{rows[0][key]:8.2f} -> {rows[-1][key]:6.2f}"
        for key in ("score", "value_loss", "kl", "missing_eos")
    ]
    print(f"{letter:>3} " + " ".join(f"{c:>18}" for c in cells))
golds = sorted(rows[-1]["gold"] for rows in logs.values())
assert golds[4] < 1.5 and golds[5] > 2.5

# %% [markdown]
# Look at gold once more when you have made up your mind. Three of the eight end with gold above 2.5, all others below 1.5; the healthy run is among the others, and none of the three wrote anything that you would like to read (their samples are in `data/results/atlas.jsonl`). Gold learned from what people write, and knows as little as the reward model what to make of texts that nobody writes.
# A judge that was not paid is harder to fool, not impossible. KL, length, entropy and cut texts cost nothing and cannot be flattered.
#
# ## What the libraries do
#
# | matter | decision here | elsewhere |
# |---|---|---|
# | four models in memory | four copies of a small model | adapters share one trunk, the reference is the adapter switched off (lesson 10); OpenRLHF and verl put the four on different devices |
# | the critic begins as | the reward model, backbone and head | TRL: a model you name; OpenRLHF: the same, or the reward model where none is named; DeepSpeed-Chat: the reward model |
# | where the score lands | on EOS, the last real token | TRL: one position later; OpenRLHF: the last action token |
# | a text that is cut | is treated as finished, less `missing_eos_penalty` | the same in all; TRL has the penalty as an option, GRPO trainers can mask the row |
# | critic warm-up | an option, 0 by default | verl: an option; TRL: none |
# | the log's KL | sum over a text, in nats, and a mean a token beside it | TRL logs the sum; OpenRLHF a mean a token: compare before you compare |
#
# ## Exercises
#
# **1. What the critic explains** *(easy, 10 minutes)*. From values, returns and the mask, (B, R) each, return one number: $1 - \mathrm{Var}(\text{returns} - V) / \mathrm{Var}(\text{returns})$ over the real tokens. Padding may hold NaN.
#
# *Hint:* pick the real tokens first. A constant error of V is not in this number, though below $\lambda = 1$ it costs (lesson 05, section 4).


# %%
def explained_variance(values, returns, mask): ...  # your code


print(check.explained_variance(explained_variance))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def explained_variance(values, returns, mask):
#     values, returns = values[mask], returns[mask]
#     return 1 - (returns - values).var() / returns.var()
# ```
# A variance does not see a constant. Only at $\lambda = 1$ would a constant error of V shift all advantages alike, so that whitening takes it off; below, V is 0 after the end, and the last tokens pay.
# </details>
#
# **2. Four models, one number a token** *(medium, 15 minutes)*. From the reward model's `scores` (B,), the actor's `old_logprobs`, the reference's `ref_logprobs` and the critic's `values`, (B, R) each with NaN in the padding, `mask` and `kl_coef`: return what PPO's loss is given, the whitened advantages. $\gamma = 1$, $\lambda = 0.95$, 0 where masked. Whitened: mean 0 and variance 1 over the real tokens of the batch, the variance divided by their number.
#
# *Hint:* you have written the parts: `kl_shaped_rewards` (07), `gae_advantages` (05), the whitening over real tokens in `critic_targets` (05).


# %%
def four_models(scores, old_logprobs, ref_logprobs, values, mask, kl_coef): ...  # your code


print(check.four_models(four_models))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def four_models(scores, old_logprobs, ref_logprobs, values, mask, kl_coef):
#     rewards = -kl_coef * torch.where(mask, old_logprobs - ref_logprobs, 0.0)
#     rewards = rewards.scatter_add(1, mask.sum(1, keepdim=True) - 1, scores[:, None])
#     values, ahead = torch.where(mask, values, 0.0), 0.0
#     advantages = torch.zeros_like(rewards)
#     for t in reversed(range(rewards.shape[1])):
#         following = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
#         ahead = torch.where(mask[:, t], rewards[:, t] + following - values[:, t] + 0.95 * ahead, 0.0)
#         advantages[:, t] = ahead
#     real = advantages[mask]
#     return torch.where(mask, (advantages - real.mean()) / real.std(unbiased=False), 0.0)
# ```
# </details>
#
# **3. An honest difference** *(easy, 10 minutes)*. Two methods' gold scores on the same films, (N,) each: return a tensor of two numbers, the mean difference (ours minus theirs) and its standard error.
#
# *Hint:* section 4. One film is one observation; N is small.


# %%
def paired_standard_error(ours, theirs): ...  # your code


print(check.paired_standard_error(paired_standard_error))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def paired_standard_error(ours, theirs):
#     difference = ours - theirs
#     return torch.stack([difference.mean(), difference.std() / len(difference) ** 0.5])
# ```
# </details>
#
# **4. Read the log** *(medium, 20 minutes)*. Give the eight runs of section 5 their names. What is wrong is answered with a clue.

# %%
diagnoses = {}  # yours, such as {"A": "hacked", "B": "healthy"}
print(atlas.diagnosed(diagnoses))

# %% [markdown]
# <details><summary>How to tell them apart</summary>
#
# Begin with what one column alone decides: a score that never moves; a score counted in tens; an explained variance of exactly 0; a first rollout of which three quarters are cut. Four are named. Of the others, one has a KL that never slows while nearly every text is cut and the value loss explodes: who would pay for that? One changed within a step or two, with a third of its tokens clipped, and then writes five tokens.
# One rises in score and KL to the end while gold has its peak behind it. The last one is healthy.
# </details>
#
# **5. Find the bug** *(medium, 15 minutes)*. A colleague puts the score where the text ends, with padding = EOS as always with GPT-2:
#
# ```python
# def score_rewards(scores, response_ids, eos_id):
#     mask = response_ids != eos_id
#     last = (mask.sum(1) - 1).clamp(min=0)
#     return torch.zeros(response_ids.shape).scatter(1, last[:, None], scores[:, None])
# ```
#
# Nothing fails. The same mask stood in the loss of their SFT. Their PPO run beside a sound one (two of the eight above, by name now):

# %%
recorded_logs = load_results("atlas_history")
figure = Figure(figsize=(9, 2.6), dpi=110, layout="constrained")
for axes, key in zip(figure.subplots(1, 3), ("length", "missing_eos", "gold"), strict=True):
    for name, colour, style in zip(
        ("healthy", "EOS never trained"), COLOURS, ("-", "--"), strict=False
    ):
        axes.plot(
            [row[key] for row in recorded_logs if row["variant"] == name],
            style,
            color=colour,
            label=name,
        )
    axes.set(title=key, xlabel="step")
    axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False)
display(figure)
cut = [row["missing_eos"] for row in recorded_logs if row["variant"] == "EOS never trained"]
assert abs(cut[0] - 0.75) < 0.05 and cut[-1] < 0.2

# %% [markdown]
# The first rollout tells it: three quarters of the texts are cut at the 32nd token. PPO, whose own mask is right in that run, then teaches the model to stop, since a cut text is fined and scores badly; in the end the log looks sound, and a week later nobody knows that the SFT model cannot stop.
# With the wrong mask in PPO as well nothing would ever teach it. (From an SFT model that *can* stop, eight steps of PPO with the wrong mask looked like any others, in a run of ours that is not recorded. A curve does not always tell; a check does.) Read the function, say what happens to the score of a text that ends, and mend it.


# %%
def score_rewards(scores, response_ids, eos_id):
    mask = response_ids != eos_id
    last = (mask.sum(1) - 1).clamp(min=0)
    return torch.zeros(response_ids.shape).scatter(1, last[:, None], scores[:, None])


print(check.score_rewards(score_rewards))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def score_rewards(scores, response_ids, eos_id):
#     ended = response_ids == eos_id
#     last = torch.where(ended.any(1), ended.int().argmax(1), response_ids.shape[1] - 1)
#     return torch.zeros(response_ids.shape).scatter(1, last[:, None], scores[:, None])
# ```
# The first EOS counts, later ones are padding; a text that was cut has its score on its last token.
# </details>
#
# **6. Design the experiment** *(hard, 20 minutes)*. A colleague says that the critic should be larger than the actor. What would you run, what would you hold fixed, what would you report, and what would convince you that it made no difference?
#
# <details><summary>What a good answer has</summary>
#
# The same actor, prompts, rollouts and seeds (three or more); critics of two or three sizes, each warmed up on the same rollouts until its explained variance stands still, and a row without warm-up; explained variance *and* gold at equal KL on held-out titles, paired; time. Without a difference: an interval of the paired difference that is narrow and contains 0,
# not merely one that contains 0. And a right critic as the upper end, where one can have it: the exact world's (lesson 05), where V is known.
# </details>
#
# **7. Your own RLHF** *(an hour)*. Put your `kl_shaped_rewards`, `gae_advantages`, `ppo_loss` and `bradley_terry_loss` into a file, with `import torch` on top, and run
#
# ```
# minirlhf tour --mine my_rlhf.py
# ```
#
# Each is checked first; then the tour trains a reward model and PPO with your functions in the place of the package's, and says which are yours. (`group_advantages` and `dpo_loss` come in lessons 11 and 12; until then the package's are used.) Your report is in `out/tour/mine/report.html`. Run the same without `--mine` and compare the two `ppo.jsonl`, in `out/tour/mine/` and `out/tour/`. Are the numbers the same? Should they be?
#
# <details><summary>Answer</summary>
#
# Yes but for rounding, at first: a sum taken in another order differs in its last digit, sampling carries it on, and after some steps the texts are others. So the first steps agree to many digits and the ends differ as two seeds do.
# </details>
#
# ## Questions
#
# <details><summary>1. Which of the four models could be thrown away with kl_coef = 0, and at what price?</summary>
# The reference: nothing asks it any more. The price is that nothing holds the policy (lesson 07, section 8).
# </details>
# <details><summary>2. Reward model and critic have the same shape and make one pass over a text each. Why does one give one number and the other many?</summary>
# Of the reward model's numbers one is read, at EOS, where it was trained; of the critic's all, because each token's advantage needs the value before it.
# </details>
# <details><summary>3. Why are the four forward passes of a rollout made without gradient, though two of the models are trained?</summary>
# They make the data of the update: rewards, old log-probabilities, advantages and returns are constants in it. The gradient flows only through the passes that come after, over the minibatches (in section 2: `logprobs`, and the critic's second pass).
# </details>
# <details><summary>4. The explained variance is 0.9. Is the run healthy?</summary>
# The critic is. When all texts of a title have become the same one, their reward is easy to foresee.
# </details>
# <details><summary>5. Seed 0 says +0.30 [0.20, 0.40] over films. What may you conclude about PPO, the method?</summary>
# That *this* policy is better on titles like these. Another seed is another policy: train several.
# </details>
#
# ## The twelve questions again
#
# You answered them in lesson 00. Now with reasons:

# %%
Questions()

# %%
my_answers = "- - - - - -  - - - - - -"  # yours
print(graded(my_answers, explain=True))

# %% [markdown]
# **References.** Ziegler et al. 2019, sections 2.1 and 2.2 (reward model, KL, the critic's start). Stiennon et al. 2020, section 3.4 and appendix G.1 (a separate value model that begins as the reward model). Ouyang et al. 2022, section 3.5 and appendix C.4. Huang et al. 2024, *The N+ implementation details of RLHF with PPO* (logs, EOS, where the score lands).
# Zheng et al. 2023, *Secrets of RLHF in large language models, part I*, sections 4 and 5 (which curves tell a run's health).
