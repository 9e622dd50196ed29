"""What holds for every function of one value a token: padding, row order, splits, gradients, what carries none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck

from minirlhf.core.baselines import charge_tokens, reinforce_plus_plus, reinforce_plus_plus_baseline
from minirlhf.core.bradley_terry import last_token_scores, per_token_reward_loss
from minirlhf.core.kl import exact_kl, k1, k2, k3, kl_shaped_rewards, log_ratio
from minirlhf.core.logprobs import entropy, response_logprobs, sequence_logprobs
from minirlhf.core.masking import masked_mean, masked_var, masked_whiten
from minirlhf.core.policy_gradient import (
    cispo,
    explained_variance,
    is_clipped,
    ppo_clip,
    reinforce,
    sequence_clip,
    value_loss,
    value_loss_clipped,
)
from minirlhf.core.process_reward import (
    STEP_AGGREGATIONS,
    process_reward_loss,
    process_reward_score,
)
from minirlhf.core.returns import gae, reward_to_go, td_errors

# name: (function of a batch, inputs with a gradient, inputs that must get none). a, b, c (B, R); logits, ref_logits (B, R, V)
PER_TOKEN = {
    "log_ratio": (lambda x: log_ratio(x["a"], x["b"], x["mask"]), "a b", ""),
    "k1": (lambda x: k1(x["a"], x["b"], x["mask"]), "a b", ""),
    "k2": (lambda x: k2(x["a"], x["b"], x["mask"]), "a b", ""),
    "k3": (lambda x: k3(x["a"], x["b"], x["mask"]), "a b", ""),
    "exact_kl": (
        lambda x: exact_kl(x["logits"], x["ref_logits"], x["mask"]),
        "logits ref_logits",
        "",
    ),
    "kl_shaped_rewards": (
        lambda x: kl_shaped_rewards(x["scores"], x["a"], x["b"], x["mask"], kl_coef=0.3),
        "scores a b",
        "",
    ),
    "response_logprobs": (
        lambda x: response_logprobs(x["logits"], x["ids"], x["mask"], temperature=0.7),
        "logits",
        "",
    ),
    "entropy": (lambda x: entropy(x["logits"], x["mask"], temperature=0.7), "logits", ""),
    "reward_to_go": (lambda x: reward_to_go(x["a"], x["mask"], gamma=0.9), "a", ""),
    "td_errors": (lambda x: td_errors(x["a"], x["b"], x["mask"], gamma=0.9), "a b", ""),
    "gae advantages": (lambda x: gae(x["a"], x["b"], x["mask"], gamma=0.9, lam=0.8)[0], "a b", ""),
    "gae returns": (lambda x: gae(x["a"], x["b"], x["mask"], gamma=0.9, lam=0.8)[1], "a b", ""),
    "reinforce": (lambda x: reinforce(x["a"], x["b"], x["mask"]), "a", "b"),
    "ppo_clip": (lambda x: ppo_clip(x["a"], x["b"], x["c"], x["mask"], dual_clip=3.0), "a", "b c"),
    "sequence_clip": (
        lambda x: sequence_clip(
            x["a"], x["b"], x["scores"], x["mask"], by_length=False, clip_eps=0.2
        ),
        "a",
        "b scores",
    ),
    "sequence_clip mean": (
        lambda x: sequence_clip(
            x["a"], x["b"], x["scores"], x["mask"], by_length=True, clip_eps=0.2
        ),
        "a",
        "b scores",
    ),
    "charge_tokens": (
        lambda x: charge_tokens(x["a"], x["b"], x["c"], x["mask"], kl_coef=0.3),
        "a b c",
        "",
    ),
    "process_reward_loss": (
        lambda x: process_reward_loss(x["a"], x["b"].sigmoid(), x["mask"]),
        "a",
        "b",
    ),
    "value_loss": (lambda x: value_loss(x["a"], x["b"], x["mask"]), "a", "b"),
    "value_loss_clipped": (
        lambda x: value_loss_clipped(x["a"], x["b"], x["c"], x["mask"], clip_eps=0.5),
        "a",
        "b c",
    ),
}
A_ROW = {  # one number a response
    "sequence_logprobs": (lambda x: sequence_logprobs(x["a"], x["mask"]), "a", ""),
    "last_token_scores": (lambda x: last_token_scores(x["a"], x["mask"]), "a", ""),
    **{
        f"process_reward_score {how}": (
            lambda x, how=how: process_reward_score(x["a"], x["mask"], how=how),
            "a",
            "",
        )
        for how in STEP_AGGREGATIONS
    },
}
A_BATCH = {  # one number, or one a token, that depends on the whole batch
    "masked_mean": (lambda x: masked_mean(x["a"], x["mask"]), "a", ""),
    "masked_var": (lambda x: masked_var(x["a"], x["mask"]), "a", ""),
    "masked_var unbiased": (lambda x: masked_var(x["a"], x["mask"], unbiased=True), "a", ""),
    "masked_whiten": (lambda x: masked_whiten(x["a"], x["mask"]), "a", ""),
    "masked_whiten, mean kept": (
        lambda x: masked_whiten(x["a"], x["mask"], shift_mean=False),
        "a",
        "",
    ),
    "reinforce_plus_plus": (lambda x: reinforce_plus_plus(x["a"], x["mask"]), "a", ""),
    "explained_variance": (lambda x: explained_variance(x["a"], x["b"], x["mask"]), "a b", ""),
}
FLOATS = ("a", "b", "c", "logits", "ref_logits", "scores")


def batch(lengths, *, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    B, draw = (
        len(lengths),
        lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64),
    )
    return {
        "a": draw(B, width),
        "b": draw(B, width),
        "c": draw(B, width),
        "scores": draw(B),
        "logits": draw(B, width, 5),
        "ref_logits": draw(B, width, 5),
        "ids": torch.randint(5, (B, width), generator=generator),
        "mask": torch.arange(width) < torch.tensor(lengths)[:, None],
    }


def surround(x, left, right, junk):
    """The same batch with more padding: every column that does not count holds junk, ids that no vocabulary has included."""

    def pad(name, value):
        if name == "scores":
            return value
        fill = {"mask": False, "ids": -100}.get(name, junk)
        old = torch.where(
            x["mask"].view(*x["mask"].shape, *[1] * (value.dim() - 2)),
            value,
            torch.full_like(value, fill),
        )
        shape = lambda count: (value.shape[0], count, *value.shape[2:])
        return torch.cat(
            [value.new_full(shape(left), fill), old, value.new_full(shape(right), fill)], 1
        )

    return {name: pad(name, value) for name, value in x.items()}


def leaves(x):
    return {
        name: value.clone().requires_grad_(True) if name in FLOATS else value
        for name, value in x.items()
    }


def value_and_gradients(function, x, names):
    x = leaves(x)
    value = function(x)
    return value.detach(), dict(
        zip(names, grad(value.square().sum(), [x[name] for name in names]), strict=True)
    )


lengths_and_padding = {
    "lengths": st.lists(st.integers(1, 4), min_size=2, max_size=4),
    "left": st.integers(0, 2),
    "right": st.integers(0, 2),
    "junk": st.sampled_from([0.0, -1e30, float("nan"), float("inf")]),
}


@pytest.mark.parametrize("name", [*PER_TOKEN, *A_ROW, *A_BATCH])
@settings(max_examples=12, deadline=None)
@given(**lengths_and_padding)
def test_padding_of_any_amount_side_and_value_changes_nothing(name, lengths, left, right, junk):
    function, with_gradient, _ = {**PER_TOKEN, **A_ROW, **A_BATCH}[name]
    x, names = batch(lengths), with_gradient.split()
    padded = surround(x, left, right, junk)
    clean_value, clean_gradients = value_and_gradients(function, x, names)
    value, gradients = value_and_gradients(function, padded, names)
    per_token = name in PER_TOKEN or name.startswith(("masked_whiten", "reinforce_plus_plus"))
    if per_token:
        assert value[~padded["mask"]].eq(0).all()
        value = value[:, left : left + 4]
    torch.testing.assert_close(value, clean_value, rtol=1e-12, atol=1e-12)
    for key in names:
        got = gradients[key] if key == "scores" else gradients[key][:, left : left + 4]
        torch.testing.assert_close(got, clean_gradients[key], rtol=1e-12, atol=1e-12)
        assert gradients[key].isfinite().all()


@pytest.mark.parametrize("name", [*PER_TOKEN, *A_ROW])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 4), min_size=2, max_size=5), data=st.data())
def test_a_row_does_not_depend_on_the_others(name, lengths, data):
    function, x = {**PER_TOKEN, **A_ROW}[name][0], batch(lengths)
    rows = data.draw(
        st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=4)
    )  # any order, any subset, repeats
    part = function({key: value[rows] for key, value in x.items()})
    torch.testing.assert_close(part, function(x)[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", A_BATCH)
def test_batch_order_changes_nothing(name):
    function, x, order = A_BATCH[name][0], batch([4, 1, 3]), [2, 0, 1]
    shuffled, whole = function({key: value[order] for key, value in x.items()}), function(x)
    torch.testing.assert_close(
        shuffled, whole if whole.dim() == 0 else whole[order], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", [*PER_TOKEN, *A_ROW, *A_BATCH])
def test_gradcheck(name):
    function, with_gradient, _ = {**PER_TOKEN, **A_ROW, **A_BATCH}[name]
    x = leaves(batch([4, 2], seed=3))
    names = with_gradient.split()
    assert gradcheck(
        lambda *values: function({**x, **dict(zip(names, values, strict=True))}),
        [x[name] for name in names],
    )


@pytest.mark.parametrize("name", [name for name, row in PER_TOKEN.items() if row[2]])
def test_fixed_inputs_get_no_gradient(name):
    function, _, without = PER_TOKEN[name]
    x = leaves(batch([4, 2]))
    for gradient in grad(
        function(x).sum(), [x[name] for name in without.split()], allow_unused=True
    ):
        assert gradient is None or gradient.eq(0).all()


@pytest.mark.parametrize("name", [*PER_TOKEN, "sequence_logprobs"])
def test_a_fully_masked_row_is_zero_and_leaves_the_others_finite(name):
    function, with_gradient, _ = {**PER_TOKEN, **A_ROW}[name]
    x = batch([3, 0])
    value, gradients = value_and_gradients(
        function, surround(x, 0, 0, float("nan")), with_gradient.split()
    )
    assert value[1].eq(0).all() and value[0].isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_cispo_ignores_padding_and_gives_fixed_inputs_no_gradient():
    # its value has another gradient than autograd's: the weight is detached; so the gradient is the weight times A, by hand
    x = leaves(batch([4, 2]))
    padded = leaves(surround(x, 1, 1, float("nan")))
    for y, inside in ((x, slice(0, 4)), (padded, slice(1, 5))):
        loss = cispo(y["a"], y["b"], y["c"], y["mask"], clip_eps=0.2, clip_eps_high=0.5)
        assert loss[~y["mask"]].eq(0).all()
        gradient, *none = grad(loss.sum(), [y["a"], y["b"], y["c"]], allow_unused=True)
        weight = (x["a"] - x["b"]).exp().clamp(0.8, 1.5)
        expected = torch.where(x["mask"], -weight * x["c"], torch.zeros_like(weight)).detach()
        torch.testing.assert_close(gradient[:, inside], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            loss[:, inside], expected * torch.where(x["mask"], x["a"], 0.0), rtol=1e-12, atol=1e-12
        )
        assert gradient.isfinite().all() and all(g is None or g.eq(0).all() for g in none)


def test_padding_of_a_group_changes_nothing():
    x, scores = batch([4, 2, 1, 3]), torch.tensor([[1.0, 2.0], [5.0, 1.0]], dtype=torch.float64)
    padded = surround(x, 1, 2, float("nan"))
    plain = reinforce_plus_plus_baseline(scores, x["mask"])
    torch.testing.assert_close(
        reinforce_plus_plus_baseline(scores, padded["mask"])[:, 1:-2], plain, rtol=1e-12, atol=1e-12
    )


def test_padding_is_never_clipped():
    x = batch([3, 1])
    mask, poisoned = x["mask"], surround(x, 1, 1, float("inf"))
    clipped = is_clipped(
        poisoned["a"], poisoned["b"], poisoned["c"], poisoned["mask"], clip_eps=0.0
    )
    assert torch.equal(clipped[:, 1:-1], is_clipped(x["a"], x["b"], x["c"], mask, clip_eps=0.0))
    assert not clipped[~poisoned["mask"]].any() and clipped.any()


def test_per_token_reward_loss_ignores_tokens_after_both_ends():
    mask, other = (
        torch.tensor([[True, True, True, False]]),
        torch.tensor([[True, True, False, False]]),
    )
    ids, other_ids = (
        torch.tensor([[1, 2, 0, 0]]),
        torch.tensor([[1, 2, 0, 0]]),
    )  # they differ by length alone: 0 is EOS and padding
    chosen, rejected = torch.randn(2, 1, 4, dtype=torch.float64)
    a = torch.where(mask, chosen, torch.nan).requires_grad_(True)
    b = torch.where(other, rejected, torch.nan).requires_grad_(True)
    loss = per_token_reward_loss(a, b, mask, other, ids, other_ids)
    # one token counts, t = 2, where the shorter one holds its last score
    torch.testing.assert_close(loss[0], torch.nn.functional.softplus(rejected[0, 1] - chosen[0, 2]))
    assert all(gradient.isfinite().all() for gradient in grad(loss.sum(), (a, b)))


def test_per_token_reward_loss_gradcheck():
    mask, other = torch.tensor([[True, True, True]]), torch.tensor([[True, True, False]])
    a, b = (torch.randn(1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ids, other_ids = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 0]])
    assert gradcheck(lambda a, b: per_token_reward_loss(a, b, mask, other, ids, other_ids), (a, b))


def test_a_lambda_above_one_is_refused_even_if_gamma_times_lambda_is_not():
    x = batch([4, 2])
    with pytest.raises(ValueError, match="lam is 1.5"):  # gamma * lam = 3/4 would pass
        gae(x["a"], x["b"], x["mask"], gamma=0.5, lam=1.5)


def test_clip_eps_is_0_2_by_default():
    # ratios exp(+-1) with A = +-1: clipped at 1.2 and 0.8
    one, mask = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    sign = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        ppo_clip(sign, 0 * one, sign, mask), torch.tensor([[-1.2, 0.8]], dtype=torch.float64)
    )
