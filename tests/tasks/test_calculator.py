import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.models.forward import encode
from minirlhf.rewards.rules import right_with_calculator
from minirlhf.tasks import calculator
from minirlhf.tasks.arithmetic import split_of
from minirlhf.tasks.calculator import (
    FORMS,
    OUTCOMES,
    Calculator,
    agent_tokenizer,
    answer_of,
    demonstrations,
    outcome,
    problems,
)
from minirlhf.tasks.conversations import in_parts

TOKENIZER = agent_tokenizer()


def ids(text):
    return [TOKENIZER.get_vocab()[symbol] for symbol in text]


def text(ids):
    return "".join(TOKENIZER.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(
    "response, result",
    [
        ("[47*83]", "{3901}"),
        ("[7*3]", "{21}"),
        ("[0*9]", "{0}"),
        ("[1*2]{2}[47*83]", "{3901}"),  # the last call counts
        ("[[47*83]", "{3901}"),
        ("[470*83]", "{!}"),  # asks for too much
        ("[47*]", "{!}"),
        ("[47*83+5]", "{!}"),
        ("[47+83]", "{!}"),
        ("[]", "{!}"),
        ("47*83]", "{!}"),  # ends a call that never began
        ("[47*83}]", "{!}"),
    ],
)
def test_the_calculator_answers_every_call(response, result):
    assert text(Calculator(TOKENIZER).run(ids(response))) == result


def test_an_unknown_id_inside_a_call_is_refused():
    eos = TOKENIZER.eos_token_id
    assert text(Calculator(TOKENIZER).run([*ids("[4"), eos, *ids("*8]")])) == "{!}"


@given(st.integers(0, 99), st.integers(0, 99))
def test_the_calculator_multiplies(a, b):
    assert text(Calculator(TOKENIZER).run(ids(f"[{a}*{b}]"))) == f"{{{a * b}}}"


def test_an_erring_calculator_changes_one_digit_in_its_share_of_calls():
    def results(rate, seed=0):
        erring = Calculator(TOKENIZER, error_rate=rate, seed=seed)
        return [text(erring.run(ids("[47*83]"))) for _ in range(1000)]

    assert set(results(0.0)) == {"{3901}"}
    wrong = [r for r in results(0.2) if r != "{3901}"]
    assert 160 <= len(wrong) <= 240  # 200 expected, standard deviation 12.6
    assert all(sum(a != b for a, b in zip(r, "{3901}", strict=True)) == 1 for r in wrong)
    assert results(0.2) == results(0.2) != results(0.2, seed=1)
    with pytest.raises(ValueError, match="error_rate.*between 0 and 1"):
        Calculator(TOKENIZER, error_rate=1.1)


def test_a_refused_call_never_gets_a_wrong_result():
    assert text(Calculator(TOKENIZER, error_rate=1.0).run(ids("[47]"))) == "{!}"


def test_a_tokenizer_without_the_symbols_is_refused():
    from minirlhf.tasks.arithmetic import step_tokenizer

    with pytest.raises(ValueError, match="as one token"):
        Calculator(step_tokenizer())


def test_problems_are_products_of_two_digit_numbers_with_one_more_operation():
    found = problems("train", 300)
    assert len({p.expression for p in found}) == 300
    assert {form_of(p.expression) for p in found} == set(FORMS)
    for p in found:
        assert p.answer == eval(p.expression) >= 1
        assert split_of(p.expression) == "train"
    assert not {p.expression for p in problems("test", 300)} & {p.expression for p in found}
    with pytest.raises(ValueError, match="train, val or test"):
        problems("held out", 1)


def form_of(expression):
    a, b = calculator.product_in(expression).split("*")
    assert 10 <= int(a) <= 99 and 10 <= int(b) <= 99
    rest = expression.replace(f"{a}*{b}", "a*b")
    return "c+a*b" if rest.endswith("a*b") else "a*b" + rest[3] + "c"


def test_demonstrations_hold_the_shares_and_are_true_to_the_calculator():
    rows = demonstrations(problems("train", 2000), (0.3, 0.1, 0.6), seed=1)
    kinds = Counter()
    for row in rows:
        written = "".join(row["completion"][a:b] for a, b in row["completion_spans"])
        kind = outcome(row["prompt"][:-1], written)
        kinds[kind] += 1
        right = right_with_calculator([row["prompt"]], [row["completion"]]) == [1.0]
        assert right == (kind != "wrong call")
        if kind != "no call":  # the tool would have written these tokens
            call, result = row["completion"].split("]")[0] + "]", row["completion"].split("]")[1]
            assert result.startswith(text(Calculator(TOKENIZER).run(ids(call))))
    # 600, 200 and 1,200 expected, standard deviations 20, 13 and 22
    assert abs(kinds["right call"] - 600) < 80 and abs(kinds["wrong call"] - 200) < 54
    assert kinds["right call"] + kinds["wrong call"] + kinds["no call"] == 2000


def test_nothing_is_learned_on_the_calculators_tokens():
    rows = demonstrations(problems("train", 50), (1.0, 0.0, 0.0))
    batch = encode(TOKENIZER, rows["prompt"], in_parts(rows[:], "completion"))
    for i, row in enumerate(rows):
        written = text(batch.response_ids[i][batch.action_mask[i]].tolist())
        call, _, answer = row["completion"].replace("]", "]|").replace("}", "|").split("|")
        assert written == call + answer + TOKENIZER.eos_token


def test_shares_must_sum_to_one():
    with pytest.raises(ValueError, match="their sum is 1"):
        demonstrations(problems("train", 1), (0.3, 0.3, 0.3))


@pytest.mark.parametrize(
    "written, expected",
    [
        ("[47*83]3906", "right call"),
        ("[83*47]3906", "right call"),
        ("[47*83]3906[47*83]1", "right call"),
        ("[47*38]1791", "wrong call"),
        ("[47*83]3906[1*1]2", "wrong call"),
        ("[470*83]1", "refused call"),
        ("47*83]1", "refused call"),
        ("[]", "refused call"),
        ("[47*8", "no end of call"),
        ("[47*83]39[", "no end of call"),
        ("~3906", "no call"),
        ("3906", "no call"),
        ("", "no call"),
        ("[47*83]{3901}3906", "forged"),  # the policy wrote the result itself
        ("{3901}3906", "forged"),
    ],
)
def test_each_outcome_is_named(written, expected):
    assert expected in OUTCOMES
    assert outcome("47*83+5", written) == expected
    assert outcome("5+47*83", written) == expected


@pytest.mark.parametrize(
    "response, answer",
    [
        ("[47*83]{3901}3906", 3906),
        ("~3906", 3906),
        ("3906", 3906),
        ("[47*83]{3901}", None),
        ("[47*83]{3901}39+06", None),
        ("[47*83", None),
        ("", None),
        ("[47*83]{!}12", 12),
    ],
)
def test_the_answer_stands_after_the_last_result(response, answer):
    assert answer_of(response) == answer


@given(st.text(calculator.SYMBOLS, max_size=12))
def test_every_text_has_an_outcome_and_a_reward(written):
    assert outcome("47*83+5", written) in OUTCOMES
    assert right_with_calculator(["47*83+5="], [written])[0] in (0.0, 1.0)


def test_a_changed_digit_is_another_digit():
    draw = random.Random(0)
    for _ in range(200):
        changed = calculator.one_digit_changed("10*90", draw)
        assert sum(a != b for a, b in zip(changed, "10*90", strict=True)) == 1
        assert "*" in changed and "0" != changed[0]
