"""Every public function of core with one odd argument: a defined number, or a ValueError that names it.

What is tried follows from the annotations, so a function that is added is tried the day it is written.
"""

import importlib.util
import inspect
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf import core
from minirlhf.core import Rollout, World
from tests.core.test_extremes import CALLED, FUNCTIONS, UNDEFINED, arguments, dimensions, numbers

SIZES = {"B": 6, "R": 3, "T": 5, "V": 4, "N": 2, "G": 3, "S": 5, "K": 2}
NOT_A_NUMBER = ("text", None, [1.0], torch.ones(2), 1j, True)
NUMBERS_AT_THE_EDGE = (math.nan, math.inf, -math.inf, 0, -1, 1e-320, 1e300, 2**63, 2**64, 10**400)


def usual(function) -> dict:
    """Arguments that the function takes: masks of True, numbers that are allowed."""
    generator, given = torch.Generator().manual_seed(0), {}
    for name, parameter in inspect.signature(function).parameters.items():
        found = dimensions(parameter.annotation)
        if found:
            kind, letters = found
            letters = "B R" if letters.startswith("...") else letters.removesuffix(" ...")
            shape = [SIZES[letter] for letter in letters.split()]
            if kind == "Bool":
                given[name] = torch.ones(shape, dtype=torch.bool)
            elif kind == "Int":
                given[name] = torch.randint(0, 4, shape, generator=generator)
            else:
                sign = 1 if name == "labels" else -1
                given[name] = sign * torch.rand(shape, generator=generator)
        elif found := numbers(function, name):
            given[name] = found[0][-1]
    return given


def shared_axes(function, name) -> list[int]:
    """The axes whose letter another tensor has too, so that a size of 1 there would broadcast."""
    axes = {
        key: found[1].split()
        for key, parameter in inspect.signature(function).parameters.items()
        if (found := dimensions(parameter.annotation))
    }
    others = {letter for key, letters in axes.items() if key != name for letter in letters}
    return [number for number, letter in enumerate(axes[name]) if letter in others]


def odd_tensors(function, name, x) -> list[tuple[object, bool]]:
    """(odd value, whether it must be refused) for a tensor argument."""
    dtypes = (torch.float32, torch.long, torch.bool, torch.complex64)
    kinds = [x.is_floating_point(), x.dtype == torch.long, x.dtype == torch.bool, False]
    wrong = [x.to(dtype) for dtype, same in zip(dtypes, kinds, strict=True) if not same]
    wrong += [0.5, "text", x.tolist(), x.new_zeros((0,) * max(1, x.dim()))]
    for axis in range(x.dim()):
        wrong += [x.select(axis, 0), x.narrow(axis, 0, 0)]
    fine = [torch.zeros_like(x)] + ([x.double().requires_grad_()] if x.is_floating_point() else [])
    if "T ..." not in str(inspect.signature(function).parameters[name].annotation):
        wrong.append(x[..., None])
    wrong += [x.narrow(axis, 0, 1) for axis in shared_axes(function, name)]
    return [(y, True) for y in wrong] + [(y, False) for y in fine]


def odd_plain(parameter) -> list[tuple[object, bool]]:
    """(odd value, whether it must be refused) for a number, a bool or a text."""
    annotation = str(parameter.annotation)
    none = "None" in annotation
    wrong = [y for y in NOT_A_NUMBER if not (y is None and none)]
    if annotation == "<class 'bool'>":
        return [(y, True) for y in (*wrong[:-1], 0, 1.0)]
    if annotation == "<class 'str'>":
        return [(y, True) for y in ("text", "", *wrong[1:])]
    return [(y, True) for y in (*wrong, math.nan)] + [(y, False) for y in NUMBERS_AT_THE_EDGE]


def odd_values(function, name, value) -> list[tuple[object, bool]]:
    if isinstance(value, torch.Tensor):
        return odd_tensors(function, name, value)
    return odd_plain(inspect.signature(function).parameters[name])


def judge(key, given, name, must_be_refused):
    """Call a function: the answer has no NaN, or a sentence names the argument."""
    function = FUNCTIONS[key]
    shown = {k: tuple(v.shape) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    try:
        answer = function(**given)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said and said.endswith("."), said
        # an inner function may say "the mask" of a mask
        names = f"({name}|mask|attention_mask)" if name.endswith("_mask") else name
        assert re.search(rf"\b{names}\b", said), (said, shown)
        return
    assert not must_be_refused, (name, shown)
    for part in answer if isinstance(answer, tuple) else (answer,):
        part = torch.as_tensor(part)
        assert key in UNDEFINED or not part.isnan().any(), (name, shown, part)


@pytest.mark.parametrize("key", CALLED)
def test_an_odd_argument_gives_a_defined_number_or_a_sentence_that_names_it(key):
    function = FUNCTIONS[key]
    given = usual(function)
    function(**given)  # each is taken before one of them is changed
    for name, value in given.items():
        for odd, must_be_refused in odd_values(function, name, value):
            judge(key, given | {name: odd}, name, must_be_refused)


def check_with_odd_arguments(key, *, examples):
    """The same with random other arguments: what `make stress` tries."""
    function, tried = FUNCTIONS[key], []

    @settings(max_examples=examples, deadline=None)
    @given(arguments(function), st.randoms(use_true_random=False))
    def holds(drawn, random):
        given, wrong = drawn
        if wrong:
            return
        name = random.choice(sorted(given))
        odd, _ = random.choice(odd_values(function, name, given[name]))
        tried.append(name)
        try:
            function(**given)
        except ValueError:
            return  # what was drawn is refused without the odd argument
        judge(key, given | {name: odd}, name, False)

    holds()
    assert tried


@pytest.mark.parametrize("key", CALLED)
def test_a_nan_that_counts_is_never_hidden(key):
    function = FUNCTIONS[key]
    given = usual(function)
    for name, value in given.items():
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            continue
        poisoned = value.clone()
        poisoned.view(-1)[-1] = torch.nan
        try:
            answer = function(**given | {name: poisoned})
        except ValueError:
            continue
        parts = [torch.as_tensor(x) for x in (answer if isinstance(answer, tuple) else (answer,))]
        clear = any(part.isnan().any() for part in parts) or parts[0].dtype == torch.bool
        assert clear or (key, name) in CUT_OFF, (key, name)


CUT_OFF = {("logprobs.response_slice", "x")}  # the last position is outside the slice


F, M = torch.full((1, 2), -1.0), torch.tensor([[True, True]])
PAIR = torch.tensor([-1.0, -2.0])


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: core.running_mean(0.0, torch.tensor([])), r"scores has shape \(0,\)"),
        (lambda: core.running_mean(math.nan, PAIR), "mean is nan; it must be a number"),
        (
            lambda: core.loss_denominator(M, how="constant", constant=math.nan),
            "constant is nan with how='constant'",
        ),
        (lambda: core.aggregate(F, M, denominator=math.nan), "denominator is nan"),
        (
            lambda: core.adapt_kl_coef(0.1, math.nan, target=6.0, horizon=1e4, batch_size=4),
            "kl is nan; it must be a number",
        ),
        (
            lambda: core.adapt_kl_coef(0.1, 1.0, target=6.0, horizon=2.0, batch_size=16),
            "batch_size is 16 and horizon is 2.0; batch_size must be below 5 horizon",
        ),
        (lambda: core.masked_whiten(F, M, eps=0.0), "eps is 0.0, and all values are equal"),
        (
            lambda: core.is_clipped(F, F, F[:, :1], M),
            r"got logprobs \(1, 2\) and advantages \(1, 1\), which differ in R",
        ),
        (
            lambda: core.kto(PAIR, PAIR, M[0], PAIR, beta=0.1),
            r"kl_baseline has shape \(2,\); it must be .* one number",
        ),
        (
            lambda: core.bco(PAIR, PAIR, PAIR, PAIR, PAIR[:1], beta=0.1),
            r"shift has shape \(1,\); it must be .* one number",
        ),
        (
            lambda: core.group_relative(torch.tensor([[1, 2]])),
            "group_scores holds torch.int64; it must be a tensor of floating-point numbers",
        ),
        (
            lambda: core.masked_mean(F, torch.tensor([[1, 1]])),
            "mask holds torch.int64; it must be a tensor of bools",
        ),
        (
            lambda: core.zero_masked(F, torch.tensor([[1.0, 1.0]])),
            "mask holds torch.float32; it must be a tensor of bools",
        ),
        (lambda: core.gae(F[:, :0], F[:, :0], M[:, :0]), r"rewards has shape \(1, 0\).* R >= 1"),
        (lambda: core.entropy(F[..., None][..., :0], M), r"logits has shape .* V >= 1"),
        (
            lambda: core.response_logprobs(F[..., None], torch.tensor([[0, 7]]), M),
            "response_ids has ids from 0 to 7; with 1 words in logits they must be from 0 to 0",
        ),
        (lambda: inspect.unwrap(core.check_same_shape)(a=F, b=1.0), "b is 1.0 .of type float."),
        (
            lambda: core.rejection_sample(torch.tensor([[1.0, math.nan]]), beta=1.0),
            "scores has NaN or infinity",
        ),
        (lambda: World.random(28, 1), "vocab_size is 28; it must be from 2 to 27"),
        (lambda: World.random(5, 40), "has more than 1,000,000 sequences"),
        (lambda: World.random(3, 3, seed=2**64), "seed is 18446744073709551616; it must be"),
        (lambda: World.random(3, 3, seed=-1), "seed is -1; it must be"),
        (lambda: World.random(3, 3, reward_scale=math.nan), "reward_scale is nan"),
        (lambda: World.from_reward(("a", "."), 1, lambda words: None), "is None; it must be a num"),
        (lambda: World.random(3, 3).gibbs(beta=math.nan), "beta is nan"),
        (lambda: World.random(3, 3).optimal_values(beta=math.nan), "beta is nan"),
        (lambda: World.random(3, 3).gradient(torch.zeros(7, 3), beta=math.nan), "beta is nan"),
        (
            lambda: World.random(3, 3).probs(torch.zeros(6, 3)),
            r"got S = 7 in this world and logits \(6, 3\), which differ in S",
        ),
        (lambda: World.random(3, 3).groups(torch.zeros(7, 3), 9), "group_size is 9"),
        (lambda: batch().select([]), "it must choose at least one row"),
        (lambda: batch().select([5]), "index does not fit a batch of 1 rows"),
        (lambda: Rollout.concat([]), "rollouts is empty"),
    ],
)
def test_odd_input_ends_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as said:
        call()
    assert "\n" not in str(said.value)


def test_a_batch_of_lists_is_refused_without_the_test_hook():
    spec = importlib.util.spec_from_file_location("plain_rollout", core.rollout.__file__)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    ids = torch.ones(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"old_logprobs is \[\[0.0, 0.0\]\] .*; it must be a ten"):
        plain.Rollout(ids, M, ids, M, [[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"returns is \[1.0\] .*; it must be a tensor"):
        plain.Rollout(ids, M, ids, M, F).with_columns(returns=[1.0])


def batch() -> Rollout:
    ids = torch.ones(1, 2, dtype=torch.long)
    return Rollout(ids, M, ids, M, F)


def test_equal_scores_are_zero_without_eps_too():
    equal = torch.full((2, 3), 0.1)
    assert core.group_relative(equal, eps=0.0).eq(0).all()
    assert core.batch_relative(equal, eps=0.0).eq(0).all()


def test_a_square_that_overflows_counts_nothing_with_coefficient_zero():
    large = torch.tensor([1e30], requires_grad=True)
    loss = core.reward_model_loss(large, large)
    torch.testing.assert_close(loss.item(), math.log(2))
    assert torch.autograd.grad(loss.sum(), large)[0].isfinite().all()


def test_the_checks_keep_a_functions_name_signature_and_text():
    for name in core.__all__:
        function = getattr(core, name)
        if inspect.isfunction(function):
            assert re.match(r"\(\*?\*?\w+: ", str(inspect.signature(function))), name
            assert function.__name__ == name and function.__doc__
