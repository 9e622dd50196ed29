"""Finding and comparing answers: examples, round trips, long texts, and the reward."""

import subprocess
import sys
from fractions import Fraction

import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minirlhf.models.forward import encode
from minirlhf.rewards import answers
from minirlhf.rewards.answers import answer_reward, extract_answer, parse_number, same_answer
from minirlhf.rewards.function import reward_function
from tests.tiny import tiny_tokenizer

JANET = (
    "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 every day at the farmer’s market.\n"
    "#### 18"
)  # the first problem of GSM8K's test set

NUMBERS = [  # (text, numerator, denominator), exact
    ("42", 42, 1),
    ("42.", 42, 1),
    (" 42 \n", 42, 1),
    ("007", 7, 1),
    ("0", 0, 1),
    ("-0", 0, 1),
    ("-5", -5, 1),
    ("+5", 5, 1),
    ("\u22125", -5, 1),
    ("- 5", -5, 1),
    ("-$5", -5, 1),
    ("$-5", -5, 1),
    ("-\\$ 5", -5, 1),
    ("1,000", 1000, 1),
    ("1,234,567", 1234567, 1),
    ("$1,234,567.25", 4938269, 4),
    ("-12,345", -12345, 1),
    ("1{,}234", 1234, 1),
    ("10,\\!000", 10000, 1),
    (".5", 1, 2),
    ("-.5", -1, 2),
    ("3.50", 7, 2),
    ("3.50.", 7, 2),
    ("0.1", 1, 10),
    ("00.5", 1, 2),
    ("it is...5", 5, 1),
    ("3/4", 3, 4),
    ("-3/4", -3, 4),
    ("\u22123/4", -3, 4),
    ("3 / 4", 3, 4),
    ("6/4", 3, 2),
    ("1,000/4", 250, 1),
    ("1.5/.5", 3, 1),
    ("0/7", 0, 1),
    ("1 1/2", 3, 2),
    ("-1 1/2", -3, 2),
    ("1,000 1/2", 2001, 2),
    ("2 1/2 cups", 5, 2),
    ("1   1/2", 3, 2),
    (r"\frac{3}{4}", 3, 4),
    (r"-\frac{1}{2}", -1, 2),
    (r"\dfrac{3}{4}", 3, 4),
    (r"\tfrac { 3 } { 4 }", 3, 4),
    (r"1\frac{1}{2}", 3, 2),
    (r"2 \frac{1}{2}", 5, 2),
    (r"\frac{-3}{4}", -3, 4),
    (r"$\frac{1,000}{3}$", 1000, 3),
    (r"\boxed{\frac{3}{4}}", 3, 4),
    ("1e3", 1000, 1),
    ("2.5e-1", 1, 4),
    ("1E+2", 100, 1),
    ("-1e-3", -1, 1000),
    ("1,500e2", 150000, 1),
    ("50%", 50, 1),
    ("12.5 %", 25, 2),
    (r"50\%", 50, 1),
    ("2 dozen", 2, 1),
    ("1.5 million", 3, 2),  # the unit is ignored
    ("12 apples", 12, 1),
    ("$18", 18, 1),
    ("18 dollars", 18, 1),
    ("5 km", 5, 1),
    ("5km", 5, 1),
    ("60 km/h", 60, 1),
    ("$5/hour", 5, 1),
    ("USD 5", 5, 1),
    ("Rs. 500", 500, 1),
    ("£7.", 7, 1),
    ("about 5 boxes", 5, 1),
    ("(5)", 5, 1),
    ("**5**", 5, 1),
    ("€5", 5, 1),
    ("¥5", 5, 1),
    ("₹ 5", 5, 1),
    ("5 ¢", 5, 1),
    ("[5]", 5, 1),
    ("'5'?", 5, 1),
    ('"5"', 5, 1),
    ("so: 5; done, ok", 5, 1),
    ("≈5", 5, 1),
    ("not 5", 5, 1),
    ("`5`", 5, 1),
    ("5-pound bag", 5, 1),
    ("25 cm^2", 25, 1),
    ("25 cm^{3}", 25, 1),
    ("25 m²", 25, 1),
    (r"25\text{ ft}^2", 25, 1),
    (r"5\,\mathrm{kg}", 5, 1),
    ("5~cm", 5, 1),
    (r"90^\circ", 90, 1),
    (r"90^{\circ}", 90, 1),
    ("20°C", 20, 1),
    (r"\(42\)", 42, 1),
    ("42!", 42, 1),
    ("I got 5", 5, 1),
    ("5 nymphs", 5, 1),
    ("x = 5", 5, 1),
    ("3 + 4 = 7", 7, 1),
    ("= 7", 7, 1),
    ("x == 7", 7, 1),
    ("Wow! x = 5", 5, 1),
    ("x=-5", -5, 1),
    ("1 = 2 = 3", 3, 1),
]
NO_NUMBERS = [
    "",
    " ",
    "apples",
    "$",
    "-",
    ".",
    ",",
    "forty-two",
    "½",
    "5½",
    "٣",
    "5٣",
    "∞",
    "1,2",
    "12,34",
    "1,2345",
    "1,234,5",
    "1234,567",
    "0,123",
    "1,00,000",
    "1, 2",
    "1.2.3",
    "10:30",
    "41 or 42",
    "10-5",
    "10 - 5",
    "3 4",
    "1/0",
    "1/0.0",
    "0/0",
    "1 1/0",
    r"\frac{1}{0}",
    "3/4/5",
    "3/-4",
    r"\frac{1}{2}3",
    r"\text{5}3",
    r"1\,234",
    "3*1/2",
    "3**1/2",
    "2x",
    "x5",
    "2 x",
    "2π",
    "2*y",
    "3^2",
    "x^2",
    "5x^2",
    r"\sqrt{2}",
    r"\frac{x}{2}",
    r"2\pi",
    "√2",
    "5 × 10^3",
    "0x10",
    "1_000",
    "> 5",
    "x >= 5",
    "x != 5",
    "±5",
    "--5",
    "+-5",
    "5 =",
    "around - 5",
    "COVID-19",
    "a/5",
    "1e9999",
    "1e1000",
]
ANSWERS = [  # (text, the answer in it)
    (JANET, "18"),
    ("#### 42", "42"),
    ("####42", "42"),
    ("#### $42.00", "42.00"),
    ("#### -42 apples.", "-42 apples"),
    ("##### 42", "42"),
    ("#### 42\n\nQuestion: 7 + 1?", "42"),
    ("####\n42 and\n7", "42 and"),
    ("####\t`42 `", "42"),
    ("#### 41\n#### 42", "42"),
    ("#### **42**", "42"),
    ("#### 42\nThe answer is 43. \\boxed{44}", "42"),
    ("The answer is 42.\n####", "42"),
    ("\\boxed{42} ####  ", "42"),
    (r"so \boxed{42}", "42"),
    (r"$\boxed{42}$.", "42"),
    (r"\boxed{41} or \boxed{42}", "42"),
    (r"\boxed{\frac{3}{4}} of 8", r"\frac{3}{4}"),
    (r"\boxed{a_{1_{2}} + {b}} {c}", "a_{1_{2}} + {b}"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{42} The answer is 43.", "42"),
    (r"\boxed{}, so 42", "42"),
    (r"\boxed{42", "42"),
    (r"\boxed{4{2} The answer is 43.", "43"),
    (r"} \boxed{ 42 } }", "42"),
    ("The answer is 42.", "42"),
    ("the ANSWER IS: 42", "42"),
    ("Answer: 42", "42"),
    ("answer = 42", "42"),
    ("**Answer:** 42", "42"),
    ("**Final Answer**: **42**.", "42"),
    ("Final answer: $42$. I checked 3 times.", "42"),
    ("Answer:\n$$\n42\n$$", "42"),
    ("The answer is 41. No, the answer is 42. Right, 1.", "42"),
    ("The answer is 12 apples for 3 days.", "12 apples for 3 days"),
    ("The answer is 42. 40 + 2 = 42", "42"),
    ("The answer is 42, since 40 + 2.", "42"),
    ("The answer is 42 apples because 40 + 2.", "42 apples"),
    ("The answer is 3.5. So 7/2", "3.5"),
    ("The answer is Rs. 500. Thanks, 1", "Rs. 500"),
    ("The answer is $1,234, which is 2", "1,234"),
    ("The answer is Paris.  It has 2.", "Paris"),
    ("The answer is Rs.  500", "Rs.  500"),
    ("The answer is 42,  leaving 3", "42"),
    ("The answer is 5 sodas.", "5 sodas"),
    ("The answer is 2 espresso", "2 espresso"),
    ("The answer is Paris, France. It has 2 rivers.", "Paris, France"),
    ("The answer is 1, 2 and 3", "1, 2 and 3"),
    ("The answer isn't 4, I say 5", "5"),
    ("The answer is", None),
    ("The answer is .\nWhat? 5", "5"),
    ("Swanswer: 4 or 5", "5"),
    ("The answer is 42\r\nand 7", "42"),
    ("The answer is .5", ".5"),
    ("It makes 40 + 2 = 42 in all.", "42"),
    ("<<48/2=24>>24", "24"),
    ("10-5", "5"),
    ("is 7 - 2", "2"),
    ("is -2.", "-2"),
    ("is \u22122", "-2"),
    ("1,234,567 apples", "1,234,567"),
    ("half: 3/4", "3/4"),
    (r"is \frac{3}{4}.", "3/4"),
    ("is 2 1/2 cups", "2 1/2"),
    ("1, 2, 3", "3"),
    ("costs -$5.", "-$5"),
    ("It costs $3.50.", "3.50"),
    ("10% of it, 2e3", "2e3"),
    ("(3)-4", "4"),
    ("[3]-4", "4"),
    ("5%-3%", "3"),
    (r"costs -\$5", "-$5"),
    ("is 1,2345", "2345"),
    ("is 1e9999", "9999"),
    ("wait...5", "5"),
    ("", None),
    ("no number", None),
    ("####", None),
    (r"\boxed{}", None),
    ("½", None),
]


@pytest.mark.parametrize("text, numerator, denominator", NUMBERS)
def test_numbers_are_parsed_exactly(text, numerator, denominator):
    assert parse_number(text) == Fraction(numerator, denominator)


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: text[:20])
def test_ambiguous_text_is_not_a_number(text):
    assert parse_number(text) is None


def test_a_number_has_at_most_a_thousand_digits():
    assert parse_number("9" * 1000) == 10**1000 - 1 and parse_number("9" * 1001) is None
    assert parse_number("1e999") == 10**999


@pytest.mark.parametrize("text, answer", ANSWERS)
def test_the_answer_is_found(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "given, wanted, same",
    [
        ("42", "42", True),
        ("42.0", "42", True),
        ("$1,000", "1000", True),
        ("0.50", "1/2", True),
        ("12 apples", "12", True),
        ("50%", "50", True),
        ("50%", "0.5", False),
        ("43", "42", False),
        ("-42", "42", False),
        ("0.3333333333333333", "1/3", False),
        ("1,2", "12", False),
        ("0.1", "1/10", True),
        ("1e-1", "1/10", True),
        (r"\frac{6}{8}", "3/4", True),
        ("100000000000000001", "100000000000000000", False),  # as floats they are equal
        (None, "42", False),
        (None, "None", False),
        ("", "42", False),
        ("forty-two", "42", False),
        ("1/0", "2/0", False),
        ("Paris", " paris ", True),
        ("New  York\n", "new york", True),
        ("newyork", "new york", False),
        ("STRASSE", "stra\u00dfe", True),
        ("Paris", "Rome", False),
        ("2x", "2X ", True),
        ("2x", "2", False),
        ("2x", "2y", False),
    ],
)
def test_same_answer(given, wanted, same):
    assert same_answer(given, wanted) is same


AROUND = st.sampled_from(
    [
        ("", ""),
        (" ", "\n"),
        ("$", ""),
        ("", "."),
        ("", " apples"),
        ("", "%"),
        ("USD ", ""),
        ("**", "**"),
        ("x = ", ""),
    ]
)
PLACES = st.sampled_from(
    [
        "#### {}",
        "\\boxed{{{}}}",
        "The answer is {}.",
        "Answer: {}\nDone 7 of 7.",
        "We count 3, then {}",
        "1 #### {}\n\n2",
    ]
)
DIGITS = st.integers(-(10**30), 10**30)


@given(
    DIGITS,
    st.sampled_from(["{:d}", "{:,d}", "{:+d}", "{:+,d}", "{:d}.0", "{:,d}.00", "{:d}/1", "{:d}e0"]),
    AROUND,
    PLACES,
    st.booleans(),
)
def test_every_integer_is_parsed_and_found(number, form, around, place, unicode_minus):
    text = around[0] + form.format(number) + around[1]
    text = text.replace("-", "\u2212") if unicode_minus else text
    assert parse_number(text) == number
    assert parse_number(extract_answer(place.format(text))) == number
    assert same_answer(text, str(number)) and not same_answer(text, str(number + 1))


@given(st.fractions(), PLACES)
def test_every_fraction_is_parsed_and_found(number, place):
    top, bottom, sign = abs(number.numerator), number.denominator, "-" if number < 0 else ""
    forms = [
        f"{sign}{top}/{bottom}",
        f"{sign}{top:,} / {bottom:,}",
        rf"{sign}\frac{{{top}}}{{{bottom}}}",
        rf"\dfrac{{{sign}{3 * top}}}{{{3 * bottom}}}",
        f"{sign}{top // bottom} {top % bottom}/{bottom}",
        rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}",
    ]
    for form in forms:
        assert parse_number(form) == number == parse_number(extract_answer(place.format(form)))


@given(DIGITS, st.integers(1, 20), st.integers(-20, 20), PLACES)
def test_every_decimal_is_parsed_and_found(digits, places, exponent, place):
    number, (whole, part) = Fraction(digits, 10**places), divmod(abs(digits), 10**places)
    text = f"{'-' if digits < 0 else ''}{whole:,}.{part:0{places}d}"
    assert parse_number(text) == number == parse_number(extract_answer(place.format(text)))
    assert parse_number(f"{text}e{exponent}") == number * Fraction(10) ** exponent
    if 0 < abs(number) < 1:
        assert parse_number(text.replace("0.", ".", 1)) == number


@given(
    DIGITS,
    DIGITS,
    st.sampled_from([" or ", ", ", " and ", " to ", " + ", " * ", "; ", "\n", " -> ", "^", ":"]),
)
def test_two_numbers_are_not_parsed_as_one(a, b, between):
    assert parse_number(f"{a}{between}{b}") is None


@given(st.text(), st.integers(), st.text(st.characters(exclude_characters="#")))
def test_the_marked_answer_is_found_in_any_text(before, number, after):
    assert parse_number(extract_answer(f"{before}\n#### {number}\n{after}")) == number


PIECES = [*"0123456789,./-+ eE=x%$*_`:#\n{}\\\u2212²", r"\frac{", r"\boxed{", "answer is ", "####"]


@settings(max_examples=400)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
@example("1e999/1e-999")
@example("1/" + "0" * 2000)
@example("9" * 5000)  # Python refuses to read it
@example("1e99999999999")
@example("\ud800 5")  # half a character
def test_any_text_is_read_without_an_error(text):
    answer, number = extract_answer(text), parse_number(text)
    assert answer is None or (answer and isinstance(answer, str))
    assert number is None or isinstance(number, Fraction)
    assert same_answer(text, text)
    assert answer_reward([""], [text], answer=["42"]) in ([0.0], [1.0])


LONG = [
    "1",
    "1,",
    "1,234,",
    " ",
    "{",
    "}",
    "1 ",
    "1/",
    ".",
    ", ",
    "-",
    "=",
    "*",
    "3*",
    "\\",
    "^{",
    "\n",
    "####",
    "\\boxed{",
    "\\frac{1}",
    "\\text{",
    "answer: ",
    "answer *",
]


@pytest.mark.parametrize("piece", LONG)
def test_long_texts_are_parsed_quickly(
    piece,
):  # a pattern with quadratic backtracking would take minutes
    for start in ("1", r"answer: \frac{1}{"):
        text = start + piece * (100_000 // len(piece)) + "x"
        assert parse_number(text) is None
        assert not same_answer(extract_answer(text), "no such answer")


def test_the_reward_follows_the_contract_of_trl():
    rewards = answer_reward(
        ["q"] * 5,
        ["#### 18", "It is $18.00 a day.", "18 or 19? 19", "", r"\boxed{18}"],
        answer=[JANET] * 5,
        level=[1] * 5,
    )
    assert rewards == [1.0, 1.0, 0.0, 0.0, 1.0] and all(
        isinstance(reward, float) for reward in rewards
    )
    assert (
        answer_reward(
            ["q"] * 5,
            ["7", "0.1", "0", "The answer is Yes.", "1000"],
            answer=[7, 0.1, 0, "yes", " 1,000 "],
        )
        == [1.0] * 5
    )
    assert answer_reward(["q", "q"], ["7", "8"], answer=["8", "7"]) == [
        0.0,
        0.0,
    ]  # each has its own answer
    assert answer_reward([], [], answer=[]) == []


def test_the_reward_reads_a_rollout():
    tokenizer = tiny_tokenizer()
    dataset = Dataset.from_list(
        [{"prompt": "6*3?", "answer": JANET}, {"prompt": "1+1?", "answer": "2"}]
    )
    rollout = encode(tokenizer, ["1+1?", "6*3?", "6*3?"], ["Answer: 2", "#### 18", "#### 2"])
    assert reward_function(answer_reward, tokenizer, dataset)(rollout).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "answer, said",
    [
        (["1"], r"^answer holds 1 values for 2 completions; give one for each\.$"),
        (["1", ""], r"^Answer 1 is ''; it must hold the right answer\.$"),
        (["1", None], "Answer 1 is None; it must"),
        ([" #### ", "1"], "Answer 0 is ' #### '; it must"),
    ],
)
def test_a_missing_answer_is_refused(answer, said):
    with pytest.raises(ValueError, match=said):
        answer_reward(["q", "q"], ["1", "1"], answer=answer)


def test_the_module_needs_only_the_standard_library():
    code = (  # only this file: the package minirlhf.rewards imports the other rewards too
        f"import runpy, sys; runpy.run_path({answers.__file__!r}); "
        "print([m for m in ('torch', 'numpy', 'datasets', 'sympy', 'minirlhf') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
