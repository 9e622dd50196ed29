"""Numbers near the ends of float32, and tensors of other formats: what every function of core does with them."""

import inspect
import math

import pytest
import torch

from minirlhf import core
from tests.core.test_extremes import CALLED, FUNCTIONS
from tests.core.test_odd_input import usual

ENDS = (1e20, 3e38, 1e-40, 1e-45, 0.0, 1.0)
LARGEST = torch.finfo(torch.float32).max
# NaN by its docstring if all returns are equal
MAY_BE_NAN = {"policy_gradient.explained_variance"}
# a KL between words that are 3e38 nats apart is at the end of float32, and becomes infinite
MAY_BE_INFINITE = {"kl.exact_kl"}


def floats(given):
    return [n for n, x in given.items() if isinstance(x, torch.Tensor) and x.is_floating_point()]


def drawn(given, trial):
    """The same arguments with numbers from the ends; log-probabilities are at most 0."""
    generator = torch.Generator().manual_seed(trial)
    pool = torch.tensor(ENDS if trial % 2 else [ENDS[trial // 2 % len(ENDS)]])
    for name in floats(given):
        shape = given[name].shape
        x = pool[torch.randint(len(pool), shape, generator=generator)]
        sign = 2.0 * torch.randint(2, shape, generator=generator) - 1
        given = given | {name: -x if "logprobs" in name else x * sign}
    return given


def parts(answer):
    return [torch.as_tensor(x) for x in (answer if isinstance(answer, tuple) else (answer,))]


@pytest.mark.parametrize("key", CALLED)
def test_float32_gives_the_finite_results_of_float64(key):
    function, compared = FUNCTIONS[key], 0
    for trial in range(12):
        given = drawn(usual(function), trial)
        try:
            answer = function(**given)
        except ValueError as error:
            assert str(error).endswith(".")
            continue
        compared += 1
        wide = function(**given | {name: given[name].double() for name in floats(given)})
        for single, double in zip(parts(answer), parts(wide), strict=True):
            single, double = single.double(), double.double()  # of is_clipped: bools
            assert key in MAY_BE_NAN or not single.isnan().any(), given
            fits = double.abs() < LARGEST
            if key in MAY_BE_INFINITE:
                fits = fits & single.isfinite()
            single, double = single[fits], double[fits]
            torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-37)
    assert compared or not floats(usual(function)) or key == "baselines.running_mean"


TWO, PAIR = torch.tensor([[True, True]]), torch.tensor([[1.0, -1.0]])


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1.0, 1e20, 3e38])
def test_whitened_numbers_and_relative_scores_have_no_unit(size):
    # mean 0, variance size^2 (n) or 2 size^2 (n - 1): the results do not depend on the size
    x, half = PAIR * size, PAIR * math.sqrt(0.5)
    close = dict(rtol=1e-4, atol=0)  # 1e-40 has five digits in float32
    torch.testing.assert_close(core.masked_whiten(x, TWO, eps=0.0), PAIR, **close)
    torch.testing.assert_close(core.group_relative(x, eps=0.0), half, **close)
    torch.testing.assert_close(core.batch_relative(x, eps=0.0), half, **close)
    # the returns are 1, -1 and the values 1, 1: var(0, -2) = 1 = var(1, -1)
    explained = core.explained_variance(x.abs(), x, TWO)
    torch.testing.assert_close(explained, torch.tensor(0.0), rtol=0, atol=1e-4)


def test_a_mean_of_large_numbers_is_not_infinite_and_has_a_gradient():
    x = torch.full((1, 2), 3e38, requires_grad=True)
    mean = core.masked_mean(x, TWO)
    assert mean.item() == x[0, 0].item() and mean.dtype == torch.float32
    assert torch.autograd.grad(mean, x)[0].tolist() == [[0.5, 0.5]]
    assert core.leave_one_out(torch.tensor([[3e38, 3e38, 0.0]]))[0, 2] == -x[0, 0]


def test_a_result_beyond_float32_is_infinite():
    assert core.masked_var(PAIR * 3e38, TWO).isposinf()
    assert core.k2(-1e20 * TWO.float(), 0.0 * PAIR, TWO).isposinf().all()


def test_half_precision_is_scaled_as_well():
    # the square of 300 does not fit into float16
    x = (PAIR * 300).half()
    torch.testing.assert_close(core.masked_whiten(x, TWO), PAIR.half(), rtol=1e-3, atol=0)


def test_a_word_that_both_policies_forbid_adds_nothing_to_the_kl():
    least = torch.finfo(torch.float32).min
    logits = torch.tensor([[[0.0, 0.0, least]]])
    other = torch.tensor([[[0.0, 0.0, -math.inf]]])
    assert core.exact_kl(logits, other, TWO[:, :1]).item() == 0


def test_numbers_that_float64_cannot_square_are_refused():
    with pytest.raises(ValueError, match="group_scores holds numbers whose squares do not fit"):
        core.group_relative(PAIR.double() * 1e200)
    assert core.group_relative(PAIR.double() * 1e-200).isfinite().all()  # nothing overflows
    assert core.masked_mean(PAIR.double() * 1e100, TWO) == 0


@pytest.mark.parametrize("key", CALLED)
def test_ordinary_numbers_are_computed_by_the_plain_formula(key):
    function, given = FUNCTIONS[key], usual(FUNCTIONS[key])
    plain = parts(inspect.unwrap(function)(**given))
    assert all(torch.equal(a, b) for a, b in zip(parts(function(**given)), plain, strict=True))


def formats(x):
    """The same numbers in other formats, and a word of the sentence that refuses each."""
    yield x.to_sparse(), "is sparse or packed"
    yield x.to("meta"), "is on the device meta"
    if x.dim():
        yield torch.nested.nested_tensor([x, x]), "is nested"
        yield torch.nested.nested_tensor([x, x], layout=torch.jagged), "is nested"
    if x.is_floating_point():
        yield x.to(torch.complex64), "holds torch.complex64"
        yield x.to(torch.float8_e4m3fn), "holds torch.float8_e4m3fn"
        yield x.to_mkldnn() if x.dim() else x.to_sparse(), "is sparse or packed"
        yield torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "is quantised"
    if x.dtype == torch.long:
        yield x.to(torch.uint16), "holds torch.uint16"


@pytest.mark.filterwarnings("ignore")  # torch says that some formats are a prototype
@pytest.mark.parametrize("key", CALLED)
def test_a_tensor_that_is_not_dense_is_refused_by_name(key):
    function = FUNCTIONS[key]
    given = usual(function)
    for name, x in given.items():
        for other, words in formats(x) if isinstance(x, torch.Tensor) else ():
            with pytest.raises(ValueError, match=rf"^{name} {words}.*; it must be a.*tensor"):
                function(**given | {name: other})


@pytest.mark.filterwarnings("ignore")
def test_a_batch_of_tensors_that_are_not_dense_is_refused():
    ids, mask = torch.ones(1, 2, dtype=torch.long), TWO
    with pytest.raises(ValueError, match="prompt_ids is sparse"):
        core.Rollout(ids.to_sparse(), mask, ids, mask, 0.0 * PAIR)
    with pytest.raises(ValueError, match="returns is on the device meta"):
        core.Rollout(ids, mask, ids, mask, 0.0 * PAIR, columns={"returns": PAIR.to("meta")})
    with pytest.raises(ValueError, match="x is sparse"):
        core.zero_masked(PAIR.to_sparse(), mask)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_ids_of_every_signed_integer_type_are_read(dtype):
    logits, ids = torch.zeros(1, 2, 4), torch.tensor([[1, 3]])
    logprobs = core.response_logprobs(logits, ids.to(dtype), TWO)
    torch.testing.assert_close(logprobs, torch.full((1, 2), -math.log(4)))
