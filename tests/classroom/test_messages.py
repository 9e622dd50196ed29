"""What a checker says: at most 300 characters, shapes first, at most one small case."""

import re

import pytest
import torch

from minirlhf.classroom import Exercise
from minirlhf.classroom.check import EXERCISES
from minirlhf.classroom.exercise import LONGEST, NUMBERS, PADDING


def padded_with_nan(exercise):
    """Whether an exercise has a mask and NaN in its cases."""
    case = exercise.case(torch.Generator().manual_seed(0))
    masked = any(name.endswith("mask") for name in exercise.arguments)
    return masked and any(
        isinstance(x, torch.Tensor) and x.is_floating_point() and bool(x.isnan().any())
        for x in case
    )


PADDED = [name for name, exercise in EXERCISES.items() if padded_with_nan(exercise)]


def raises(*given):
    raise RuntimeError("The size of tensor a must match the size of tensor b. " * 40)


def long_named(*given):
    return type("A" * 400, (), {})()


def answers_to(exercise):
    """Wrong answers that fit every exercise, by name."""
    right = exercise.reference

    def last_only(*given):
        answer = right(*given).clone()
        flat = answer.view(-1)
        flat[-1] = ~flat[-1] if answer.dtype == torch.bool else flat[-1] + 1
        return answer

    def like(change):
        return lambda *given: change(right(*given))

    return {
        "zeros": like(torch.zeros_like),
        "ones": like(torch.ones_like),
        "nan": like(lambda x: torch.full(x.shape, torch.nan)),
        "infinite": like(lambda x: torch.full(x.shape, torch.inf)),
        "negative": like(lambda x: -1 - x.float()),
        "almost": like(lambda x: x.double() + 0.1),
        "last only": last_only,
        "many axes": like(lambda x: x[(None,) * 40]),
        "wrong shape": like(lambda x: x.reshape(-1)[:1, None]),
        "wide": like(lambda x: torch.zeros(300, 300)),
        "wrong kind": like(lambda x: x.long() if x.is_floating_point() else x.float()),
        "complex": like(lambda x: x.to(torch.complex64)),
        "list": lambda *given: [1.0] * 1000,
        "none": lambda *given: None,
        "raises": raises,
        "long name": long_named,
    }


def tensors_in(message):
    """How many numbers each bracketed tensor of a message has."""
    found, depth, start = [], 0, 0
    for i, letter in enumerate(message):
        start = i if letter == "[" and not depth else start
        depth += (letter == "[") - (letter == "]")
        if letter == "]" and not depth:
            found.append(message[start:i].count(",") + 1)
    return found


@pytest.mark.parametrize("name", EXERCISES)
def test_every_message_is_short_and_shows_no_large_tensor(name):
    exercise = EXERCISES[name]
    for what, function in answers_to(exercise).items():
        result = exercise(function)
        assert not result, what
        message = result.message
        assert 10 < len(message) <= LONGEST == 300, what
        assert "\n" not in message and max(tensors_in(message), default=0) <= NUMBERS, what
        if what not in ("raises", "long name", "many axes"):
            assert "[...]" not in message, what


@pytest.mark.parametrize("name", EXERCISES)
def test_a_wrong_number_is_shown_beside_the_right_one(name):
    message = EXERCISES[name](answers_to(EXERCISES[name])["last only"]).message
    if message not in EXERCISES[name].mistakes:
        found = re.search(r"(?:your answer is|is) (\S.*)\. It must be (\S.*)\.$", message)
        assert found and found[1] != found[2]


def made(**changes):
    """An exercise on (3, 40) tensors: twice the numbers that a mask keeps."""
    settings = {
        "name": "doubled",
        "arguments": ("x", "mask", "factor"),
        "case": lambda g: (
            torch.randn(3, 40, generator=g),
            torch.rand(3, 40, generator=g) < 0.5,
            2.0,
        ),
        "reference": lambda x, m, f: torch.where(m, f * x, 0.0),
        "mistakes": {},
    }
    return Exercise(**(settings | changes))


def test_of_a_large_case_only_the_first_differing_entry_is_shown():
    def wrong(x, m, f):
        answer = torch.where(m, f * x, 0.0)
        answer[:, 7] = 5.0
        return answer

    message = made()(wrong).message
    assert re.fullmatch(
        r"for x = \S+; mask = (True|False); factor = 2, at \[0, 7\] your answer is 5\. "
        r"It must be \S+\.",
        message,
    )


def test_the_smallest_failing_case_is_shown():
    def case(g):
        size = int(torch.randint(2, 11, (), generator=g))
        return (torch.ones(size, size), torch.ones(size, size, dtype=torch.bool), 2.0)

    smallest = (torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), 2.0)
    exercise = made(case=case, edges=(smallest,))
    assert exercise(lambda x, m, f: x).message == (
        "for x = [[1]]; mask = [[True]]; factor = 2, your answer is [[1]]. It must be [[2]]."
    )


def test_numbers_that_differ_in_a_late_digit_are_shown_apart():
    exercise = made(case=lambda g: (torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), 2.0))
    message = exercise(lambda x, m, f: f * x + 2e-4).message
    assert message.endswith("your answer is [[2.0002, 2.0002]]. It must be [[2, 2]].")


def test_shapes_come_before_values():
    message = EXERCISES["td_error"](lambda r, v, m, g: torch.full((3, 5), torch.nan)).message
    assert message == "the answer's shape is (3, 5). It must be (3, 4)."


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("a\n  b"), "doubled raised ValueError: a b"),
        (ValueError("x" * 161), f"doubled raised ValueError: {'x' * 154} [...]"),
    ],
)
def test_an_error_of_the_student_is_shortened(error, said):
    def raises(*given):
        raise error

    assert made()(raises).message == said


def tries_of_every_response(right, step_mask, tries_right, count):
    return tries_right.view(len(right), count)


def missing_steps_are_wrong(right, step_mask, tries_right, count):
    pairs, tries = torch.full((len(right), 2), -1), iter(tries_right.split(count))
    for i, wrong in enumerate(~right):
        if wrong.any():
            pairs[i] = torch.stack([wrong.int().argmax(), next(tries).int().argmax()])
    return pairs


def a_place_that_is_missing(right, step_mask, tries_right, count):
    return tries_right[len(right) * count]


@pytest.mark.parametrize(
    "function", [tries_of_every_response, missing_steps_are_wrong, a_place_that_is_missing]
)
def test_an_error_that_comes_of_wrong_sizes_says_what_the_sizes_are(function):
    message = EXERCISES["pairs_of"](function).message
    assert message.startswith("pairs_of raised ")
    assert message.endswith(
        ". Only responses with a wrong step have tries, `count` for each. "
        "Where step_mask is false there is no step, so none is wrong."
    )


def test_a_forgotten_keepdim_is_named():
    def forgot(tool, rewards, ref_second, beta):
        values = beta * (ref_second.log() + rewards / beta).logsumexp(-1)
        return values - (tool * values).sum(1)

    message = EXERCISES["luck_of_a_result"](forgot).message
    assert message.startswith("luck_of_a_result raised RuntimeError: ")
    assert message.endswith("Keep it as (F, 1): sum over dimension 1 with keepdim=True.")


def test_a_switch_without_a_second_dimension_is_named():
    def adapted_layer(x, weight, down, up, alpha, on):
        return x @ weight.T + on * alpha / len(down) * (x @ down.T @ up.T)

    message = EXERCISES["adapted_layer"](adapted_layer).message
    assert message.startswith("adapted_layer raised RuntimeError: ")
    assert message.endswith("the B of `on` meets the `out` of (B, out).")


@pytest.mark.parametrize(
    "wrong, end",
    [
        (lambda x, m, f: x.no_such_name, "'no_such_name'"),
        (lambda x, m, f: x @ x.double().T, "double"),
        (lambda x, m, f: float("three"), "'three'"),
    ],
)
def test_an_error_that_has_nothing_to_do_with_sizes_says_nothing_of_them(wrong, end):
    message = made(sizes="There are three rows.")(wrong).message
    assert message.startswith("doubled raised ") and message.endswith(end)
    assert "three rows" not in message


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, m, f: x + torch.ones(7),
        lambda x, m, f: x.view(-1, 7),
        lambda x, m, f: x[1000],
        lambda x, m, f: x.sum(5),
        lambda x, m, f: list(zip(x, range(99), strict=True)),
        lambda x, m, f: [a for a, b in x],
    ],
)
def test_an_error_about_sizes_says_what_the_sizes_are(wrong):
    message = made(sizes="There are three rows.")(wrong).message
    assert message.startswith("doubled raised ") and message.endswith(". There are three rows.")


def test_a_long_error_about_sizes_is_cut_and_the_sizes_are_not():
    message = made(sizes="There are three rows.")(raises).message
    assert len(message) <= LONGEST and message.endswith(" [...]. There are three rows.")


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_padding_masked_by_multiplication_is_named(name, seed):
    exercise = EXERCISES[name]

    def by_multiplying(*given):
        """The right answer, to which padding adds 0 times what it holds."""
        sized = [x for x in given if torch.is_tensor(x) and x.is_floating_point() and x.dim() >= 2]
        answer = exercise.reference(*given)
        nothing = sum((0 * x).sum() for x in sized)
        return answer + nothing if answer.is_floating_point() else answer.float() + nothing

    message = exercise(by_multiplying, seed=seed).message
    assert message == f"the mask comes too late, or by multiplication. {PADDING}"


def test_the_exercises_with_nan_padding_are_these():
    assert set(PADDED) >= {"td_error", "gae_advantages", "ppo_loss", "kl_shaped_rewards"}
    assert set(PADDED) <= {n for n, e in EXERCISES.items() if "mask" in " ".join(e.arguments)}


def shifted(x):
    return torch.cat([x[:, 1:], torch.zeros(len(x), 1)], 1)


def looped(rewards, values, mask, gamma, lam, *, used=None):
    """GAE with a loop, padding masked by multiplication; `used` is the gamma that it uses."""
    gamma = gamma if used is None else used
    rewards, values = rewards * mask, values * mask
    deltas, out, total = rewards + gamma * shifted(values) - values, [], 0.0
    for t in reversed(range(mask.shape[1])):
        total = deltas[:, t] + gamma * lam * total
        out.insert(0, total)
    return torch.stack(out, 1) * mask


@pytest.mark.parametrize(
    "name, written",
    [
        ("td_error", lambda r, v, m, g: (r + g * shifted(v * m) - v) * m),
        ("gae_advantages", looped),
        (
            "ppo_loss",
            lambda n, o, a, m, e: (
                -torch.minimum((n - o).exp() * a, (n - o).exp().clamp(1 - e, 1 + e) * a) * m
            ),
        ),
        (  # torch.where on the result: the value is right, the gradient is NaN
            "ppo_loss",
            lambda n, o, a, m, e: torch.where(
                m, -torch.minimum((n - o).exp() * a, (n - o).exp().clamp(1 - e, 1 + e) * a), 0.0
            ),
        ),
        ("policy_gradient_loss", lambda p, r, m: -(r * (p * m).sum(1)).mean()),
        ("baseline_loss", lambda p, r, v, m: -((r[:, None] - v[:, :-1]) * p * m).sum(1).mean()),
        (  # the value is right, the gradient is NaN
            "sft_loss",
            lambda x, i, m: (
                -torch.where(m, x.log_softmax(-1).gather(-1, i[..., None])[..., 0], 0.0).sum()
                / m.sum()
            ),
        ),
        (
            "pull_back_loss",
            lambda n, o, a, m, e, k: (
                m
                * -torch.minimum(
                    (r := (n - o).exp()) * a,
                    ((1 + k) * r.clamp(1 - e, 1 + e) - k * r) * a,
                )
            ),
        ),
    ],
)
def test_what_everyone_does_first_with_padding_is_named(name, written):
    assert EXERCISES[name](written).message.endswith(PADDING)


def test_a_mistake_is_named_also_when_padding_is_masked_by_multiplication():
    message = EXERCISES["gae_advantages"](lambda *x: looped(*x, used=1.0)).message
    assert message.startswith("gamma is not used.")


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_values_that_are_not_shifted_are_named(seed):
    def td_error(r, v, m, g):
        r, v = torch.where(m, r, 0.0), torch.where(m, v, 0.0)
        return r + g * v - v

    assert EXERCISES["td_error"](td_error, seed=seed).message.startswith("V is not shifted")


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_forgotten_gamma_in_gae_is_named(seed):
    def gae(r, v, m, g, lam):
        r, v = torch.where(m, r, 0.0), torch.where(m, v, 0.0)
        return looped(r, v, m, g, lam, used=1.0)

    message = EXERCISES["gae_advantages"](gae, seed=seed).message
    assert message.startswith("gamma is not used.")


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_padding_that_counts_in_grpos_mean_is_named(seed):
    def grpo_loss(logprobs, old_logprobs, group_scores, mask, eps):
        centred = group_scores - group_scores.mean(1, keepdim=True)
        advantages = (centred / (group_scores.std(1, keepdim=True) + 1e-4)).view(-1, 1)
        logprobs, old_logprobs = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs))
        ratio = (logprobs - old_logprobs).exp()  # 1 at padding
        clipped = ratio.clamp(1 - eps, 1 + eps)
        losses = -torch.minimum(ratio * advantages, clipped * advantages)
        return (losses.sum(1) / mask.sum(1)).mean()

    message = EXERCISES["grpo_loss"](grpo_loss, seed=seed).message
    assert message.startswith("padding counts. ") and "ratio is 1 and its loss is -A" in message


@pytest.mark.parametrize(
    "end, said",
    [
        (lambda losses, mask: losses.sum(), "all losses are added up"),
        (lambda losses, mask: (losses.sum(1) / mask.sum(1)).mean(), "length bias is still there"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_what_is_left_out_of_the_colleagues_divisor_is_named(end, said, seed):
    def colleagues_loss(logprobs, group_scores, mask):
        advantages = (group_scores - group_scores.mean(1, keepdim=True)).view(-1, 1)
        return end(-advantages * torch.where(mask, logprobs, 0.0), mask)

    assert said in EXERCISES["colleagues_loss"](colleagues_loss, seed=seed).message


@pytest.mark.parametrize("name", ["group_advantages", "grpo_loss", "pass_at_k", "colleagues_loss"])
def test_the_messages_of_lesson_11_name_no_method_that_it_has_not_explained(name):
    for message in EXERCISES[name].mistakes:
        assert not re.search("DAPO|GSPO|CISPO|RLOO", message)


@pytest.mark.parametrize("divisor, passes", [(1, True), (6, True), (24.0, True), (-6, False)])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_colleagues_loss_may_be_divided_by_any_positive_constant(divisor, passes, seed):
    exercise = EXERCISES["colleagues_loss"]
    result = exercise(lambda *x: 6 * exercise.reference(*x) / divisor, seed=seed)
    assert result.passed == passes


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_pull_that_fails_for_alpha_above_1_is_named(seed):
    def pull_back_loss(logprobs, old_logprobs, advantages, mask, eps, alpha):
        new, old, a = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages))
        ratio = (new - old).exp()
        held = ratio.clamp(1 - eps, 1 + eps)
        line = held * a - alpha * a.abs() * (ratio - held).abs()
        return -torch.minimum(ratio * a, line)

    message = EXERCISES["pull_back_loss"](pull_back_loss, seed=seed).message
    assert message.startswith("this is right for alpha up to 1.")


@pytest.mark.parametrize(
    "changed",
    [
        lambda loss, beyond, held, a, k: loss + k * a.abs() * beyond.abs(),
        lambda loss, beyond, held, a, k: loss + k * beyond.abs(),
        lambda loss, beyond, held, a, k: loss + k * a * beyond,
        lambda loss, beyond, held, a, k: -held * a + k * a.abs() * beyond.abs(),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_pull_at_every_ratio_outside_the_range_names_the_two_cases(changed, seed):
    def pull_back_loss(logprobs, old_logprobs, advantages, mask, eps, alpha):
        new, old, a = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages))
        ratio = (new - old).exp()
        held = ratio.clamp(1 - eps, 1 + eps)
        loss, beyond = -torch.minimum(ratio * a, held * a), ratio - held
        return changed(loss, beyond, held, a, alpha)

    message = EXERCISES["pull_back_loss"](pull_back_loss, seed=seed).message
    assert "A > 0 and ratio < 1 - eps must be unchanged, and A < 0 and ratio > 1 + eps" in message
