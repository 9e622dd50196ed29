import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch

from minirlhf.classroom import check


def per_row(function):
    """Apply a function to each row's real entries and pad the result with 0."""

    def rows(*tensors, mask):
        out = torch.zeros(mask.shape)
        for i, keep in enumerate(mask):
            out[i, keep] = torch.as_tensor(function(*(t[i][keep] for t in tensors)))
        return out

    return rows


def backwards(rewards, factor):
    total, out = 0.0, []
    for r in rewards.flip(0):
        total = r + factor * total
        out.append(total)
    return torch.stack(out[::-1])


def deltas(r, v, gamma):
    return r + gamma * torch.cat([v[1:], torch.zeros(1)]) - v


def charges(score, old, ref, kl_coef):
    out = -kl_coef * (old - ref)
    return torch.cat([out[:-1], out[-1:] + score])


def shaped(s, old, ref, m, k):
    rows = [
        torch.nn.functional.pad(
            charges(s[i], old[i][m[i]], ref[i][m[i]], k), (0, int((~m[i]).sum()))
        )
        for i in range(len(s))
    ]
    return torch.stack(rows)


def n_steps(r, v, gamma, n):
    out = []
    for t in range(len(r)):
        end = min(t + n, len(r))
        ahead = sum(gamma ** (i - t) * r[i] for i in range(t, end)) + (
            gamma**n * v[end] if end < len(r) else 0.0
        )
        out.append(ahead - v[t])
    return torch.stack(out)


def six_cases(n, o, a, m, e):
    n, o, a = (torch.where(m, x, 0.0) for x in (n, o, a))
    ratio = (n - o).exp()
    flat = ((a > 0) & (ratio > 1 + e)) | ((a < 0) & (ratio < 1 - e))
    return -torch.where(flat, torch.where(a > 0, 1 + e, 1 - e), ratio) * a


def pulled_back(n, o, a, m, e, alpha):
    """Two straight lines that meet at the end of the range, token by token."""
    out = torch.zeros(m.shape)
    for i, t in m.nonzero().tolist():
        ratio, side = (n[i, t] - o[i, t]).exp(), 1 if a[i, t] > 0 else -1
        beyond = (side * (ratio - 1) - e).clamp(min=0)
        out[i, t] = side * a[i, t] * ((1 + alpha) * beyond - side * ratio)
    return out


def white(x):
    return (x - x.mean()) / x.var(unbiased=False).sqrt()


def by_autograd(probs, rewards):
    """The gradient of the expected reward with respect to the logits, from the seven products."""
    logits = probs.log().requires_grad_(True)
    p = logits.softmax(1)
    of_responses = torch.cat([p[0, 0] * p[1], p[0, 1] * p[2], p[0, 2:]])
    return torch.autograd.grad(of_responses @ rewards, logits)[0]


DIFFERENT = {  # right answers written in another way
    "two_measures": lambda p, w, r: torch.tensor(
        [
            sum(-b * math.log(a) for a, b in zip(p.tolist(), w.tolist(), strict=True) if b),
            sum(a * b for a, b in zip(p.tolist(), r.tolist(), strict=True)),
        ]
    ),
    "reward_pushes": by_autograd,
    "imitation_loss": lambda x, ids, e: (
        -torch.cat(
            [r[: (i.tolist() + [e]).index(e) + 1] for r, i in zip(x, ids, strict=True)]
        ).mean()
    ),
    "best_of_n": lambda s, n: torch.tensor(
        [max(range(i, i + n), key=lambda j: s[j].item()) for i in range(0, len(s), n)]
    ),
    "kl_penalised_score": lambda s, a, b, m, k: torch.stack(
        [
            s[i] - k * sum(((a - b)[i][t] for t in range(a.shape[1]) if m[i, t]), torch.tensor(0.0))
            for i in range(len(s))
        ]
    ),
    "eos_mask": lambda ids, e: torch.tensor(
        [[e not in row[:t] for t in range(len(row))] for row in ids.tolist()]
    ),
    "score_of_text": lambda s, m: torch.stack(
        [row[keep][-1] for row, keep in zip(s, m, strict=True)]
    ),
    "share_preferring": lambda a, b: (
        sum(x > y for x, y in apart) / len(apart)
        if (apart := [(x, y) for x in a.tolist() for y in b.tolist() if x != y])
        else 0.5
    ),
    "interval_alpha": lambda r: (
        1
        - ((r[:, :, None] - r[:, None]).square().sum() / (len(r) * r.shape[1] * (r.shape[1] - 1)))
        / ((r.flatten()[:, None] - r.flatten()).square().sum() / (r.numel() * (r.numel() - 1)))
    ),
    "label_ceiling": lambda a, b: (
        sum(
            right := [
                float(x > y)
                if (gap := (sum(r) - x) * (len(s) - 1) - (sum(s) - y) * (len(r) - 1)) > 0
                else float(x < y)
                if gap
                else 0.5
                for r, s in zip(a.tolist(), b.tolist(), strict=True)
                for x in r
                for y in s
                if x != y
            ]
        )
        / len(right)
    ),
    "held_out_pairs": lambda film, n: torch.tensor(
        [i in sorted(set(film.tolist()))[-n:] for i in film.tolist()]
    ),
    "v_and_q": lambda ids, r, p, w: torch.stack(
        [
            torch.stack(
                [
                    sum(r[i, len(p) :])
                    for i, row in enumerate(ids.tolist())
                    if row[: len(begin)] == begin
                ]
            ).mean()
            for begin in (p.tolist(), [*p.tolist(), w])
        ]
    ),
    "word_advantages": lambda x, s, a, b: torch.stack(
        [
            (x[1 + a].softmax(0) * s[a]).sum()
            - sum(
                x[0].softmax(0)[i] * x[1 + i].softmax(0)[j] * s[i, j]
                for i in range(len(s))
                for j in range(len(s))
            ),
            s[a, b] - torch.nn.functional.softmax(x, 1)[1 + a] @ s[a],
        ]
    ),
    "token_logprobs": lambda x, ids, p: torch.stack(
        [
            torch.stack(
                [x[b, t - 1, ids[b, t]] - x[b, t - 1].logsumexp(0) for t in range(p, x.shape[1])]
            )
            for b in range(len(x))
        ]
    ),
    "draw_word": lambda x, t, u: torch.searchsorted(
        (x / t).softmax(-1).cumsum(-1), u[:, None], right=True
    )[:, 0].clamp(max=x.shape[1] - 1),
    "sft_loss": lambda x, ids, m: torch.nn.functional.cross_entropy(x[m], ids[m]),
    "policy_gradient_loss": lambda p, r, m: torch.stack(
        [-r[i] * p[i][m[i]].sum() for i in range(len(r))]
    ).mean(),
    "returns_to_go": lambda r, m: per_row(lambda x: backwards(x, 1.0))(r, mask=m),
    "baseline_loss": lambda p, r, v, m: torch.stack(
        [sum((v[i, t] - r[i]) * p[i, t] for t in range(m[i].sum())) for i in range(len(r))]
    ).mean(),
    "td_error": lambda r, v, m, g: per_row(lambda a, b: deltas(a, b, g))(r, v, mask=m),
    "gae_advantages": lambda r, v, m, g, lam: per_row(
        lambda a, b: [
            sum((g * lam) ** i * d for i, d in enumerate(deltas(a, b, g)[t:]))
            for t in range(len(a))
        ]
    )(r, v, mask=m),
    "best_lambda": lambda b, s, n: torch.tensor(
        min(range(len(b)), key=lambda i: b[i].item() ** 2 + s[i].item() ** 2 / n)
    ),
    "critic_loss": lambda p, r, v, m, g, lam: (
        sum(
            (p[i, t] - v[i, t] - sum((g * lam) ** k * d for k, d in enumerate(later[t:]))) ** 2
            for i in range(len(m))
            for later in [deltas(r[i][m[i]], v[i][m[i]], g)]
            for t in range(len(later))
        )
        / (2 * m.sum())
    ),
    "n_step_advantages": lambda r, v, m, g, n: per_row(lambda a, b: n_steps(a, b, g, n))(
        r, v, mask=m
    ),
    "critic_targets": lambda a, v, m: torch.stack(
        [
            torch.zeros(m.shape).masked_scatter(m, white(a[m])),
            torch.zeros(m.shape).masked_scatter(m, a[m] + v[m]),
        ]
    ),
    "ppo_loss": six_cases,
    "clipped_share": lambda r, a, m, e: (
        torch.where(a[m] > 0, r[m] > 1 + e, (a[m] < 0) & (r[m] < 1 - e)).float().mean()
    ),
    "pull_back_loss": pulled_back,
    "gibbs_logprobs": lambda p, r, b: (
        (p + r / b) - (p + r / b).max() - (p + r / b - (p + r / b).max()).exp().sum().log()
    ),
    "kl_shaped_rewards": shaped,
    "missing_weights": lambda x, m: per_row(lambda a: backwards(a, 1.0) + torch.exp(-a) - 1)(
        x, mask=m
    ),
    "penalty_loss": lambda new, ref, m: per_row(lambda a, b: backwards((a - b).detach(), 1.0) * a)(
        new, ref, mask=m
    ).sum(1),
    "coefficient_for_kl": lambda p, r, kl: (
        1
        / scipy.optimize.brentq(
            lambda a: (
                a * (r * (p + a * r).softmax(0)).sum().item() - (p + a * r).logsumexp(0).item() - kl
            ),
            0.01,
            100,
            xtol=1e-14,
        )
    ),
    "bradley_terry_loss": lambda c, r: torch.nn.functional.softplus(r - c).mean(),
    "best_of_k_loss": lambda s, c: torch.nn.functional.cross_entropy(s, c),
    "in_sft_units": lambda s, b: (
        (s - b.mean()) * ((b - b.mean()).square().sum() / (len(b) - 1)) ** -0.5
    ),
    "calibrate": lambda d, y, t: torch.tensor(
        [
            np.mean([(a > 0) == b for a, b in zip(d.tolist(), y.tolist(), strict=True)]),
            np.mean([max(p, 1 - p) for p in torch.sigmoid(d).tolist()]),
            torch.nn.functional.binary_cross_entropy_with_logits(d, y.float()).item(),
            min(
                t.tolist(),
                key=lambda x: torch.nn.functional.binary_cross_entropy_with_logits(
                    d / x, y.float()
                ),
            ),
        ]
    ),
    "read_score": lambda s, m: torch.stack([row[keep][-1] for row, keep in zip(s, m, strict=True)]),
    "explained_by_position": lambda r, m: (
        1
        - sum(
            (c[keep] - c[keep].mean()).square().sum()
            for c, keep in zip(r.T, m.T, strict=True)
            if keep.any()
        )
        / (r[m] - r[m].mean()).square().sum()
    ),
    "four_models": lambda s, o, r, v, m, k: torch.zeros(m.shape).masked_scatter(
        m,
        white(
            per_row(lambda a, b: backwards(deltas(a, b, 1.0), 0.95))(
                shaped(s, o, r, m, k), v, mask=m
            )[m]
        ),
    ),
    "paired_standard_error": lambda a, b: torch.stack(
        [
            a.mean() - b.mean(),
            (((a - b).mean(1) - (a - b).mean()).square().sum() / (len(a) * (len(a) - 1))).sqrt(),
        ]
    ),
    "score_rewards": lambda s, ids, e: torch.stack(
        [
            torch.eye(len(row))[(row.tolist() + [e]).index(e) if e in row.tolist() else -1] * x
            for x, row in zip(s, ids, strict=True)
        ]
    ),
    "model_bytes": lambda w, t, b: 16 * w[t].sum() + (2 if b else 4) * w[~t].sum(),
    "adapted_layer": lambda x, w, d, u, a, on: torch.stack(
        [(w + a / u.shape[1] * u @ d if p else w) @ row for row, p in zip(x, on, strict=True)]
    ),
    "rloo_advantages": lambda s, p: torch.tensor(
        [
            s[i] - sum(others) / len(others)
            if (others := [s[j].item() for j in range(len(s)) if j != i and p[i] == p[j]])
            else 0.0
            for i in range(len(s))
        ]
    ),
    "group_advantages": lambda s: torch.stack(
        [
            0 * row
            if len(set(row.tolist())) == 1
            else (row - row.sum() / len(row)) / (row.var().sqrt() + 1e-4)
            for row in s
        ]
    ),
    "pass_at_k": lambda r, k: torch.tensor(
        [
            sum(any(picked) for picked in itertools.combinations(row, k)) / math.comb(len(row), k)
            for row in r.tolist()
        ]
    ).double(),
    "grpo_loss": lambda n, o, s, m, e: (
        sum(
            -min(ratio * a, ratio.clamp(1 - e, 1 + e) * a) / m[i].sum()
            for i in range(len(n))
            for a in [(s[i // 3, i % 3] - s[i // 3].mean()) / (s[i // 3].std() + 1e-4)]
            for ratio in (n[i] - o[i])[m[i]].exp()
        )
        / len(n)
    ),
    "gspo_loss": lambda n, o, a, m, e: torch.stack(
        [
            -min(s * a[i], s.clamp(1 - e, 1 + e) * a[i])
            for i in range(len(a))
            for s in [(n[i][m[i]] - o[i][m[i]]).mean().exp()]
        ]
    ),
    "colleagues_loss": lambda p, s, m: (
        sum((s.mean(1)[i // 3] - s[i // 3, i % 3]) * p[i][m[i]].sum() for i in range(len(p)))
        / (8 * len(p))
    ),
    "kept_groups": lambda s, d: torch.tensor([max(row) - min(row) > d for row in s]),
    "interval_over_seeds": lambda a, b, k: torch.tensor(
        [
            sum(d := [float((x - y).mean()) for x, y in zip(a, b, strict=True)]) / len(d)
            + side * k * np.std(d, ddof=1) / math.sqrt(len(d))
            for side in (0, -1, 1)
        ],
        dtype=a.dtype,
    ),
    "dpo_loss": lambda c, r, rc, rr, b: torch.nn.functional.softplus(b * ((r - rr) - (c - rc))),
    "optimum_of_pairs": lambda p, r, s, b: (
        (x := p + s * (r - (r * s).sum() / s.sum()) / b) - x.logsumexp(0)
    ).exp(),
    "reward_from_policy": lambda p, q, b: b * ((p - q) + (q.exp() @ (q - p))),
    "order_and_displacement": lambda c, r: torch.tensor(
        [
            len(moves := [x for x, y in zip(c.tolist(), r.tolist(), strict=True) if x - y > 0])
            / len(c),
            sum(x < 0 for x in moves) / len(moves),
        ]
    ),
    "dpo_of_a_batch": lambda n, r, m, b: torch.stack(
        [
            torch.nn.functional.softplus(b * ((n - r)[j][m[j]].sum() - (n - r)[i][m[i]].sum()))
            for i, j in enumerate(range(len(n) // 2, len(n)))
        ]
    ),
    "soft_value": lambda p, q, b: q.max() + b * (p.exp() * ((q - q.max()) / b).exp()).sum().log(),
    "prefix_values": lambda n, r, s, m, b: torch.stack(
        [
            torch.stack(
                [
                    s[i] - b * (n[i, t:][m[i, t:]] - r[i, t:][m[i, t:]]).sum()
                    if m[i, t]
                    else torch.tensor(0.0)
                    for t in range(m.shape[1])
                ]
            )
            for i in range(len(s))
        ]
    ),
    "state_value": lambda p, r, q, b: (
        p.exp() @ q - b * torch.nn.functional.kl_div(r, p, reduction="sum", log_target=True)
    ),
    "blame_shares": lambda e, p, m: torch.tensor(
        [
            sum(shares) / len(p)
            for shares in zip(
                *(
                    (
                        min(range(k), key=lambda t: e[i, t]) == place,
                        place == k - 2,
                        1 / k,
                    )
                    for i, (place, k) in enumerate(zip(p.tolist(), m.sum(1).tolist(), strict=True))
                ),
                strict=True,
            )
        ]
    ),
    "gold_above_curve": lambda k, g, x, y: torch.tensor(
        [
            a - np.interp(math.log(b), x.log().tolist(), y.tolist())
            for a, b in zip(g, k, strict=True)
        ]
    ),
    "lead_in_draw": lambda s, f, k, g, x, y: torch.as_tensor(
        sum(g[i, j] for i in s for j in f) / (len(s) * len(f))
        - np.interp(
            math.log(sum(k[i] for i in s) / len(s)),
            [math.log(sum(kl[i] for i in s) / len(s)) for kl in x],
            [sum(gold[i, j] for i in s for j in f) / (len(s) * len(f)) for gold in y],
        )
    ).float(),
    "slopes_of_a_pair": lambda x, p, c, r: torch.func.jacfwd(lambda w: (p + x @ w).log_softmax(0))(
        torch.zeros(x.shape[1])
    ).mv(x[c] - x[r]),
    "gradient_of_pairs": lambda w, x, s, b: torch.func.grad(
        lambda z: (
            w[:, None] * w * s * torch.nn.functional.softplus(b * (z - z[:, None]))
            + w[:, None] * w * (1 - s) * torch.nn.functional.softplus(b * (z[:, None] - z))
        ).sum()
    )(x),
    "ipo_of_votes": lambda h, p, b: h**2 - (2 * p - 1) * h / b + 1 / (4 * b**2),
    "turn_log_ratio": lambda p, q, m: torch.stack(
        [(a[keep] - b[keep]).sum() for a, b, keep in zip(p, q, m, strict=True)]
    ),
    "luck_of_a_result": lambda t, r, ref, b: (
        lambda v: v - torch.einsum("ao,ao->a", t, v)[:, None]
    )(b * torch.stack([(ref[..., i].log() + r[..., i] / b) for i in range(2)]).logsumexp(0)),
    "mask_of": lambda own, real: torch.tensor(
        [[a and b for a, b in zip(x, y, strict=True)] for x, y in zip(own, real, strict=True)]
    ),
    "progress_of_steps": lambda c, s, m: torch.stack(
        [
            torch.where(m[:, k], c[:, k] - (c[:, k - 1] if k else s), torch.zeros_like(s))
            for k in range(c.shape[1])
        ],
        1,
    ),
    "pairs_of": lambda r, m, t, n: (
        lambda bad, tries: torch.where(
            (bad & tries.any(1, keepdim=True)).any(1, keepdim=True),
            torch.stack([bad.byte().argmax(1), tries.byte().argmax(1)], 1),
            -1,
        )
    )(
        ~r & m,
        torch.zeros(len(r), n, dtype=torch.bool).masked_scatter((~r & m).any(1)[:, None], t),
    ),
    "steps_read": lambda r, m: torch.tensor(
        [
            next((k + 1 for k, (ok, real) in enumerate(row) if real and not ok), sum(m[i]))
            for i, row in enumerate(zip(*pair, strict=True) for pair in zip(r, m, strict=True))
        ]
    ),
    "loss_of_labelled_steps": lambda z, y, m: torch.where(
        m & (y >= 0),
        torch.nn.functional.binary_cross_entropy_with_logits(
            z.where(m, 0.0), y.where(m & (y >= 0), 0.0), reduction="none"
        ),
        torch.zeros_like(z),
    ),
    "simpo_loss": lambda x, m, b, c: torch.stack(
        [
            torch.nn.functional.softplus(c - b * (x[i][m[i]].mean() - x[j][m[j]].mean()))
            for i, j in enumerate(range(len(x) // 2, len(x)))
        ]
    ),
    "best_of_n_gold": lambda gold, proxy, n: torch.stack(
        [
            gold[max(some, key=lambda i: proxy[i])]
            for some in itertools.combinations(range(len(gold)), n)
        ]
    ).mean(),
    "kept_probs": lambda p, s, n: torch.stack(
        [
            sum(
                p[list(some)].prod()
                for some in itertools.product(range(len(p)), repeat=n)
                if max(some, key=lambda i: s[i]) == kept
            )
            for kept in range(len(p))
        ]
    ),
    "distance": lambda x, m: (x.masked_fill(~m, 0.0).sum() / len(x)) ** 0.5,
    "peak_of_rl": lambda d, y: torch.tensor(
        scipy.optimize.minimize_scalar(
            lambda x, c: -x * (c[0] - c[1] * math.log(x)),
            bounds=(0.01, 1000),
            args=(np.linalg.lstsq(np.stack([d, -d * d.log()], 1), y.numpy(), rcond=None)[0],),
            method="bounded",
            options={"xatol": 1e-9},
        ).x
    ),
    "early_stop": lambda held_out, patience: next(
        best
        for end in range(1, len(held_out) + 1)
        for best in [held_out[:end].argmax()]
        if end == len(held_out) or end - 1 - best >= patience
    ),
    "orpo_loss": lambda c, r, b: (
        -c
        + b
        * torch.nn.functional.softplus(
            (r - (-torch.expm1(r)).log()) - (c - (-torch.expm1(c)).log())
        )
    ),
}


@pytest.mark.parametrize("name", check.EXERCISES)
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_right_answers_pass_and_every_listed_mistake_is_named(name, seed):
    exercise = check.EXERCISES[name]
    assert exercise(exercise.reference, seed=seed)
    assert exercise(DIFFERENT[name], seed=seed)
    for sentence, wrong in exercise.mistakes.items():
        result = exercise(wrong, seed=seed)
        assert not result and result.message == sentence


@pytest.mark.parametrize("name", check.EXERCISES)
def test_the_message_of_a_mistake_is_one_short_line(name):
    for sentence in check.EXERCISES[name].mistakes:
        assert len(sentence) <= 300 and "\n" not in sentence and "  " not in sentence
        assert sentence.endswith((".", "?", ")"))


@pytest.mark.parametrize("name", check.EXERCISES)
def test_blank_broken_and_random_answers_fail_with_a_message(name):
    exercise = check.EXERCISES[name]

    def raises(*a):
        raise KeyError("oops")

    def in_place(*a):
        a[0].zero_()
        return exercise.reference(*a)

    def overwrites(*a):
        right = exercise.reference(*a)
        a[0].fill_(torch.nan) if a[0].is_floating_point() else a[0].bitwise_not_()
        return right

    def reshapes(*a):
        right = exercise.reference(*a)
        a[0].unsqueeze_(0)
        return right

    def random(*a):
        right = exercise.reference(*a)
        return torch.rand(right.shape).mul(3).long().to(right.dtype)

    def wrong_kind(*a):
        right = exercise.reference(*a)
        return right.long() if right.is_floating_point() else right.float()

    for function, said in (
        (lambda *a: None, "returned None"),
        (raises, "KeyError"),
        (in_place, "in place"),
        (overwrites, "in place"),
        (reshapes, "in place"),
        (random, "your answer is"),
        (lambda *a: exercise.reference(*a).reshape(-1)[:1, None], "shape"),
        (lambda *a: [1, 2], "list"),
        (wrong_kind, "must be of"),
    ):
        result = exercise(function)
        assert (
            not result
            and said in result.message
            and "\n" not in result.message
            and len(result.message) <= 300
        )


@pytest.mark.parametrize(
    "blind",
    [
        lambda s, a, b, m, k: s - k * (a - b).nansum(1),
        lambda s, a, b, m, k: s - k * torch.nan_to_num(a - b).sum(1),
    ],
)
@pytest.mark.parametrize("seed", range(20))
def test_an_answer_that_ignores_the_mask_is_refused(blind, seed):
    assert "mask" in check.kl_penalised_score(blind, seed=seed).message
    assert (
        "NaN"
        in check.kl_penalised_score(
            lambda s, a, b, m, k: s - k * ((a - b) * m).sum(1), seed=seed
        ).message
    )


@pytest.mark.parametrize(
    "name", [n for n, e in check.EXERCISES.items() if any(a.endswith("mask") for a in e.arguments)]
)
def test_an_answer_that_finds_padding_by_its_nan_is_refused(name):
    exercise = check.EXERCISES[name]

    def by_nan(*given):  # the right answer, with a mask that is read off the numbers
        numbers = [x for x in given if torch.is_tensor(x) and x.is_floating_point()]
        masks = [i for i, a in enumerate(exercise.arguments) if a.endswith("mask")]
        given = list(given)
        for i in masks:
            shape = given[i].shape  # numbers may have a further axis, such as the vocabulary
            like = next((x for x in numbers if x.shape[: len(shape)] == shape), None)
            if like is not None:
                given[i] = ~like.isnan().reshape(*shape, -1).any(-1)
        return exercise.reference(*given)

    case = exercise.case(torch.Generator().manual_seed(0))
    if any(torch.is_tensor(x) and x.is_floating_point() and x.isnan().any() for x in case):
        assert "mask" in exercise(by_nan).message and not exercise(by_nan)


def test_nan_is_reported_and_both_precisions_pass():
    exercise = check.score_of_text
    assert "NaN" in exercise(lambda *a: exercise.reference(*a) * torch.nan).message
    assert exercise(lambda *a: exercise.reference(*a).double())


@pytest.mark.parametrize(
    "name, typed_in",
    [
        ("best_of_n", lambda s, n: check.best_of_n.reference(s[: len(s) // 4 * 4], 4)),
        (
            "kl_penalised_score",
            lambda s, a, b, m, k: check.kl_penalised_score.reference(s, a, b, m, 0.5),
        ),
        ("eos_mask", lambda ids, e: check.eos_mask.reference(ids, 0)),
        (
            "eos_mask",
            lambda ids, e: torch.cat(
                [torch.ones(len(ids), 1, dtype=torch.bool), ids[:, :-1] != e], 1
            ),
        ),  # right only where pad = eos
    ],
)
def test_an_answer_for_one_case_only_is_refused(name, typed_in):
    assert not check.EXERCISES[name](typed_in)


def test_each_student_has_their_own_cases(monkeypatch):
    seen = []
    exercise = check.score_of_text
    for student in ("1", "1", "2"):
        monkeypatch.setenv("MINIRLHF_STUDENT", student)
        exercise(lambda s, m: seen.append(s.clone()) or exercise.reference(s, m))
    first, again, other = (seen[i * check.CASES : (i + 1) * check.CASES] for i in range(3))
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))


@pytest.mark.parametrize("student", ["anna", "", "1.5", "-1", "9" * 30])
def test_a_student_who_is_not_a_number_is_told_in_one_sentence(monkeypatch, student):
    monkeypatch.setenv("MINIRLHF_STUDENT", student)
    result = check.score_of_text(check.score_of_text.reference)
    said = f"MINIRLHF_STUDENT is {student!r}; it must be a whole number, such as 17."
    assert repr(result) == f"not yet: {said}"
    assert check.score_of_text(check.score_of_text.reference, seed=3)  # grading does not ask for it
