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
# # 14 · What DPO gets wrong, and repairs
#
# **The question.** DPO's loss is satisfied by a *difference*, its theorem wants shares of a whole population, and its pairs were written by somebody else. What goes wrong, which of a dozen repairs mends what, and what do they buy on the same film reviews?
#
# **You need** lesson 12 (DPO, its four conditions). 40 minutes to read, 85 for the exercises.
#
# **Predict.** Write down a number or a yes before you read on.
#
# | | your prediction |
# |---|---|
# | Only one pair, *yes* above *no*, trained for ever. Can *yes* become less likely? | |
# | Everybody prefers A to B. Where does DPO's optimum lie, and where IPO's? | |
# | As many labels by the same judge: on texts of people or on the policy's own. With which does the policy go farther? | |
# | Thirteen losses, at settings near those of their papers or libraries: is DPO among the best three by gold? | |

# %%
# %matplotlib inline
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim, load_results
from minirlhf.core.bradley_terry import preference_probability
from minirlhf.core.exact import World
from minirlhf.core.preference import (
    cdpo,
    cpo,
    dpo,
    dpop,
    hinge,
    ipo,
    kto,
    nca,
    orpo,
    robust_dpo,
    simpo,
)
from minirlhf.core.rejection import rejection_sample
from minirlhf.evaluate import bootstrap, paired_difference
from minirlhf.experiments.registry import BEST
from minirlhf.loops.preference import LOSSES
from minirlhf.models.load import load_policy
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.tasks import reviews

set_threads()

# %% [markdown]
# ## 1. Likelihood displacement
#
# The loss has $h = \log \frac{\pi(y_c)}{\pi_{ref}(y_c)} - \log \frac{\pi(y_r)}{\pi_{ref}(y_r)}$ in it and nothing else. If both terms fall, and the second falls faster, the loss falls. Why should they? That is called *likelihood displacement*. With **one pair** and a *table* (a logit $z_k$ for each text) the chosen one cannot fall: gradient descent moves the logits by $v_c = +1$, $v_r = -1$ and no other, times the pull on $h$; and since $d \log \pi_k = dz_k - \sum_j \pi_j\, dz_j$,
#
# $$ d \log \pi(y_c) \propto 1 - \big( \pi(y_c) - \pi(y_r) \big) > 0 . $$
#
# With many pairs it can, even here: a text that wins once is crowded out by one that wins often. And a network is no table: its logits are $e_k \cdot \theta$, the same $\theta$ for all words, and each word's own direction $e_k$.
#
# **By hand.** The smallest network there is: three answers with the numbers $e$ = 1 (*yes*), -1 (*no*), 4 (*sure*), one weight $\theta$, logits $e_k \theta$, so $\log \pi(k) = e_k \theta - \log \sum_j e^{e_j \theta}$. One pair: *yes* above *no*. Then $h = 2\theta$, and DPO makes $\theta$ grow for ever. But
#
# $$ \frac{d \log \pi(yes)}{d\theta} = e_{yes} - \sum_k \pi(k)\, e_k = 1 - \tfrac43 = -\tfrac13 \quad \text{at } \theta = 0 . $$
#
# *Yes* falls from the first step on. *No* falls faster ($-1 - \frac43 = -\frac73$), so the loss is content. The mass goes to *sure*, about which nobody was asked: it lies farther in the direction that leads from *no* to *yes*.

# %%
words, e = ("yes", "no", "sure"), torch.tensor([1.0, -1.0, 4.0]).double()
theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
slopes = [torch.autograd.grad((e * theta).log_softmax(0)[k], theta)[0].item() for k in range(3)]
print("d log pi / d theta at the start:", {w: round(s, 3) for w, s in zip(words, slopes, strict=True)})
assert torch.allclose(torch.tensor(slopes, dtype=torch.float64), e - 4 / 3)
assert slopes[0] < 0 and math.isclose(slopes[0] - slopes[1], 2)

# %% [markdown]
# Now the same pair under other losses. Each is followed down its own gradient from $\theta = 0$, where the policy is the reference; what has become of *yes*?


# %%
def walk(loss, steps=200 if FAST else 4000, rate=0.01):
    """(steps, 3) log pi along gradient descent on loss(chosen, rejected, ref_chosen, ref_rejected), each (1,)."""
    theta, path = torch.zeros(1, dtype=torch.float64, requires_grad=True), []
    for _ in range(steps):
        p = (e * theta).log_softmax(0)
        path.append(p.detach())
        (slope,) = torch.autograd.grad(loss(p[:1], p[1:2], *(2 * [torch.full((1,), -math.log(3)).double()])).sum(), theta)
        theta = (theta - rate * slope).detach().requires_grad_(True)
    return torch.stack(path)


def thumbs(c, r, rc, rr):
    """KTO: a thumb up for the chosen, one down for the rejected; z, which would follow the KL, is held at 0."""
    up, zero = torch.tensor([True, False]), torch.zeros((), dtype=torch.float64)
    return kto(torch.cat([c, r]), torch.cat([rc, rr]), up, zero, beta=1.0)


one_pair = {
    "DPO": lambda *x: dpo(*x, beta=1.0),
    "IPO": lambda *x: ipo(*x, beta=1.0),
    "DPOP, penalty 5": lambda *x: dpop(*x, beta=1.0, penalty=5.0),
    "NCA": lambda *x: nca(*x, beta=1.0),
    "KTO": thumbs,
    "CPO (imitates the chosen)": lambda c, r, rc, rr: cpo(c, r, beta=1.0),
}
walks = {name: walk(loss) for name, loss in one_pair.items()}
figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
styles = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
for axes, k in zip(figure.subplots(1, 3), range(3), strict=True):
    for (name, path), colour, style in zip(walks.items(), COLOURS, styles, strict=False):
        axes.plot(path[:, k].exp(), color=colour, linestyle=style, label=name)
    axes.axhline(1 / 3, color="#888888", linewidth=0.8)
    axes.set(xlabel="step", title=f"π({words[k]})", ylim=(0, 1.02), xlim=(0, 1000))
    axes.grid(alpha=0.3)
figure.axes[0].legend(fontsize=7, frameon=False)
display(figure)
end = {name: path[-1].exp() for name, path in walks.items()}
print(f"after {len(walks['DPO']):,} steps:")
for name, p in end.items():
    print(f"{name:<26} yes {p[0]:.3f}, no {p[1]:.3f}, sure {p[2]:.3f}; h = {walks[name][-1, 0] - walks[name][-1, 1]:+.2f}")
assert (walks["DPO"][1:, 0] < walks["DPO"][:-1, 0]).all() and (FAST or end["DPO"][2] > 0.99)
assert end["DPOP, penalty 5"][0] > 0.32 and abs(end["IPO"][0] / end["IPO"][1] - math.exp(0.5)) < 1e-3
assert end["CPO (imitates the chosen)"][0] > end["DPO"][0]
assert all(1 / 3 > p[0] and p[2] > 1 / 3 for p in end.values())
mild = walk(lambda c, r, rc, rr: cpo(c, r, beta=0.1))[-1].exp()
print(f"CPO at beta 0.1            yes {mild[0]:.3f}, no {mild[1]:.3f}, sure {mild[2]:.3f}")
assert mild[1] > mild[0] > 1 / 3

# %% [markdown]
# Read the pictures. *Sure* gains under **all six**, and *yes* falls under all six: whoever raises *yes* above *no* must move $\theta$ to the right. What differs is where they stop. IPO stops at its target, $h = 1/2$. DPOP hardly begins: it keeps *yes* by not learning (its $h$ ends at 0.03). NCA, CPO and KTO find a balance. Only DPO goes to the end. And where imitation weighs more than the comparison, as in CPO at $\beta = 0.1$ (the last line), *yes* rises, and *no* rises more: the
# likeliest way to say *yes* is to say both.

# %% [markdown]
# ## 2. Push up, push down: all losses on one page
#
# Every loss of the family is a recipe for two numbers: how hard the chosen response is pushed up, how hard the rejected one down. Left, each loss over the margin $h$, half of it won by the chosen and half lost by the rejected; right, minus its slope, the pull on $h$. All curves are drawn by the functions of `core/preference.py` at the settings below; at $h = 0$ each is set to 0, so that shapes can be compared; KTO's $z$ is held at 0. With $c$, $r$ the two log-ratios, $h = c - r$, $\ell = -\log \sigma$, $m$ a mean of $\log \pi$ over tokens:
#
# | name | loss of a pair | settings | one pair, for ever, $c$ and $r$ free of each other (in section 1 one $\theta$ moves both): where does it stop? |
# |---|---|---|---|
# | `dpo` | $\ell(\beta h)$ | $\beta$ 0.1 | nowhere |
# | `cdpo` | $(1 - \epsilon)\, \ell(\beta h) + \epsilon\, \ell(-\beta h)$ | $\epsilon$ 0.2 | $\beta h = \log \frac{1 - \epsilon}{\epsilon}$: $\sigma(\beta h) = 1 - \epsilon$ |
# | `robust` | $[(1 - \epsilon)\, \ell(\beta h) - \epsilon\, \ell(-\beta h)] / (1 - 2 \epsilon)$ | $\epsilon$ 0.2 | nowhere; it has no lower bound |
# | `hinge` | $\max(0, 1 - \beta h)$ | $\beta$ 0.1 | $h = 1/\beta$ |
# | `ipo`, `ipo-mean` | $(h - \frac{1}{2\beta})^2$, of sums or of means over tokens | $\beta$ 0.1; 1 | $h = 1/(2\beta)$ |
# | `dpop` | $\ell(\beta [h - \lambda \max(0, -c)])$ | $\lambda$ 5 | nowhere, while $c \ge 0$ |
# | `nca` | $\ell(\beta c) + \frac12 \ell(-\beta c) + \frac12 \ell(-\beta r)$ | $\beta$ 0.1 | the chosen at $\beta c = \log 2$, the rejected nowhere |
# | `kto` | $\sigma(-\beta [c - z]) + \sigma(\beta [r - z])$, $z$ the KL to the reference, estimated on mismatched pairs and held fixed | $\beta$ 0.1 | nowhere, but it loses interest |
# | `tdpo` | $\ell(\beta [h - \alpha (D_r - D_c)])$, $D_c$, $D_r$ the KL at the places of either text, summed (lesson 13) | $\alpha$ 0.5 | nowhere |
# | `cpo` | $\ell(\beta [\log \pi(y_c) - \log \pi(y_r)]) - \log \pi(y_c)$ | $\beta$ 0.1 | at $\pi(y_c) = 1$ |
# | `simpo` | $\ell(\beta [m_c - m_r] - \gamma)$ | $\beta$ 2, $\gamma$ 1 | nowhere |
# | `orpo` | $-m_c + \beta\, \ell(\mathrm{logit}\, e^{m_c} - \mathrm{logit}\, e^{m_r})$ | $\beta$ 0.1 | at $\pi(y_c) = 1$ |

# %%
reference = torch.tensor(-20.0).double()  # both texts' log pi_ref, 20 tokens each


def of_margin(name):
    """loss(h) (N,) where log pi/pi_ref is h/2 of the chosen, -h/2 of the rejected response."""
    settings = LOSSES[name].settings

    def loss(h):
        refs = reference.expand(h.shape)
        c, r = refs + h / 2, refs - h / 2
        n, zero = torch.full(h.shape, 20), torch.zeros((), dtype=torch.float64)
        if name == "kto":
            up = torch.ones(h.shape, dtype=torch.bool)
            return kto(c, refs, up, zero, **settings) + kto(r, refs, ~up, zero, **settings)
        if name in ("simpo", "orpo"):
            return {"simpo": simpo, "orpo": orpo}[name](c / 20, r / 20, **settings)
        if name == "cpo":
            return cpo(c, r, **settings)
        if name == "ipo-mean":
            return ipo(c, r, refs, refs, chosen_lengths=n, rejected_lengths=n, **settings)
        function = {"dpo": dpo, "cdpo": cdpo, "robust": robust_dpo, "ipo": ipo, "hinge": hinge, "dpop": dpop, "nca": nca}[name]
        return function(c, r, refs, refs, **settings)

    return loss


h = torch.linspace(-25, 25, 201, dtype=torch.float64).requires_grad_(True)
families = {
    "one likelihood": ("dpo", "cdpo", "robust", "hinge"),
    "a target, an anchor, a bound": ("ipo", "dpop", "nca", "kto"),
    "no reference, or means": ("cpo", "simpo", "orpo", "ipo-mean"),
}
figure = Figure(figsize=(9, 8), dpi=110, layout="constrained")
grid = figure.subplots(3, 2)
pull = {}
for (left, right), (family, names) in zip(grid, families.items(), strict=True):
    for name, colour, style in zip(names, COLOURS, ("-", "--", "-.", ":"), strict=False):
        loss = of_margin(name)(h)
        (slope,) = torch.autograd.grad(loss.sum(), h)
        pull[name] = -slope
        scale = 100.0 if name == "ipo" else 1.0  # nats squared: on a scale of its own
        label = name + (" / 100" if name == "ipo" else "")
        left.plot(h.detach(), (loss - loss[100]).detach() / scale, color=colour, linestyle=style, label=label)
        right.plot(h.detach(), pull[name] / scale, color=colour, linestyle=style, label=label)
    left.set(ylabel=f"{family}\nloss - loss at 0", ylim=(-1.5, 3))
    right.set(ylabel="pull on h", ylim=(-0.06, 0.28))
    for axes in (left, right):
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8, frameon=False)
grid[2][1].text(-24, 0.25, "cpo: 1 and more for the chosen alone", fontsize=8, color=COLOURS[0])
for axes in grid[-1]:
    axes.set_xlabel("h, nats")
display(figure)
assert pull["dpo"][100] == 0.05 and (pull["hinge"][h > 10] == 0).all()  # beta / 2; content at beta h = 1
assert (pull["ipo"][h > 5] < 0).all()  # beyond 1 / (2 beta) = 5 it pulls back
assert (pull["cdpo"][h > 10 * math.log(4) + 0.3] < 0).all()  # so does cDPO, beyond log(.8 / .2) / beta
assert pull["kto"][0] < pull["dpo"][0] / 5 and pull["kto"].argmax() == 100  # it gives up on the far wrong side
assert (pull["robust"] > pull["dpo"]).all()

# %% [markdown]
# How to read it. *One likelihood*: DPO's pull never ends, it is $\beta/2$ at 0 and tends to $\beta$ where a pair is very wrong; cDPO turns round at $\log \frac{1-\epsilon}{\epsilon} / \beta$; the robust one pulls harder, to make up for labels that lie, and never less than $\epsilon \beta / (1 - 2\epsilon)$; hinge pulls at full strength and stops. *A target, an anchor, a bound*: IPO (the target) is a spring, hardest where a pair is most wrong; DPOP and NCA (anchors) hold the chosen text to the reference; KTO (bounded) has the slope of a sigmoid, so it gives up a pair that is far on the wrong side, be it noise or simply hard. *Without a reference*: `cpo` is mostly imitation,
# `simpo`, `orpo` and `ipo-mean` count a token's mean, so a nat of $h$ is a twentieth of one here. (`tdpo` is DPO plus a KL of the places, which has no place on this axis.)
#
# $h$ does not show it all. Hold $h$ at 0 and let *both* log-probabilities fall, as in section 1: DPO does not notice. The two halves, as functions of the chosen response's log-ratio, with the rejected one's equal to it:

# %%
both = torch.linspace(-15, 15, 121, dtype=torch.float64)


def halves(name):
    """(push up on the chosen, push down on the rejected) where both log-ratios are `both`."""
    c, r = ((reference + both).requires_grad_(True) for _ in range(2))
    refs, zero = reference.expand(both.shape), torch.zeros((), dtype=torch.float64)
    settings = LOSSES[name].settings
    if name == "kto":
        up = torch.ones(both.shape, dtype=torch.bool)
        loss = kto(c, refs, up, zero, **settings) + kto(r, refs, ~up, zero, **settings)
    elif name == "cpo":
        loss = cpo(c, r, **settings)
    else:
        loss = {"dpo": dpo, "dpop": dpop, "nca": nca}[name](c, r, refs, refs, **settings)
    up, down = torch.autograd.grad(loss.sum(), (c, r))
    return -up, down


figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
for axes, side, title in zip(figure.subplots(1, 2), (0, 1), ("push up on the chosen", "push down on the rejected"), strict=True):
    for name, colour, style in zip(("dpo", "dpop", "nca", "kto"), COLOURS, ("-", "--", "-.", ":"), strict=False):
        axes.plot(both, halves(name)[side], color=colour, linestyle=style, label=name)
    axes.set(xlabel="log π/π_ref of both, nats", title=title, ylim=(-0.03, 0.13))
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.grid(alpha=0.3)
figure.axes[0].text(-14.5, 0.12, "dpop: 0.3 to 0.6", fontsize=8, color=COLOURS[1])
axes.legend(fontsize=8, frameon=False)
display(figure)
up, down = halves("dpo")
assert torch.allclose(up, torch.full_like(up, 0.05)) and torch.equal(up, down)
turn = math.log(2) / LOSSES["nca"].settings["beta"]
print(f"nca pushes the chosen down where its log-ratio is above {turn:.1f} nats")
assert torch.equal(halves("nca")[0] < 0, both > turn)
assert (halves("dpop")[0][both < 0] > 6 * up[both < 0]).all()  # 1 + penalty times as hard, and the margin is taken away
assert (halves("nca")[0][both < -10] > 4 * halves("nca")[1][both < -10]).all() and (halves("cpo")[0] > 1).all()

# %% [markdown]
# DPO's two halves are flat and equal: nothing calls the pair back. DPOP pushes the chosen up more than six times as hard once it is below the reference (and, its margin being taken away, the rejected down up to twice as hard). NCA fits *absolute* rewards: a chosen text that fell far is pushed up harder than its partner down, one that rose beyond $\log 2 / \beta = 6.9$ nats is pushed down. KTO looks at one response at a time, and fades
# on both sides: it does not call a fallen text back either. CPO (not drawn: its push is above 1) imitates the chosen text.
#
# ## 3. Labels that are too sure, labels that lie
#
# Lesson 12's world, 15 texts. A judge that always says the same (a rule, a reward model, a majority) gives **hard labels**. How far does each loss walk as it is trained longer?

# %%
world, beta = World.random(3, 3, seed=0), 0.5
i, j = torch.triu_indices(15, 15, 1)
truth = preference_probability(world.rewards[i], world.rewards[j])
hard = (truth > 0.5).double()
ref = world.sequence_logprobs(world.ref_logits)


def trained(loss, share, iterations):
    """The policy after so many LBFGS iterations on the mean loss over all pairs, of which `share` says that i is better."""
    logits = world.ref_logits.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=iterations, history_size=50, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        p = world.sequence_logprobs(logits)
        (total := (share * loss(p[i], p[j], ref[i], ref[j]) + (1 - share) * loss(p[j], p[i], ref[j], ref[i])).mean()).backward()
        return total

    optimizer.step(closure)
    return world.probs(logits.detach())


losses = {
    "DPO": lambda *x: dpo(*x, beta=beta),
    "cDPO, 0.2": lambda *x: cdpo(*x, beta=beta, label_smoothing=0.2),
    "IPO": lambda *x: ipo(*x, beta=beta),
    "hinge": lambda *x: hinge(*x, beta=beta),
    "NCA": lambda *x: nca(*x, beta=beta),
}
best, worst, counts = world.rewards.argmax(), world.rewards.argmin(), (3, 10, 30) if FAST else (3, 10, 30, 100, 1000)
table = {name: [trained(loss, hard, n)[best].item() for n in counts] for name, loss in losses.items()}
print(f"probability of the best text (reference {ref.exp()[best]:.3f}) after so many iterations on hard labels:")
print(f"{'':<10}", *(f"{n:>6}" for n in counts))
for name, x in table.items():
    print(f"{name:<10}", *(f"{p:6.3f}" for p in x))
wins = (world.rewards[:, None] > world.rewards).double().mean(1) + 0.5 / 15  # shares of draws, a draw against itself counts half
gibbs_of_wins = (ref + wins / beta).softmax(0)
print(f"IPO from the Gibbs policy of the share of wins: {(trained(losses['IPO'], hard, 1000) - gibbs_of_wins).abs().max():.0e}")
assert table["DPO"][-1] > 0.98 and torch.allclose(trained(losses["IPO"], hard, 1000), gibbs_of_wins, atol=1e-6)
gibbs = world.gibbs(beta=beta)
apart = (trained(losses["cDPO, 0.2"], hard, 1000) - gibbs).abs().sum().item() / 2
print(f"the Gibbs policy of people's own doubts gives the best text {gibbs[best]:.2f}; cDPO's total variation to it is {apart:.2f}")
assert 0.2 < table["cDPO, 0.2"][-1] < 0.4 and table["IPO"][-1] < 0.3 and apart < 0.15
fallen = [trained(losses["NCA"], hard, n)[worst].log().item() for n in (10, 30, 100)]
print("log of the worst text's probability under NCA after 10, 30, 100 iterations:", [round(x, 1) for x in fallen])
assert fallen[0] > fallen[1] > fallen[2] and fallen[2] < -30
ladder = (ref + (world.rewards.argsort().argsort().double() / beta)).softmax(0)[best].item()
print(f"every neighbour of the ranking exactly 1/beta apart: the best text has {ladder:.2f}")
assert 0.8 < ladder < 0.9

# %% [markdown]
# DPO ends with all its mass on one text: $\sigma(\beta h) = 1$ asks for $h = \infty$, and $\beta$ holds nothing. cDPO believes that every judge errs in a fifth of the cases, so it stops, and not far from where people's own doubts would have led. Hinge is content wherever all $h \ge 1/\beta$, the nearest such policy has 0.84, and where it lands is the optimizer's affair. NCA stops the winner, but a text that always loses falls without end. IPO's target is finite whatever the labels say: for two texts $h = \frac{1}{2\beta}$. For all pairs:
#
# * Over the labels of a pair, $p\,(h - \tfrac{1}{2\beta})^2 + (1 - p)(h + \tfrac{1}{2\beta})^2 = \big(h - \tfrac{2p - 1}{2\beta}\big)^2 + \text{const}$.
# * So the log-ratios $x_i$ are the least-squares fit of $x_i - x_j \approx \frac{2 p_{ij} - 1}{2\beta}$. If all pairs weigh the same, that is solved by row means: $x_i = \frac{1}{n} \sum_j \frac{2 p_{ij} - 1}{2\beta} + \text{const} = \frac{w_i}{\beta} + \text{const}$, with $w_i$ the mean of $p_{ij}$ over all $j$ (a draw against itself counts ½).
#
# The optimum is $\pi_{ref}\, e^{w/\beta}/Z$, the *share of wins* in the place of a reward. The leash holds, at two prices: winning always by a hair and winning by a mile are the same, and "share of wins" means against the texts that happened to be compared.
#
# **Labels that lie.** Suppose that labels are flipped with probability $\epsilon$. The robust loss $\tilde\ell(h)$ of the table has $(1 - \epsilon)\, \tilde\ell(h) + \epsilon\, \tilde\ell(-h) = \ell(\beta h)$ (put it in: the $\ell(-\beta h)$ cancel): its mean over lying labels *is* DPO's loss on true ones. Now each label of the true population is flipped with probability 0.2. The share that is *seen* is $0.8\, p + 0.2\, (1 - p)$:

# %%
flip = 0.2
seen = (1 - flip) * truth + flip * (1 - truth)
target = world.gibbs(beta=beta)
noisy = losses | {"robust, 0.2": lambda *x: robust_dpo(*x, beta=beta, label_smoothing=flip)}
for name in ("DPO", "cDPO, 0.2", "robust, 0.2"):
    p = trained(noisy[name], seen, 1000)
    print(f"{name:<12} from the Gibbs policy of the true shares: {(p - target).abs().max():.1e}; entropy {-(p * p.log()).sum():.2f}")
entropy = lambda p: -(p * p.log()).sum()  # noqa: E731
found = [trained(noisy[name], seen, 1000) for name in ("robust, 0.2", "DPO", "cDPO, 0.2")]
assert (found[0] - target).abs().max() < 1e-6 < 0.05 < (found[1] - target).abs().max()
assert entropy(target) < entropy(found[1]) < entropy(found[2])

# %% [markdown]
# Two losses under one word, *label smoothing*, with opposite effects: the robust one undoes the noise (if you know its rate, and if the shares are those of many raters), cDPO adds its own caution to it. The robust one has a price: it is not bounded below, and where labels are sure, one vote a pair or a rule, it runs off faster than DPO:

# %%
step = torch.autograd.grad(robust_dpo(*(x := torch.tensor([[200.0], [0.0], [0.0], [0.0]]).double().requires_grad_(True)), beta=0.1, label_smoothing=0.2).sum(), x)[0]
print(f"at h = 200 nats DPO's pull is {0.1 * math.exp(-20):.0e}, the robust loss's {-step[0].item():.3f}")
assert abs(-step[0].item() - 0.2 * 0.1 / 0.6) < 1e-6

# %% [markdown]
# Which one a library means by the word you must read in its code.
#
# ## 4. Whose texts?
#
# The theorem needs every pair covered; condition (2) of lesson 12. In practice the pairs are of texts that somebody wrote. On what the policy itself would write after some steps there may be not one label. Three ways out, from cheap to dear:
#
# * **RSO** (Liu et al. 2023): from many samples of $\pi_{ref}$ keep those that look like samples of $\pi^*$, the Gibbs policy of lesson 07: propose one, accept it with probability $e^{(r - r_{max})/\beta}$. ($r$ is a reward model's; here, the truth.)
# * **Iterative**: sample, label, train some steps, sample again.
# * **Online**: two samples a prompt at every step.
#
# Proposed with $\pi_{ref}$ and accepted with $e^{(r - r_{max})/\beta}$, a text is kept with probability proportional to $\pi_{ref}\, e^{r/\beta}$: that *is* the Gibbs policy, if $r_{max}$ is that of all texts; but then most proposals are wasted. In practice $r_{max}$ is the best of the $K$ that were drawn, and one is always kept: it is drawn from softmax$(r/\beta)$ of the $K$. That is milder, and right only as $K$ grows:

# %%
draw = torch.Generator().manual_seed(0)
for k in (2, 8, 64):
    samples = torch.multinomial(ref.exp().expand(4000, 15), k, replacement=True, generator=draw)
    kept = samples.gather(1, rejection_sample(world.rewards[samples], beta=beta, generator=draw))[:, 0]
    share = kept.bincount(minlength=15) / 4000
    print(f"one kept of {k:2d} samples: the best text {share[best]:.3f}, total variation to Gibbs {(share - target).abs().sum() / 2:.3f}")
accept = ((world.rewards - world.rewards.max()) / beta).exp()
assert torch.allclose(ref.exp() * accept / (ref.exp() * accept).sum(), target)
print(f"the best text: reference {ref.exp()[best]:.3f}, Gibbs {target[best]:.3f}; accepted on average {(ref.exp() * accept).sum():.2f} of the proposals")
assert (share - target).abs().sum() / 2 < 0.05

# %% [markdown]
# ## 5. On film reviews: thirteen losses
#
# Recorded with `minirlhf grid preference`: each loss from the committed SFT model, 100 steps of 32 pairs of human ratings, the same learning rate, the settings of the table in `docs/losses.md`. They are near those of the papers or of the libraries, and none was tuned here. Some are a choice: `cdpo` and `robust` believe in a fifth of false labels; `ipo-mean` has $\beta = 1$, a target of half a nat a token (TRL's default, 0.1, would ask for five); `cpo` *sums* its imitation over tokens, as its paper does, which weighs some twenty times as much as TRL's mean. Judged on the 76 test films: gold, which no training saw, with KL and length beside it. And on 128 pairs of
# validation films, human texts: how far $\log \pi$ of the chosen and of the rejected ones has moved, and the share of pairs whose order the *movement* has right.

# %%
recorded, history = load_results("preference"), load_results("preference_history")
asked = load_results("order")  # minirlhf grid order: the same losses and seeds, asked about 2,000 pairs of the test films
seeds = len({row["seed"] for row in recorded})


def rows_of(variant, rows=recorded):
    return [row for row in rows if row["variant"] == variant]


def mean_of(variant, key):
    return sum(row[key] for row in rows_of(variant)) / seeds


def gold_of(variant):
    """(films,) gold of each test film, the mean of the seeds."""
    return torch.tensor([row["gold_by_prompt"] for row in rows_of(variant)]).mean(0).tolist()


def differs(variant, other):
    """(gold's mean difference, paired by film over the mean of the seeds, and its 95 % interval; each seed's mean difference)."""
    each = [a["gold"] - b["gold"] for a, b in zip(rows_of(variant), rows_of(other), strict=True)]
    return paired_difference(gold_of(variant), gold_of(other)), each


def line(variant):
    x = {key: mean_of(variant, key) for key in ("gold", "kl", "length", "distinct_2", "chosen_change", "rejected_change", "right_order")}
    (difference, low, high), each = differs(variant, "dpo")
    told = f"{difference:+.2f} [{low:+.2f}, {high:+.2f}] ({min(each):+.2f}..{max(each):+.2f})" if variant != "dpo" else ""
    kl = [row["kl"] for row in rows_of(variant)]
    return (
        f"{variant:<34} {x['gold']:5.2f}  {told:<36} {x['kl']:6.1f} ({min(kl):.1f}..{max(kl):.1f})".ljust(97)
        + f"{x['length']:5.0f} {x['distinct_2']:5.2f} {x['chosen_change']:+7.1f} {x['rejected_change']:+7.1f} {x['right_order']:6.2f}"
    )


head = f"{'':<34}  gold  minus dpo's, 95 % over films (seeds)  KL, nats (seeds)".ljust(97) + " tok. dist2  chosen rejected order"
print(f"means of {seeds} seeds")
print(head)
for name in LOSSES:
    print(line(name))

# %% [markdown]
# The intervals are over films, for these three runs; beside them stands the smallest and the largest difference of a seed. Believe an effect that both show, films and every seed (of those ahead of DPO that is KTO alone), and remember that of twenty such intervals one misses by chance.

# %%
figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2)
markers = "osD^vPX*<>pxd"
for k, name in enumerate(LOSSES):
    family = next(n for n, names in enumerate(families.values()) if name in (*names, "tdpo"))
    for axes, key in ((left, "gold"), (right, "chosen_change")):
        x, y = ([row[key] for row in rows_of(name)] for key in ("kl", key))
        axes.plot(x, y, markers[k], color=COLOURS[family], label=name if axes is left else None, markersize=5, alpha=0.85)
swept = load_results("betas")
betas = sorted({row["variant"] for row in swept}, reverse=True)  # from the shortest leash on
frontier = [tuple(sum(row[key] for row in rows_of(v, swept)) / seeds for key in ("kl", "gold")) for v in betas]
left.plot(*zip(*frontier, strict=True), color="#888888", linestyle="--", linewidth=1, label="DPO at four β (lesson 12)")
left.set(xlabel="KL to SFT, nats a text", ylabel="gold", xscale="log")
right.set(xlabel="KL to SFT, nats a text", ylabel="held-out chosen texts: change of log π, nats", xscale="log")
for axes in (left, right):
    axes.grid(alpha=0.3, which="both")
left.legend(fontsize=6.5, frameon=False, ncol=2)
for family, colour in zip(families, COLOURS, strict=False):
    right.plot([], [], "s", color=colour, label=family)
right.legend(fontsize=7, frameon=False, loc="lower left")
display(figure)

# %%
def change_in_training(name, side, row_seed):
    """log pi minus the reference's, nats, of the pairs that were trained on in steps 70, 80 and 90, before each step."""
    of, dpo_rows = ([r for r in rows_of(v, history) if r["seed"] == row_seed and r["step"] in (70, 80, 90)] for v in (name, "dpo"))
    reference = [r[f"logps/{side}"] - r[f"rewards/{side}"] / 0.1 for r in dpo_rows]  # the batches of a seed are the same for all losses
    return sum(r[f"logps/{side}"] - ref for r, ref in zip(of, reference, strict=True)) / len(reference)


pairwise = [name for name in LOSSES if not LOSSES[name].single]  # KTO's batches are of other texts
trained_on = {name: {side: [change_in_training(name, side, k) for k in range(seeds)] for side in ("chosen", "rejected")} for name in pairwise}
figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
for axes, title in zip(figure.subplots(1, 2, sharex=True, sharey=True), ("texts of the training pairs", "2,000 pairs of the test films"), strict=True):
    for y, name in enumerate(reversed(LOSSES)):
        if "training" in title and name not in trained_on:
            continue
        c, r = (
            sum(trained_on[name][side] if "training" in title else (row[f"{side}_change"] for row in rows_of(name, asked))) / seeds
            for side in ("chosen", "rejected")
        )
        axes.plot([c, r], [y, y], color="#888888", linewidth=1)
        axes.plot(c, y, "o", color=COLOURS[0], label="chosen" if not y else None)
        axes.plot(r, y, "s", color=COLOURS[1], markerfacecolor="none", label="rejected" if not y else None)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set(title=title, xlabel="change of log π, nats", yticks=range(len(LOSSES)), yticklabels=reversed(LOSSES))
    axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False, loc="upper left")
display(figure)
print("training pairs: change of log pi, nats, each seed")
for name, x in trained_on.items():
    print(f"{name:<9} chosen {', '.join(f'{v:+5.1f}' for v in x['chosen'])}   rejected {', '.join(f'{v:+5.1f}' for v in x['rejected'])}")

# %%
figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
for axes, side in zip(figure.subplots(1, 2, sharey=True), ("chosen", "rejected"), strict=True):
    for (name, colour), style in zip(zip(("dpo", "hinge", "dpop", "nca", "kto", "ipo"), COLOURS, strict=False), styles, strict=False):
        steps = [row for row in rows_of(name, history) if f"{side}_change" in row]
        x = sorted({row["step"] for row in steps})
        axes.plot(x, [sum(r[f"{side}_change"] for r in steps if r["step"] == s) / seeds for s in x], color=colour, linestyle=style, label=name)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set(xlabel="step", title=f"{side} texts of 128 validation pairs")
    axes.grid(alpha=0.3)
figure.axes[0].set_ylabel("log π minus where it began, nats")
axes.legend(fontsize=8, frameon=False)
display(figure)


# %%
def along(kl, x, y):
    """Gold of DPO at another beta that goes as far: (draws,), linear in log KL between the points x, y (draws, 4), held beyond them."""
    kl = kl.clamp(x[:, 0], x[:, -1])[:, None]
    at = (x[:, 1:-1] < kl).sum(1, keepdim=True)
    (x0, x1), (y0, y1) = ([z.gather(1, at + k) for k in (0, 1)] for z in (x, y))
    return (y0 + (kl.log() - x0.log()) / (x1.log() - x0.log()) * (y1 - y0))[:, 0]


def measured(variant, rows):
    """(gold (seeds, films), KL of a text (seeds,), tokens (seeds,))."""
    return [torch.tensor([row[key] for row in rows_of(variant, rows)]).double() for key in ("gold_by_prompt", "kl", "length")]


def above(variant, per="text", other=None, draws=500):
    """Gold minus that of DPO at the beta that goes as far, a text or a token, and its 95 % interval: seeds and films drawn anew, the curve's too.

    With `other`: that, minus the same of another variant.
    """
    ours, curve = [measured(v, recorded) for v in (variant, other) if v], [measured(v, swept) for v in betas]
    generator = torch.Generator().manual_seed(0)
    shape = ours[0][0].shape
    drawn = [[torch.randint(n, (n,), generator=generator) for n in shape] for _ in range(draws)]
    which, films = map(torch.stack, zip([torch.arange(n) for n in shape], *drawn))  # all as they are, then the draws

    def points(gold, kl, n):
        """KL and gold, (1 + draws,) each."""
        return (kl / (n if per == "token" else 1))[which].mean(1), gold[which[:, :, None], films[:, None]].mean((1, 2))

    x, y = (torch.stack(z, 1) for z in zip(*(points(*v) for v in curve)))
    first, *second = [gold - along(kl, x, y) for kl, gold in (points(*v) for v in ours)]
    ahead = first - sum(second)
    return ahead[0].item(), *ahead[1:].quantile(torch.tensor([0.025, 0.975]).double()).tolist()


far = [name for name in LOSSES if name != "dpo" and frontier[0][0] * 0.9 < mean_of(name, "kl") < frontier[-1][0]]
beyond = {name: above(name) for name in far}
print("gold, minus that of DPO at the beta that goes as far; 95 % over seeds and films:")
for name, (x, low, high) in beyond.items():
    print(f"{name:<9} {x:+.2f} [{low:+.2f}, {high:+.2f}] at {mean_of(name, 'kl'):.1f} nats")

# %%
anchored = [name for name in LOSSES if LOSSES[name].reference]
claim(
    "Eight of the nine other losses with a reference lie near DPO's own curve of gold against KL: what tells them apart at these settings is how far they go. (The ninth, DPOP, hardly went.)",
    set(far) == {*anchored} - {"dpo", "dpop"} and all(abs(x) < 0.15 and low < 0 < high for x, low, high in beyond.values()),
    evidence=", ".join(f"{name} {x:+.2f}" for name, (x, *_) in beyond.items()),
    seeds=seeds,
)
short = [row["gold"] - frontier[-1][1] for row in rows_of("simpo")]
claim(
    "SimPO, without one, went farther than any of them, on every seed, and has no more gold for it than DPO at the beta that went farthest (in the mean of the seeds).",
    min(row["kl"] for row in rows_of("simpo")) > max(row["kl"] for name in anchored for row in rows_of(name))
    and mean_of("simpo", "kl") > frontier[-1][0]
    and sum(short) <= 0,
    evidence=f"gold {mean_of('simpo', 'gold'):.2f} at {mean_of('simpo', 'kl'):.1f} nats, DPO's {frontier[-1][1]:.2f} at {frontier[-1][0]:.1f}",
    seeds=seeds,
)
claim(
    "On the texts they were trained on the repairs do what they promise: DPOP, CPO and ORPO raise the chosen ones, on every seed; DPO, hinge and SimPO let them fall. The rejected ones go the same way.",
    all(min(trained_on[name]["chosen"]) > 0.5 and sum(trained_on[name]["rejected"]) > 0 for name in ("dpop", "cpo", "orpo"))
    and all(max(trained_on[name][side]) < -2 for name in ("dpo", "hinge", "simpo") for side in ("chosen", "rejected"))
    and all(sum(x["chosen"]) > sum(x["rejected"]) for x in trained_on.values()),
    evidence=", ".join(f"{name} {sum(x['chosen']) / seeds:+.1f} and {sum(x['rejected']) / seeds:+.1f}" for name, x in trained_on.items()),
    seeds=seeds,
)
claim(
    "It does not carry over: no loss made the chosen texts of other films likelier, on any seed, neither of the 128 pairs nor of the 2,000.",
    all(row["chosen_change"] < 0 for name in LOSSES for rows in (recorded, asked) for row in rows_of(name, rows)),
    evidence=", ".join(f"{name} {mean_of(name, 'chosen_change'):+.1f}" for name in LOSSES),
    seeds=seeds,
)
def above_half(name):
    """(films,) each film's part of the share of pairs whose order the change of log pi has right, above a half; mean of the seeds."""
    counts = torch.tensor([list(row["by_film"].values()) for row in rows_of(name, asked)]).mean(0)  # (films, [right, pairs])
    return (counts[:, 0] - 0.5 * counts[:, 1]) * len(counts) / counts[:, 1].sum()


def right_order(name):
    """That share, its 95 % interval over films, and each seed's share."""
    low, high = bootstrap(above_half(name))
    return 0.5 + above_half(name).mean().item(), 0.5 + low, 0.5 + high, [row["right_order"] for row in rows_of(name, asked)]


votes = {v: [row["accuracy"] for row in load_results("labels") if row["variant"] == v] for v in ("1600 pairs", "6400 pairs")}
print("right order of 2,000 pairs of test films; of 2,000 others, texts of any length, reward models (lesson 08) from", ", ".join(f"{v} {sum(x) / len(x):.2f}" for v, x in votes.items()))
orders = {name: right_order(name) for name in LOSSES}
for name, (share, low, high, each) in orders.items():
    x = [sum(row[f"{side}_change"] for row in rows_of(name, asked)) / seeds for side in ("chosen", "rejected")]
    print(f"{name:<9} {share:.2f} [{low:.2f}, {high:.2f}], by seed {', '.join(f'{y:.2f}' for y in each)}; change {x[0]:+.1f}, {x[1]:+.1f} nats")
few = [row["right_order"] for name in LOSSES for row in rows_of(name)]
print(f"of the 128 pairs of the table above: {min(few):.2f} to {max(few):.2f}, standard error {math.sqrt(0.25 / 128):.2f} or more")
raisers = ("dpop", "cpo", "orpo")
contrast = [name for name in LOSSES if name not in raisers]
claim(
    "What does carry over is the order: of 2,000 unseen pairs the ten other losses have more right than a coin, on every seed;",
    all(orders[name][1] > 0.5 and min(orders[name][3]) > 0.54 for name in contrast),
    evidence=f"{min(orders[name][0] for name in contrast):.2f} to {max(orders[name][0] for name in contrast):.2f}, the worst seed {min(min(orders[name][3]) for name in contrast):.2f}",
    seeds=seeds,
)
behind = {name: bootstrap(above_half("dpo") - above_half(name)) for name in raisers}
claim(
    "and those three, DPOP, CPO and ORPO, have fewer right than DPO.",
    all(low > 0 for low, _ in behind.values()),
    evidence=", ".join(f"{name} {orders[name][0]:.2f}, DPO minus it [{low:+.2f}, {high:+.2f}]" for name, (low, high) in behind.items()),
    seeds=seeds,
)

ahead, farther = mean_of("hinge", "gold") - mean_of("ipo", "gold"), mean_of("hinge", "kl") / mean_of("ipo", "kl")
start = [row["gold"] for row in load_results("tour") if row["method"] == "SFT"]
ranks = sorted(LOSSES, key=lambda name: -mean_of(name, "gold"))
print(f"by gold: {', '.join(ranks[:6])}; ahead of dpo on every seed: {[name for name in ranks if min(differs(name, 'dpo')[1]) > 0]}")
print(f"hinge before IPO by {ahead:.2f} of gold, at {farther:.1f} times its KL; SFT has gold {sum(start) / len(start):.2f}")
assert ranks.index("dpo") == 4 and all(mean_of(name, "kl") > mean_of("dpo", "kl") for name in ranks[:4])
assert [name for name in ranks if min(differs(name, "dpo")[1]) > 0] == ["kto", "hinge"]
assert 0.4 < ahead < 0.65 and 4.5 < farther < 7 and min(mean_of(name, "gold") for name in far) > sum(start) / len(start) + 0.3
assert mean_of("dpop", "chosen_change") > mean_of("dpo", "chosen_change") / 5 and mean_of("dpop", "kl") < 0.5

# %% [markdown]
# Nine names, one curve. Give DPO the beta at which it goes as far, and its gold is that of cDPO, IPO, hinge, NCA, TDPO, KTO or the robust loss: to within a tenth in the mean, and the intervals hold 0. *Is DPO among the best three?* In this table it is fifth; but all four before it went farther, and two of them (robust, SimPO) are not ahead on every seed. The question to ask is: at which KL? (Hinge is "better" than IPO by half a point; it went more than five times as far.) That is no law: the task is one on which the first nats are cheap, the
# labels are single votes, and no learning rate was searched. It is a reason to compare curves.
#
# What the repairs mend is another matter, and it depends on where one looks. *On the texts it is trained on* (left in the figure of circles and squares, without KTO, whose batches are of other texts; most have been in earlier pairs by then, some above, some below, the pairs are mostly new) DPO lets the chosen texts fall by about three nats and the rejected by five, and DPOP, CPO and ORPO hold what they promise: the chosen rise. So do the rejected, by less (in section 1's last line by more): the likeliest way to say the one is to say both. *On films that were held out* it does not carry over. There no loss made a chosen text likelier; DPOP is best, with less
# than a fifth of DPO's fall, and it is the one that moved least. Whatever the policies learned to write instead, it was not what people had written about other films.
#
# Which of two unseen texts do people prefer? That carries over: from 3,200 votes DPO's implicit reward has learned the order about as well as a reward model from half as many (which reads each about three times, and was asked other pairs: the first printed line), while it lets both texts fall. The three that *raise* the chosen texts have learned less of it: what lifts the one lifts the other. Holding them where they were is another thing: NCA and TDPO do, on the training texts, and order as well as DPO. (The three also moved least of all, by less than a nat; but IPO and TDPO, with little more, have the order.) (The last three columns of the first table say nothing of this, and we first read it as "a coin": 128 pairs, the same for all runs, cannot tell 0.58 from 0.5.)
#
# SimPO has no reference in its loss, and nothing holds it: farther than all others, for no more gold than DPO has at two thirds of its KL. (CPO and ORPO have none either, and hardly move: they imitate the chosen texts, which the start has been trained on; at TRL's weight CPO might.)
#
# ## 6. On film reviews: the reference, and whose texts
#
# (The *scorer* is the reward model of lesson 08; what it says of a policy's texts is the *proxy*. *Gold* no training saw.)
#
# The reference may follow the policy every 25 steps, all the way (*synced*) or by 0.6 of the way (*mixed*; TR-DPO has both), or be left out (*no reference*: $\log \pi_{ref} = 0$). And the pairs may be of other texts. At **equal labels**, 3,200 pairs that the scorer orders, and equal $\beta = 0.5$ (a scorer's labels are sure, a small $\beta$ holds little against them; 0.5 is PPO's price): people's texts; the start's own, written once; or the policy's own, anew at every step (*online-dpo*).
# With more: *iterative-dpo* (four texts a prompt are scored, best against worst, new texts every 25 steps), *rso* (two of four are kept by rejection sampling, the one with the higher score is the chosen; written once, hinge loss), and no contrast at all: *best of 8, imitated* (SFT on the best).

# %%
print(head)
ways = [v for v in dict.fromkeys(row["variant"] for row in recorded) if v not in LOSSES]
for variant in ways:
    print(line(variant))

# %%
figure = Figure(figsize=(6.4, 3.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
for k, variant in enumerate(("dpo", *ways)):
    colour = COLOURS[0] if variant in LOSSES or variant.startswith("dpo") else COLOURS[1]
    axes.plot([r["kl"] for r in rows_of(variant)], [r["gold"] for r in rows_of(variant)], markers[k], color=colour, label=variant, markersize=6)
for row in load_results("leash"):
    if row["variant"].startswith("kl_coef") and row["kl"] < 20:
        axes.plot(row["kl"], row["gold"], "+", color="#444444", markersize=7)
axes.plot([], [], "+", color="#444444", label="PPO at several prices (lesson 07)")
axes.plot(*zip(*frontier, strict=True), color="#888888", linestyle="--", linewidth=1, label="DPO at four β (lesson 12)")
axes.set(xlabel="KL to SFT, nats a text", ylabel="gold", xscale="log")
axes.grid(alpha=0.3, which="both")
axes.legend(fontsize=7, frameon=False)
display(figure)
for variant in ("dpo, no reference", "human texts, the scorer's labels", "online-dpo", "iterative-dpo"):
    print(f"\n{variant}:")
    print(*list(rows_of(variant)[0]["samples"].values())[:3], sep="\n")

# %%
def told(variant, other):
    (d, low, high), each = differs(variant, other)
    return f"{d:+.2f} [{low:+.2f}, {high:+.2f}], by seed {', '.join(f'{x:+.2f}' for x in each)}"


human, once = "human texts, the scorer's labels", "the start's own texts"
claim(
    "At equal labels and equal beta, texts written anew at every step give more gold than the start's own, written once, and more than people's, on every seed;",
    all(low > 0 and min(each) > 0 for (_, low, _), each in (differs("online-dpo", other) for other in (once, human))),
    evidence=f"minus once: {told('online-dpo', once)}; minus people's: {told('online-dpo', human)}",
    seeds=seeds,
)
own_texts = (once, "online-dpo", "iterative-dpo", "rso", f"best of {BEST}, imitated")
position = {per: {v: above(v, per) for v in (human, *own_texts)} for per in ("text", "token")}
for v in (human, *own_texts):
    missing = sum(row["missing_eos"] for row in rows_of(v)) / seeds
    by = ", ".join(f"{x:+.2f} [{low:+.2f}, {high:+.2f}] a {per}" for per, (x, low, high) in ((p, position[p][v]) for p in position))
    end = ", beyond its end" if mean_of(v, "kl") > frontier[-1][0] else " at equal KL"
    print(f"{v:<34} above DPO's curve{end} {by}; {mean_of(v, 'length'):.0f} tokens, {missing:.0%} unfinished")
claim(
    "they also go farther, but not only that: the four ways with the policy's own texts that lie along DPO's curve on human votes lie above it, by KL of a text and by KL of a token; the fifth, iterative-dpo, has more gold than its last point.",
    all(position[per][v][1] > 0 for per in position for v in own_texts),
    evidence=", ".join(f"{v} {position['text'][v][0]:+.2f} and {position['token'][v][0]:+.2f}" for v in own_texts),
    seeds=seeds,
)
for v in (once, "online-dpo"):
    lead = {per: above(v, per, other=human) for per in position}
    print(f"{v}, minus people's texts with the same scorer's labels, both at equal KL:", ", ".join(f"{x:+.2f} [{low:+.2f}, {high:+.2f}] a {per}" for per, (x, low, high) in lead.items()))
    assert (min(low for _, low, _ in lead.values()) > 0) == (v == "online-dpo")
others = (human, *(v for v in own_texts if v != "iterative-dpo"))
claim(
    "Best against worst of four, with new texts every 25 steps, has more gold and more KL than the five other ways, on every seed.",
    all(
        row[key] > max(r[key] for v in others for r in rows_of(v) if r["seed"] == row["seed"])
        for row in rows_of("iterative-dpo")
        for key in ("gold", "kl")
    ),
    evidence=f"gold {mean_of('iterative-dpo', 'gold'):.2f}, proxy {mean_of('iterative-dpo', 'proxy'):.2f}, {mean_of('iterative-dpo', 'kl'):.1f} nats, distinct-2 {mean_of('iterative-dpo', 'distinct_2'):.2f}",
    seeds=seeds,
)
claim(
    "A reference that follows lets the policy go farther on every seed, along the same curve; without one it goes more than twice as far and has less gold than DPO.",
    all(a["kl"] > b["kl"] for v in ("dpo, synced", "dpo, mixed") for a, b in zip(rows_of(v), rows_of("dpo"), strict=True))
    and all(abs(above(v)[0]) < 0.15 for v in ("dpo, synced", "dpo, mixed"))
    and differs("dpo, no reference", "dpo")[0][2] < 0
    and all(a["kl"] > 2 * b["kl"] for a, b in zip(rows_of("dpo, no reference"), rows_of("dpo"), strict=True)),
    evidence=f"above the curve: synced {above('dpo, synced')[0]:+.2f}, mixed {above('dpo, mixed')[0]:+.2f}; minus dpo: synced {told('dpo, synced', 'dpo')}; mixed {told('dpo, mixed', 'dpo')}; none {told('dpo, no reference', 'dpo')}",
    seeds=seeds,
)
ppo = [row for row in load_results("leash") if row["variant"] == "kl_coef 0.25"]
ppo_gold, ppo_kl = (sum(row[key] for row in ppo) / len(ppo) for key in ("gold", "kl"))
print(f"PPO at kl_coef 0.25: gold {ppo_gold:.2f} at {ppo_kl:.1f} nats; online-dpo {mean_of('online-dpo', 'gold'):.2f} at {mean_of('online-dpo', 'kl'):.1f}")
assert ppo_gold > mean_of("online-dpo", "gold") and ppo_kl < mean_of("online-dpo", "kl")
print(f"the start's own texts, written once, minus people's texts, both by the scorer's labels: {told(once, human)}")
print(f"how far: people's {mean_of(human, 'kl'):.1f} nats, the start's own {mean_of(once, 'kl'):.1f}, online {mean_of('online-dpo', 'kl'):.1f}")
tokenizer = load_policy("tiny-reviews-sft")[1]
voted = set(reviews.preference_pairs("reward", 3200, seed=0, max_tokens=32, tokenizer=tokenizer)["prompt"])
print(f"{len(reviews.rl_prompts())} titles that the policy writes about, {3200 / len(reviews.rl_prompts()):.0f} pairs each; people's pairs are of {len(voted)} films, {3200 / len(voted):.0f} each")
assert 16 < 3200 / len(voted) < 22
assert mean_of(human, "kl") < mean_of(once, "kl") < mean_of("online-dpo", "kl") and differs(once, human)[0][1] > 0

# %% [markdown]
# **Whose texts.** With which does the policy go farther (prediction 3)? With its own, if they are written anew at every step: to twice the KL of people's. Written once, hardly farther (2.3 and 2.7 nats; two of the three seeds differ by 0.1). Eight losses stand on one curve; the ways of learning from the policy's own texts stand above it, at equal KL. Against the fairer rival, people's texts with the *same scorer's* labels, the lead is there where texts are written anew at every step (by KL of a token just so); where they were written once it depends on whether one counts KL by text or by token. Comparisons seem to be worth more on texts that the policy is about to write: there it learns about what it can do something about. That is lesson 12's condition of coverage, met by sampling. PPO meets it the same way, and has more gold than *online-dpo* at less KL. (One difference of many: it is told *how much* better a text is, a pair only which one.)
#
# Mind what is unequal.
#
# * *The labels.* "Equal" are the scorer's, 3,200 of them. The scorer itself learned from 40,000 human choices (as many were drawn; lesson 08 counts what was read), and passes them on: its labels contradict each other less than single votes. That alone puts people's own texts a little above the curve.
# * *The films.* The policy writes about all titles that it may train on, about three pairs each; people's pairs are of the films with votes and short texts, about nineteen each (counted below the claims). More titles may be worth something by themselves.
# * *The length.* Where a policy writes, an unfinished text is worth 1 less; people's texts teach no such thing. So the own ways end in texts that are shorter and whole, and a short text has less KL for the same change of style. By KL of a *token* their lead is smaller, but it is there (both are printed; *iterative-dpo* is beyond the curve's end, which is held flat).
# * *The leash.* One beta each. The lead is measured against a curve, but each of these ways has only one point on its own.
# * Sampling costs time, too. And the policy now looks for what the *scorer* likes: read the samples of *iterative-dpo*, and its distinct-2. Gold, which was fitted to the same kind of ratings, still rises with it. Part IV is about how far one should believe that.
#
# **The reference.** Moving it (TR-DPO) is a longer leash, no other dog: farther along the same curve. Leaving it out is letting go: nothing in the loss knows what language was like, and at the same settings the policy leaves it.
#
# ## What the libraries do
#
# | | TRL (1.16) | here |
# |---|---|---|
# | in its DPO trainer | `sigmoid`, `hinge`, `ipo` (mean over tokens), `robust`, `nca_pair`, `exo_pair`, `bco_pair`, `sppo_hard`, `aot`, `apo_zero`, `apo_down`, `discopop`, several at once with `loss_weights` | the first five are rows of one table, sums unless a name says mean; the others are functions of `core/preference_variants.py` |
# | `label_smoothing` | of `robust`, `exo_pair` and `aot`; the plain loss ignores it | `cdpo` and `robust` are two names |
# | thumbs | a trainer of its own, `KTOTrainer` | `--loss kto`, pairs are taken apart |
# | CPO, SimPO, ORPO | experimental trainers; SimPO is a setting of CPO, its gamma in reward units | rows of the same table |
# | the reference | `sync_ref_model`, `ref_model_mixup_alpha` 0.6, every 512 steps; not with an adapter, nor precomputed | `--sync-every`, `--mixup`; not precomputed |
# | online | experimental; a judge or a reward model, `missing_eos_penalty` | `minirlhf online-dpo`, the penalty as in PPO |
# | logged | rewards and log-probabilities; nothing says *displaced* | `displaced`, `logps/chosen` |
#
# ## Exercises
#
# Each checker says *pass*, or the likely mistake in one sentence.
#
# **1. A target instead of a slope: IPO** *(easy, 10 minutes)*. From the four sums of log-probabilities (B,) and beta, return IPO's loss (B,): the squared distance of $h$ from $1/(2\beta)$.


# %%
def ipo_loss(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta): ...  # your code


print(check.ipo_loss(ipo_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def ipo_loss(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta):
#     h = chosen_logprobs - ref_chosen_logprobs - rejected_logprobs + ref_rejected_logprobs
#     return (h - 1 / (2 * beta)) ** 2
# ```
# </details>
#
# **2. Thumbs: KTO** *(medium, 15 minutes)*. `logprobs`, `ref_logprobs` (B,) of single responses, `desirable` (B,) booleans, `kl_baseline` a tensor with one number $z$, through which no gradient may flow. Return $1 - \sigma(\beta [\log \frac{\pi}{\pi_{ref}} - z])$ where desirable, $1 - \sigma(\beta [z - \log \frac{\pi}{\pi_{ref}}])$ elsewhere.
#
# *Hint:* `.detach()`.


# %%
def kto_loss(logprobs, ref_logprobs, desirable, kl_baseline, beta): ...  # your code


print(check.kto_loss(kto_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def kto_loss(logprobs, ref_logprobs, desirable, kl_baseline, beta):
#     gain = beta * (logprobs - ref_logprobs - kl_baseline.detach())
#     return torch.where(desirable, 1 - torch.sigmoid(gain), 1 - torch.sigmoid(-gain))
# ```
#
# With a gradient through $z$ the model would be paid for moving every *other* text. (The paper has a weight for each kind of thumb as well, and holds $z$ at 0 or above; the package does so, too.)
# </details>
#
# **3. The chosen must not fall: DPOP** *(medium, 10 minutes)*. Return (B,) DPO's loss with `penalty` times $\max(0, \log \pi_{ref}(y_c) - \log \pi(y_c))$ taken off $h$.


# %%
def dpop_loss(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta, penalty): ...  # your code


print(check.dpop_loss(dpop_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def dpop_loss(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta, penalty):
#     h = chosen_logprobs - ref_chosen_logprobs - rejected_logprobs + ref_rejected_logprobs
#     fallen = (ref_chosen_logprobs - chosen_logprobs).clamp(min=0)
#     return -torch.nn.functional.logsigmoid(beta * (h - penalty * fallen))
# ```
# </details>
#
# **4. No reference, a mean: SimPO** *(medium, 15 minutes)*. `logprobs` (2B, R) of tokens, the chosen texts first, `mask` (2B, R); padding may hold NaN. Return (B,) $-\log \sigma(\beta [\text{mean}_c - \text{mean}_r] - \text{margin})$, each mean over the real tokens of a text.


# %%
def simpo_loss(logprobs, mask, beta, margin): ...  # your code


print(check.simpo_loss(simpo_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def simpo_loss(logprobs, mask, beta, margin):
#     means = torch.where(mask, logprobs, 0.0).sum(1) / mask.sum(1)
#     chosen, rejected = means.chunk(2)
#     return -torch.nn.functional.logsigmoid(beta * (chosen - rejected) - margin)
# ```
# </details>
#
# **5. Find the bug: odds** *(medium, 15 minutes)*. ORPO imitates the chosen text and compares *odds*, $\frac{p}{1 - p}$, with $p = e^{\text{mean}}$. A colleague's loss is fine for hours, then it, or its gradient, is infinite or NaN: one short text has become nearly certain. `chosen_mean_logprobs`, `rejected_mean_logprobs` (B,) are below 0. Mend it.


# %%
def orpo_loss(chosen_mean_logprobs, rejected_mean_logprobs, beta):
    def log_odds(mean):
        return mean - torch.log(1 - torch.exp(mean))

    odds = log_odds(chosen_mean_logprobs) - log_odds(rejected_mean_logprobs)
    return -chosen_mean_logprobs - beta * torch.nn.functional.logsigmoid(odds)


print(check.orpo_loss(orpo_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# In float32 $e^{-10^{-8}}$ *is* 1, and $\log(1 - 1) = -\infty$. `torch.log(-torch.expm1(mean))` keeps the digits: `expm1(x)` is $e^x - 1$ without the subtraction.
# </details>
#
# **6. Predict, then run** *(5 minutes)*. In the world of section 1, suppose the third word's number were 0.5 instead of 4. What becomes of *yes* under DPO? Write it down; take the hash away.

# %%
e_nearer = torch.tensor([1.0, -1.0, 0.5]).double()
theta_late = torch.tensor([0.0, 1.0, 3.0, 10.0]).double()
# print([round((e_nearer * t).log_softmax(0)[0].exp().item(), 3) for t in theta_late])

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 0.333, 0.574, 0.816, 0.993: it rises all the way. Displacement needs a text *farther* than the chosen one in the direction from the rejected to the chosen. When are there such? Where the two are *alike*: then $e_c - e_r$ is short and points anywhere, and many other texts lie farther along it. Pairs of near twins are the dangerous ones.
# </details>

# %%
assert [round((e_nearer * t).log_softmax(0)[0].exp().item(), 3) for t in theta_late] == [0.333, 0.574, 0.816, 0.993]

# %% [markdown]
# **7. Design the experiment** *(hard, 15 minutes)*. "Our new preference loss beats DPO." It was run with the authors' settings, DPO with the library's. What would you have to see?
#
# <details><summary>What a good answer has</summary>
#
# Each loss over several strengths of its own leash (beta means other things in IPO, DPO and SimPO), so that curves of score against KL are compared and not points; learning rates chosen with as many tries for each, on other prompts; a judge that no training saw, length and variety (distinct-2: the share of different word pairs) beside it; several seeds, paired by prompt, an interval; the same pairs, and
# a statement of who wrote them. Most published tables have one point a loss.
# </details>
#
# ## Questions
#
# <details><summary>1. The chosen log-probability falls during DPO. Is that a bug in my code?</summary>
# Not by itself: only the difference is in the loss. A bug looks different: the *margin* does not grow, or DPO's loss does not begin at ln 2. But look where the mass went: sample.
# </details>
# <details><summary>2. Your judge is a rule: always the same answer for a pair. Which losses still have a finite optimum?</summary>
# IPO (its target is finite) and cDPO (it pretends that the judge errs). NCA bounds the winner only; a text that always loses falls for ever. Hinge has many: it is content beyond 1/beta. DPO, KTO and the robust loss have none, and beta does not help.
# </details>
# <details><summary>3. Why may online DPO need no better loss to do better?</summary>
# It breaks the coverage condition less: what the policy is about to write is what is compared. That also lets it find what the scorer likes by mistake.
# </details>
# <details><summary>4. What does leaving out the reference change in theory?</summary>
# The optimum: with sums (DPO without a reference; CPO without its imitation) exp(r / beta) over *all* texts, as if every text had been as likely at the start. Nothing remembers what language looks like but the starting weights and the number of steps.
# </details>
# <details><summary>5. SimPO and ORPO use the mean over tokens. Which bias does that remove, and which does it add?</summary>
# A sum makes long texts improbable whatever they say, so without a reference their rewards would be lower. The mean removes that; and a long text can now hide one bad word among many good ones.
# </details>
#
# **References.** Rafailov et al. 2023. Azar et al. 2023 (IPO), sections 4 and 5. Pal et al. 2024 (Smaug, DPOP), sections 3 and 4. Razin et al. 2024, *Unintentional unalignment*, section 4 (displacement and embeddings). Chowdhury et al. 2024 (robust). Mitchell 2023 (cDPO). Zhao et al. 2023 (SLiC-HF). Liu et al. 2023 (RSO). Guo et al. 2024 (online). Xiong et al. 2023 (iterative).
# Gorbatovski et al. 2024 (TR-DPO). Ethayarajh et al. 2024 (KTO). Chen et al. 2024 (NCA). Xu et al. 2024 (CPO). Meng et al. 2024 (SimPO). Hong, Lee and Thorne 2024 (ORPO). Zeng et al. 2024 (TDPO).
