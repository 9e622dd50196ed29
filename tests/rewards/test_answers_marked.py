"""Answers that testers of the reward wrote: the wrong ones are not paid, the right ones are."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minirlhf.rewards.answers import answer_reward

MARBLES = (
    "Janet has 36 marbles. She gives a third of the marbles to Tom. How many marbles does "
    "Janet have left?"
)
TRAIN = (
    "A train travels 120 miles in 2 hours and then 30 miles in 30 minutes. What is its "
    "average speed in miles per hour?"
)
VALUE = "What is the value of x^2 + 1 when x = 3? Give the exact answer."
MINUTES = "How many minutes are there between 9:15 am and 10:45 am? Bob thinks 80, Ann thinks 95."
CLASS = "In a class, 5 of 20 students are left handed. What fraction is left handed?"
ROOTS = "Find all real numbers x with x^2 = 9."

WRONG = [  # (question, right answer, responses that are not paid)
    (MARBLES, '24', [
        '#### 24 less than 36', '#### 24 dozen', '#### -24', '#### 24.0.0', '#### 24,5', '#### 2 4',
        '#### 24 24', '#### 24 or 25', '#### 24\n#### 25', '#### 25\n24', '#### 24 - 1', '#### 24k',
        '#### 24K', '#### 24M', '#### 24 million', '#### 24th', '#### 24!', '#### 24^2', '#### 24²',
        '#### √24', '#### 24 marbles squared', '#### 24 third', '#### 24 toms', '#### 24 Toms',
        '#### 24 gives', '#### 24 per marble', '#### 24/1 - 1', '#### 24 (wrong)', '#### 24?',
        '#### 24...', '#### 24…', '#### ~24', '#### ≈24', '#### <24', '#### ≥ 24', '#### 24+',
        '#### 0x18', '#### 24e1', '#### 24 e1', '#### 24_8', '#### 24₈', '#### 24 in base 8',
        '#### 24 mod 7', '#### 24:00', '#### 24-25', '#### 24–25', '#### 24±1',
        '\\boxed{24}\\boxed{25}', '\\boxed{25} = \\boxed{24}', 'so \\boxed{24} is what Tom has',
        '\\boxed{24}/2', '$\\boxed{24}^2$', '$\\boxed{24}!$', '$-\\boxed{24}$', '$2\\cdot\\boxed{24}$',
        '$\\frac{1}{\\boxed{24}}$', '$\\sqrt{\\boxed{24}}$', '= - \\boxed{24}', '\\boxed{24}\\cdot 2',
        '\\boxed{24}{,}000', '\\boxed{24},000', '\\boxed{24}.5', '\\boxed{24} 000',
        '\\boxed{24} million', '\\boxed{24} more than Tom', '\\boxed{24}. Tom: 24. Janet: 25.',
        '\\boxed{24}? No', 'If all goes wrong it is \\boxed{24}', 'It is false that it is \\boxed{24}',
        'He answered \\boxed{24}', '36 - \\boxed{24}', '36 = 12 + \\boxed{24}', 'x \\neq \\boxed{24}',
        'x \\ne \\boxed{24}', 'x \\not= \\boxed{24}', 'x \\geq= \\boxed{24}', 'x /= \\boxed{24}',
        'x += \\boxed{24}', 'x ~= \\boxed{24}', 'x \\approx \\boxed{24}', 'x ≟= \\boxed{24}',
        'The answer is 24 less than 36.', 'The answer is 24 for Tom.',
        'The answer is 24 marbles for Tom', 'The answer is not 24.',
        'The answer is 24 if Tom is nice.', 'The answer is 24, or so.',
        'The answer is 24 because I guess. Actually it is 12.', 'The answer is 24, since 36 - 12 = 25',
        'The answer is at most 24.', 'The answer is 36 - 24.', 'The answer is 24 and 12.',
        'The answer is 24, 12.', 'The answer is 24; 12.', 'The answer is 24\n12',
        'The answer is 24 * 1/2', 'The answer is a third of 24.', 'The answer is Tom: 24',
        'The answer is Tom has 24', 'The answer is: Tom gives 24',
        'The answer is: Tom will have 24 marbles left', 'The answer is: the third Tom is 24',
        'Wrong answer: 24', "Bob's answer is 24", 'The answer is left = 24', 'The answer is 24 ̶',
        'The answer is 2̶4̶', 'The answer is ~~24~~', '#### ~~24~~', 'The answer is ~~25~~ 24 26',
        'The answer is 24\u200b5', 'The answer is 24·5', 'The answer is 24⃣5', '#### 24½', '#### ²24',
        '#### 24¼', '#### 24·10', '#### 24’', '#### 24"', "#### 24'", '#### (24)(2)', '#### [24, 25]',
        '#### {24}{25}', '#### |24|', '#### ⌊24.9⌋', '#### 24 % 7', '#### 24//5', '#### 24**2',
        '<answer>24</answer><answer>25</answer>', '<answer>25</answer> 24',
        '<answer>24</answer> is wrong', '<answer>24</answer> is what I would say if I were wrong',
        '<answer>24 to 25</answer>', '<answer>24\n25</answer>', 'I do not think <answer>24</answer>',
        'The wrong one: <answer>24</answer>', '<answer>36-12=25</answer> #### 24 no',
        '<answer>24<b>5</b></answer>', 'Not this: #### 24', 'wrong:\n#### 24',
        'The following is false.\n#### 24', 'Do not write\n#### 24',
        '#### \\textminus{}24', '\\boxed{\\textminus{}24}', '\\boxed{\\textless{}24}', '\\textpm{}24',
        '\\boxed{\\mathring{24}}', '\\boxed{\\text{}24}', '\\boxed{\\mathbin{}24}',
        'One less is \\boxed{24}', 'The opposite is \\boxed{24}', 'Two more are\n#### 24',
        'Anything except is \\boxed{24}', '2x = \\boxed{24}', '$-x = \\boxed{24}$', 'x/2 = \\boxed{24}',
    ]),
    (TRAIN, '60', [
        '#### 60 mph faster', 'The answer is 60 hours per mile.',
    ]),
    (VALUE, '10', [
        '#### x = 10', '#### y = 10', 'The answer is x = 10', '\\boxed{x=10}', '#### 10x', '#### 10 x',
        '#### x^2 = 10', 'The answer is x^2 = 10', '#### x + 10',
    ]),
    (MINUTES, '90', [
        '#### 90 am', '#### Bob thinks 90', 'The answer is Bob: 90', 'The answer is: Ann thinks 90',
        '#### 90 thinks', '#### 90 Bobs',
    ]),
    (CLASS, '1/4', [
        '#### 1:4', '#### 1/4/1', '#### 25%', '#### 1/4 students', '#### 14', '#### 1 1/4',
        '#### 1/(4)2',
    ]),
    (ROOTS, '-3, 3', [
        '#### 3', '#### 3, 3', '#### -33', '#### -3 3',
    ]),
    (ROOTS, '\\{-3,3\\}', [
        '\\boxed{-3}',
    ]),
    (ROOTS, '3', [
        '#### x = ±3', '#### ±3', '#### +-3', '#### 3 or -3',
    ]),
    ('Who won?', 'Paris', [
        '#### not Paris',
    ]),
    ('Who won?', 'B', [
        '#### (A) or (B)',
    ]),
    ('Pick A, B, C or D', 'B', [
        '\\boxed{A, B}', 'The answer is A. B', 'The answer is AB', 'The answer is not (B)',
    ]),
    ('Pick', '(1,2)', [
        '#### (1,2]', '#### (12)', '#### (1, 2, 3)',
    ]),
    ('Pick', '1,2', [
        '#### 12',
    ]),
    ('Pick', 'x^2', [
        '#### x2',
    ]),
    ('Pick', 'x_1', [
        '#### x1',
    ]),
    ('Pick', '-x', [
        '#### x',
    ]),
    ('Pick', '2x', [
        '#### 2 X',
    ]),
    ('Pick', '\\frac{1}{x}', [
        '#### 1x',
    ]),
    ('Pick', 'no', [
        '#### No, yes',
    ]),
    ('Yes or no?', 'no', [
        '#### yes and no',
    ]),
]  # fmt: skip
RIGHT = [  # responses to MARBLES whose answer is 24
    '#### 24', '#### 24.', '####24', '#### 24 marbles', '#### **24**', '#### $24$', '#### 24.00',
    '#### 24/1', '#### 48/2', '#### 24 marbles left', 'The answer is 24.', 'The answer is **24**.',
    'The answer is 24 marbles.', 'The answer is $24$.', 'The answer is: 24', 'Answer: 24',
    '**Answer:** 24', '**Answer: 24**', '### Answer\n24', '### Final Answer\n\n24',
    '## Answer: 24', 'Final answer: 24', 'So the answer is 24.', 'Therefore, the answer is 24.',
    'Thus, the final answer is \\boxed{24}.', '\\boxed{24}', '$\\boxed{24}$', '$$\\boxed{24}$$',
    '\\[\\boxed{24}\\]', '\\(\\boxed{24}\\)', 'Janet has \\boxed{24} marbles left.',
    'The answer is $\\boxed{24}$ marbles.', 'Therefore, Janet has $\\boxed{24}$ marbles left.',
    '\\boxed{24 \\text{ marbles}}', '\\boxed{24\\ \\text{marbles}}', '\\boxed{\\text{24 marbles}}',
    '$36-12=\\boxed{24}$', '$36 - 12 = \\boxed{24}$.', '<answer>24</answer>',
    '<answer> 24 </answer>', '<answer>24 marbles</answer>', '<answer>\n24\n</answer>',
    '<think>36-12</think>\n<answer>24</answer>', '<think>hm</think> The answer is 24.',
    '<answer>\\boxed{24}</answer>', '<answer>The answer is 24.</answer>',
    'The correct answer is 24.', 'The final answer is 24.', 'Hence, the answer is 24.',
    'My answer is 24.', 'Our final answer is 24', '36 - 12 = 24\nThe answer is 24',
    'Tom gets 36/3 = 12 marbles. Janet has 36 - 12 = <<36-12=24>>24 marbles left.\n#### 24',
    'Janet gives 12 to Tom.\n\nSo she has 24 left.\n\nAnswer: 24 marbles', 'answer = 24',
    'Answer is 24', 'ANSWER: 24', 'Final Answer: $24$',
    'Final Answer: The final answer is $24$. I hope it is correct.',
    'The answer is: **24 marbles**', '#### 24\n', '#### 24\n\n', 'A: 24', 'A: The answer is 24.',
    'So, the answer is: 24.', '1. 36/3 = 12\n2. 36 - 12 = 24\n\nThe answer is 24.',
    '**Final Answer**\n\n$$\\boxed{24}$$', '**Final Answer:** \\boxed{24}',
    '### Final Answer:\n\\boxed{24}', 'Step 2: 36 - 12 = 24. The answer is 24.',
]  # fmt: skip
GIVEN_UP = [  # the same, not in an accepted form: other words, or not a plain number
    '#### Janet has 24 marbles left.', '<answer>Janet has 24 marbles left.</answer>',
    'The answer would be 24', 'The answer is twenty-four (24).', 'The answer is 24 (twenty-four).',
    'Result: 24', 'The answer is 24!', '➡ The answer is 24',
    'The answer is 24, because 36 - 12 = 24.', 'The answer is 24 marbles, since 36 - 12 = 24.',
    '\\boxed{(24)}', '“24”', 'So 24', 'The answer is exactly 24',
]  # fmt: skip
OTHER_RIGHT = [  # (right answer, responses)
    ("1000", ["#### 1,000", "#### 1000.0", "#### $1,000", r"\boxed{1{,}000}", r"\boxed{\$1,000}"]),
    ("1/2", ["#### 0.5", "#### .5", r"\boxed{\frac12}", r"\boxed{\dfrac{1}{2}}", r"\boxed{\frac{2}{4}}"]),
    ("-3", ["#### -3", "#### \u22123", r"\boxed{-3}", "The answer is -3.", "The answer is **-3**."]),
    ("(3,4)", [r"\boxed{(3, 4)}", r"\boxed{\left(3,4\right)}", "#### (3, 4)", "The answer is (3, 4)."]),
    ("B", ["The answer is B.", "The answer is (B).", r"\boxed{\text{B}}", "Answer: B)", "<answer>B</answer>"]),
    ("24", [r"4! = \boxed{24}", r"$\theta = \boxed{24}$", r"x =\boxed{24}", r"\[\boxed{24}\]"]),
]  # fmt: skip
UNIT_IGNORED = [  # the unit is another one than the question asks for, and the value is right
    (MARBLES, "24", "#### 24 hours"), (MARBLES, "24", "#### 24%"), (TRAIN, "60", "#### 60 km/h"),
    (MINUTES, "90", "#### 90 hours"), (CLASS, "1/4", "#### 1/4%"),
]  # fmt: skip


@pytest.mark.parametrize("question, right, responses", WRONG, ids=str)
def test_a_wrong_or_unclear_answer_is_not_paid(question, right, responses):
    paid = [text for text in responses if answer_reward([question], [text], answer=[right])[0]]
    assert paid == []


def test_a_right_and_marked_answer_is_paid():
    for right, responses in [("24", RIGHT), *OTHER_RIGHT]:
        unpaid = [x for x in responses if not answer_reward([MARBLES], [x], answer=[right])[0]]
        assert unpaid == []


def test_a_right_answer_in_another_form_is_not_paid():
    assert [x for x in GIVEN_UP if answer_reward([MARBLES], [x], answer=["24"])[0]] == []


@pytest.mark.parametrize("question, right, text", UNIT_IGNORED, ids=str)
def test_the_unit_is_ignored(question, right, text):
    assert answer_reward([question], [text], answer=[right]) == [1.0]


LINES_ABOVE = [
    ("Do not write", 0.0), ("The answer is 23 or", 0.0), ("36 -", 0.0), ("1/", 0.0), ("x >", 0.0),
    ("6 ×", 0.0), ("6 ÷", 0.0), ("6 ^", 0.0), ("6 \uff0b", 0.0), ("6 ⊕", 0.0), (r"$6 \times$", 0.0),
    (r"x \geq", 0.0), ("x ≥", 0.0), ("x >=", 0.0), ("x !=", 0.0), ("x =", 1.0), ("4! =", 1.0),
    (r"A = 6\pi", 1.0), ("| a | 24 |", 1.0), ("24 ∎", 1.0), ("She needs 24 more dollars", 1.0),
    ("This is wrong.", 0.0), ("half of", 0.0), ("So", 1.0), ("---", 1.0), ("**Total**", 1.0),
    ("If he buys 4, he pays 4 * 6 = 24", 1.0), ("He has 36 - 12 = 24 marbles of glass", 1.0),
]  # fmt: skip


@pytest.mark.parametrize("above, paid", LINES_ABOVE)
def test_the_line_above_a_mark_may_not_deny_or_change_it(above, paid):
    assert answer_reward([MARBLES], [f"{above}\n#### 24"], answer=["24"]) == [paid]


def test_thinking_that_never_ends_gives_no_answer():
    assert answer_reward(["q"], [r"<think> so it is \boxed{24}"], answer=["24"]) == [0.0]


MORE = ["#### 24 a day", "24 km", "12 + 12 = 24", r"So \boxed{24}", "Ans: **24**"]
ACCEPTED = [form for form in RIGHT + MORE if "24" in form]


@settings(max_examples=60)
@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from(ACCEPTED))
def test_no_accepted_form_with_another_number_is_paid(n, m, form):
    assume(n != m)
    response = form.replace("24", str(m))
    assert answer_reward([MARBLES] * 2, [response] * 2, answer=[n, m]) == [0.0, 1.0]
    last = form.rsplit("24", 1)  # only the last number counts
    assert answer_reward([MARBLES], [str(m).join(last)], answer=[n]) == [0.0]
