"""The words of the question beside a number, the forms of an answer, and odd completions."""

import pytest

from minirlhf.rewards.answer_numbers import parse_number
from minirlhf.rewards.answers import answer_reward, extract_answer, same_answer

SHOP = (
    "Tom has 5 boxes of apples. He sells 2 pairs and 3 dozens, in thirds, 4 times, and has 6 less. "
    "He sings backwards and fails a square test, for example. How many apples does he have left?"
)

NOT_PAID = [  # (a response to SHOP, what it must not be paid for)
    *((f"The answer is 5 {word}", 5) for word in (
        "pears", "pairs", "pair", "dozens", "dozen", "thirds", "times", "less", "does", "backwards",
        "square", "oops", "gross", "millones", "am", "pm", "PM", "a.m.", "mil", "k", "m5", "fold",
        "per person", "per box", "per apple", "a box", "each", "apples and", "apples per box",
        "boxes 6", "/h", "per s", "or", "not", "of them",
    )),
    ("5am", 5), ("5pm", 5), ("5 m", 5000), ("5 pm.", 5), ("It starts at 5 pm.", 5),
    ("xy = 5", 5), ("ab = 5", 5), ("xyz = 5", 5), ("x y = 5", 5), ("a b is 5", 5), ("sin x is 1", 1),
    ("x! = 6", 6), ("x!\n= 6", 6), ("2x\n= 6", 6), ("2x.\n= 6", 6), ("x^2.\n= 4", 4), ("x >\n42", 42),
    ("five = 6", 6), ("#### five = 6", 6), ("#### 5+6=12", 12), ("#### 2 * 3 = x = 12", 12),
    ("#### x = 42", 42), ("#### = 42", 42), ("#### 5:", 5), ("#### 5;", 5), ("#### \"5'", 5),
    ("#### 5\\!6", 56), ("5\\! 6", 56), ("41\n42", 42), ("41\n\n42", 42), ("41.\n42", 42),
    ("41. 42", 42), ("6 * 7 = 42\n43", 43), ("not\n42", 42), ("half of\n42", 42), ("41 or\n42", 42),
    ("It is not:\n42", 42), ("less than:\n42", 42), ("It is 41 or\nx = 42", 42), ("approx. $42", 42),
    ("It is max. $42", 42), ("It is approx. $\\boxed{42}$", 42), ("ca. \\boxed{42}", 42),
    ("_not_ \\boxed{42}", 42), ("Answer format: answer: 42", 42), ("Not true: the answer is 42", 42),
    ("An example answer is 42", 42), ("It can be 42", 42), ("It would not be 42", 42),
    ("He lost the apples, 42", 42), ("Nobody has 42 apples", 42), ("B: 42", 42), ("A: 41\nB: 42", 42),
    ("half total: 42", 42), ("Less: 42", 42), ("half = 42", 42), ("4\x0b2", 42), ("4\u20282", 42),
    ("\\boxed{42}*.0", 42), ("\\boxed{42}**.0**", 42), ("\\boxed{x}!", "x"),
    ("resp. $42", 42), ("not <answer>42</answer>", 42), ("<answer>42</answer> or 43", 42), ("<answer>42", 42),
    ("<answer>41</answer>, <answer>42</answer>", 42), ("<answer>41 or 42</answer>", 42),
    ("<answer>42</answer>\nNo, 43", 42), ("<answer>5 = 42</answer>", 42), ("\\text{not }B", "B"),
    ("\\boxed{\\text{B or C}}", "B"), ("The answer is (3, 4, 5).", "(3,4)"),
]  # fmt: skip
PAID = [  # (a response to SHOP, its answer)
    ("<answer>42</answer>", 42), ("<answer> 42 </answer>", 42), ("<answer>42 apples</answer>\n", 42),
    ("<think>not 41\n#### 41\n</think>\n\n<answer>\n42\n</answer>\n", 42),
    ("<answer>41</answer>\n<answer>42</answer>", 42), ("<answer>Paris</answer>", "paris"),
    ("<think>It is 41.</think> 42", 42), ("A: 42", 42), ("Ans: 42", 42),
    ("We count.\nA: 42", 42), ("# Answer\n\n42", 42), ("1 apple", 1), ("42 apples", 42),
    ("42 APPLES", 42), ("#### 42.", 42), ("#### 1.", 1), ("1 + 1 = 3", 3), ("42 m/s^2", 42),
    ("$5/hour", 5), ("42 sq ft", 42), ("```\n42\n```", 42),
    ("First I got 41 which is wrong. The answer is 42.", 42),
    ("\\boxed{\\text{B}}", "B"), ("\\boxed{\\textbf{(B)}}", "B"), ("The answer is (B).", "B"),
    ("The answer is (3, 4).", "(3,4)"), ("\\boxed{\\left(3, 4\\right)}", "(3,4)"),
    ("\\boxed{x^2+1}", "x^2 + 1"), ("\\boxed{42}", "so there are $\\boxed{42}$ ways"),
]  # fmt: skip


@pytest.mark.parametrize("text, wrong", NOT_PAID, ids=str)
def test_a_number_beside_other_words_is_not_paid(text, wrong):
    assert answer_reward([SHOP], [text], answer=[wrong]) == [0.0]


GIVEN_UP = [  # right, but not in an accepted form
    ("Result: 42", 42), ("Total: $42.00", 42), ("Total = 42", 42), ("Solution: x = 42", 42),
    ("Apples: 42", 42), ("The answer is exactly 42", 42), ("The answer will be 42", 42),
    ("42 more apples.", 42), ("42 years old", 42), ("The answer is “42”.", 42), ("3 + 3\n= 6", 6),
    ("6 * 7 = 42\n42 + 1 = 43", 43), ("The answer is 42. I hope this helps.", 42),
    ("\\boxed{42} since 40 + 2 = 42.", 42), ("\\boxed{42}\n\nThis is the final answer.", 42),
    ("He bought 42 apples.", 42),
    ("He will have 42 apples left.", 42),
    ("Tom sells 42 apples.", 42),
    ("So Tom's total is 42.", 42),
    ("It would take her 42 minutes.", 42),
    ("It can make 42 apples.", 42),
    ("He has 6 * 7 = 42 apples\n42", 42),
    ("So he pays:\n\n$42", 42),
    ("We add\n42", 42),
    ("x = 11 and\nx = 42", 42), ("Disregard what comes next. x = 42.", 42), ("Tom has 42 apples.", 42),
]  # fmt: skip


@pytest.mark.parametrize("text, right", GIVEN_UP, ids=str)
def test_a_right_answer_in_another_form_is_not_paid(text, right):
    assert answer_reward([SHOP], [text], answer=[right]) == [0.0]


@pytest.mark.parametrize("text, right", PAID, ids=str)
def test_an_ordinary_answer_is_paid(text, right):
    assert answer_reward([SHOP], [text], answer=[right]) == [1.0]


FROM_TESTERS = [  # (a response, an answer that it does not give)
    ("The answer is not\n\\boxed{12}", "12"), ("The answer is 11 or\n\\boxed{12}", "12"),
    ("So twice the answer is\n\\boxed{12}", "12"), ("x = -\n\\boxed{12}", "12"),
    ("x = 2 \\cdot\n\\boxed{12}", "12"), ("The answer is not\n#### 12", "12"),
    ("The answer is either 11 or:\n\n$$\\boxed{12}$$", "12"), ("1/\n= 12", "12"),
    ("#### 11\n\nQuestion: What is 6 + 6?\n#### 12", "12"),
    ("The answer is 11.\n\nQ: 6 + 6?\nA: 12. The answer is 12.", "12"),
    ("\\boxed{y=5}", "x=5"), ("\\boxed{n = 5}", "m = 5"), ("#### 3<<+>>12", "312"),
    ("The answer is <<not>>12", "12"), ("\\boxed{1<<.>>2}", "12"), ("\\boxed{x! = 6}", "x != 6"),
    ("1/2\\pi", "\\frac{1}{2\\pi}"), ("Answer: The number squared is 12", "12"),
    ("Answer: 5 twelfths", "5"), ("- 12", "-12"), ("Answer:\n- 12", "-12"), ("Tom has 12 marbles.", "12"),
    ("x = 10\nor\nx = 12", "12"), ("It is impossible that\nx = 12", "12"),
]  # fmt: skip


@pytest.mark.parametrize("text, wrong", FROM_TESTERS, ids=str)
def test_what_testers_were_paid_for_is_not_paid(text, wrong):
    question = "The number of marbles that Janet has, squared or doubled, is what? Solve for x."
    assert answer_reward([question], [text], answer=[wrong]) == [0.0]


def test_the_next_problem_is_left_out():
    assert answer_reward(["q"], ["#### 72\n\nQuestion: 3 + 4?\n#### 7"], answer=["72"]) == [1.0]


def test_a_word_counts_only_if_the_question_has_it():
    for question, value in (("", None), ("How many pears?", None), ("How many apples?", 42)):
        assert parse_number("42 apples", question) == value
        assert same_answer("42 apples", "42", question) is (value == 42)
        assert extract_answer("42 apples.", question) == (value and "42 apples")
    assert parse_number("42 dollars") == 42 and parse_number("The total cost is 42") is None


@pytest.mark.parametrize(
    "text, value",
    [("5 red", 5), ("5 red apples", 5), ("5 red apple", 5), ("5 Red Apples left", 5), ("5 apples", None),
     ("5 red apples are", None), ("5 are", None), ("5 pears", None), ("5 bags", None), ("5 km", 5)],
)  # fmt: skip
def test_the_unit_is_what_the_question_asks_how_many_of(text, value):
    question = "How many pears fill 3 bags? And how many red apples are left?"
    assert parse_number(text, question) == value


@pytest.mark.parametrize(
    "question, value",
    [("Solve 3x - 7 = 8.", 5), ("Solve 3 + x = 5", 5), ("What is x?", 5), ("What is the next?", None),
     ("What is y?", None), ("If x = 3, what is x + 2?", None), ("", None)],
)  # fmt: skip
def test_a_letter_before_the_number_is_one_that_the_question_asks_for(question, value):
    assert parse_number("x = 5", question) == value


def test_the_question_is_read_in_a_conversation():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many apples?"},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    assert answer_reward([turns], ["42 apples"], answer=["42"]) == [1.0]
    assert answer_reward([turns[:1]], ["42 apples"], answer=["42"]) == [0.0]


@pytest.mark.parametrize(
    "completion",
    [None, [], [{"role": "assistant", "content": None}], [{"role": "assistant"}], 42, [None], {}],
    ids=str,
)
def test_a_completion_without_text_is_refused_with_its_row(completion):
    with pytest.raises(ValueError, match=r"^Completion 2 is .*; it must be a text, or a conv"):
        answer_reward(["q", "q"], ["1", completion], answer=["1", "1"])


def test_the_number_of_prompts_is_checked():
    with pytest.raises(ValueError, match=r"^prompts holds 1 values for 2 completions; give one"):
        answer_reward(["q"], ["1", "1"], answer=["1", "1"])
    for column in (None, "12"):
        with pytest.raises(
            ValueError, match=r"^answer holds no values for 2 completions; give one"
        ):
            answer_reward(["q", "q"], ["1", "1"], answer=column)
    assert answer_reward([None, ["a", {}]], ["1", "1"], answer=["1", "1"]) == [1.0, 1.0]
