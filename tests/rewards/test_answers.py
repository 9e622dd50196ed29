"""Finding and comparing answers: examples, round trips, long texts, and the reward."""

import ast
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import minirlhf
from minirlhf.models.forward import encode
from minirlhf.rewards.answer_numbers import parse_number, plain_text
from minirlhf.rewards.answers import DENY, OPERATOR, answer_reward, extract_answer, same_answer
from minirlhf.rewards.function import reward_function
from tests.tiny import tiny_tokenizer

JANET = (
    "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 every day at the farmer’s market.\n"
    "#### 18"
)  # the first problem of GSM8K's test set

QUESTION = "If x > n, what are x and n? How many apples are sold?"
NUMBERS = [  # (text, numerator, denominator), exact
    ("42", 42, 1),
    (" 42 \n", 42, 1),
    ("007", 7, 1),
    ("0", 0, 1),
    ("-0", 0, 1),
    ("-5", -5, 1),
    ("+5", 5, 1),
    ("\u22125", -5, 1),
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
    ("0.1", 1, 10),
    ("00.5", 1, 2),
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
    ("12 dollars", 12, 1),
    ("$18", 18, 1),
    ("18 dollars", 18, 1),
    ("5 km", 5, 1),
    ("5km", 5, 1),
    ("60 km/h", 60, 1),
    ("$5/hour", 5, 1),
    ("€5", 5, 1),
    ("¥5", 5, 1),
    ("₹ 5", 5, 1),
    ("5 ¢", 5, 1),
    ("`5`", 5, 1),
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
]
NO_NUMBERS = [
    "- 5",
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
    "1 = 2 = 3",
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
    "42.",
    "3.50.",
    "USD 5",
    "Rs. 500",
    "£7.",
    "(5)",
    "**5**",
    "[5]",
    '"5"',
    "I got 5",
    "x = 5",
    "3 + 4 = 7",
    "= 7",
    "x == 7",
    "x=-5",
]
ANSWERS = [  # (text, the answer in it)
    (JANET, "18"),
    ("#### 42", "42"),
    ("####42", "42"),
    ("#### $42.00", "42.00"),
    ("#### -42 apples.", "-42 apples"),
    ("##### 42", "42"),
    ("#### 42\n\nQuestion: 7 + 1?", "42"),
    ("####\n42 and\n7", "42 and\n7"),
    ("####\t`42 `", "42"),
    ("#### 41\n#### 42", "42"),
    ("#### **42**", "42"),
    ("#### 42\nThe answer is 43. \\boxed{44}", "44"),
    ("The answer is 43.\n#### 42", "42"),
    ("#### 41 #### 42", "41 #### 42"),
    ("#### 42\nSo the total is $42.00.", "42\nSo the total is $42.00"),
    ("The answer is 42.\n####", None),
    ("####\nThe answer is 42.", "42"),
    ("\\boxed{42} ####  ", None),
    (r"so \boxed{42}", "42"),
    (r"$\boxed{42}$.", "42"),
    (r"\boxed{41} or \boxed{42}", None),
    (r"\boxed{\frac{3}{4}} of 8", None),
    ("\\boxed{\\frac{3}{4}} cups", "\\frac{3}{4} cups"),
    (r"\boxed{a_{1_{2}} + {b}}", "a_{1_{2}} + {b}"),
    (r"\boxed{a_{1_{2}} + {b}} {c}", None),
    (r"\boxed{42} The answer is 43.", None),
    (r"\boxed{42", None),
    ("\\boxed{4{2}\nThe answer is 43.", "43"),
    ("The answer is 42.", "42"),
    ("the ANSWER IS: 42", "42"),
    ("Answer: 42", "42"),
    ("answer = 42", "42"),
    ("**Answer:** 42", "42"),
    ("**Final Answer**: **42**.", "42"),
    ("Final answer: $42$. I checked 3 times.", "42$. I checked 3 times"),
    ("Final answer: $42$. I hope it is correct.", "42"),
    ("Final answer: $42$. I hope it is correct, or 43.", "42$. I hope it is correct, or 43"),
    ("Answer:\n$$\n42\n$$", "42"),
    ("The answer is 41. No, the answer is 42. Right, 1.", "41. No, the answer is 42. Right, 1"),
    ("The answer is 41. No, the answer is 42.", "41. No, the answer is 42"),
    ("The answer is 12 apples for 3 days.", "12 apples for 3 days"),
    ("The answer is 42. 40 + 2 = 42", "42. 40 + 2 = 42"),
    ("The answer is 42, since 40 + 2.", "42, since 40 + 2"),
    ("The answer is 42, since 40 + 2 = 42.", "42, since 40 + 2 = 42"),
    ("The answer is 42 apples because 40 + 2 is 42.", "42 apples because 40 + 2 is 42"),
    ("The answer is 42 apples because 40 + 2 = 42.", "42 apples because 40 + 2 = 42"),
    ("The answer is 3.5. So 7/2", "3.5. So 7/2"),
    ("The answer is Rs. 500. Thanks, 1", "Rs. 500. Thanks, 1"),
    ("The answer is Rs. 500.", "Rs. 500"),
    ("The answer is Paris.  It has 2.", "Paris.  It has 2"),
    ("The answer is Paris. ", "Paris"),
    ("The answer is Rs.  500", "Rs.  500"),
    ("The answer is 5 sodas.", "5 sodas"),
    ("The answer is 2 espresso", "2 espresso"),
    ("The answer is Paris, France.", "Paris, France"),
    ("The answer is 1, 2 and 3", "1, 2 and 3"),
    ("The answer isn't 4, I say 5", None),
    ("The answer is", None),
    ("The answer is .\nWhat? 5", ".\nWhat? 5"),
    ("Swanswer: 4 or 5", None),
    ("The answer is 42\r\nand 7", "42\nand 7"),
    ("The answer is 42\r\n", "42"),
    ("There are 3 boxes, so the answer is 42.", None),
    ("If there are 3 boxes, so the answer is 42.", None),
    ("The answer is .5", ".5"),
    ("<<48/2=24>>24", None),
    ("10-5", None),
    ("is 7 - 2", None),
    ("1,234,567 apples", "1,234,567 apples"),
    ("1, 2, 3", None),
    ("(3)-4", None),
    ("[3]-4", None),
    ("5%-3%", None),
    ("is 1,2345", None),
    ("is 1e9999", None),
    ("wait...5", None),
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
    assert extract_answer(text, QUESTION) == answer


@pytest.mark.parametrize(
    "given, wanted, same",
    [
        ("42", "42", True),
        ("42.0", "42", True),
        ("$1,000", "1000", True),
        ("0.50", "1/2", True),
        ("12 cents", "12", True),
        ("12 apples", "12", False),  # no question speaks of apples
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
        ("2x", "2X ", False),
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
        ("", " miles"),
        ("", "%"),
        ("\u20ac", ""),
    ]
)
PLACES = st.sampled_from(
    [
        "#### {}",
        "\\boxed{{{}}}",
        "The answer is {}.",
        "Answer: {}\n\nQuestion: 7 of 7?",
        "{}",
        "1\n#### {}\n\n",
    ]
)
MARKED = ["#### {}", "\\boxed{{{}}}", "The answer is {}.", "Answer: {}", "{}", "So \\boxed{{{}}}."]
DIGITS = st.integers(-(10**30), 10**30)


@settings(max_examples=40)
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


@settings(max_examples=40)
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


@settings(max_examples=40)
@given(DIGITS, st.integers(1, 20), st.integers(-20, 20), PLACES)
def test_every_decimal_is_parsed_and_found(digits, places, exponent, place):
    number, (whole, part) = Fraction(digits, 10**places), divmod(abs(digits), 10**places)
    text = f"{'-' if digits < 0 else ''}{whole:,}.{part:0{places}d}"
    assert parse_number(text) == number == parse_number(extract_answer(place.format(text)))
    assert parse_number(f"{text}e{exponent}") == number * Fraction(10) ** exponent
    if 0 < abs(number) < 1:
        assert parse_number(text.replace("0.", ".", 1)) == number


@settings(max_examples=40)
@given(
    DIGITS,
    DIGITS,
    st.sampled_from([" or ", ", ", " and ", " to ", " + ", " * ", "; ", "\n", " -> ", "^", ":"]),
)
def test_two_numbers_are_not_parsed_as_one(a, b, between):
    assert parse_number(f"{a}{between}{b}") is None


@settings(max_examples=40)
@given(st.text(max_size=40), st.integers())
def test_the_marked_answer_is_found_after_any_text(before, number):
    assume(not DENY & set(re.findall("[a-z]+", before.lower())))
    assume(not OPERATOR.search(plain_text(before)) and not before.endswith("*"))
    assert parse_number(extract_answer(f"{before}\n#### {number}\n")) == number


@settings(max_examples=40)
@given(st.integers(0, 99), st.integers(0, 99), st.text(max_size=20), st.sampled_from(MARKED))
def test_another_number_after_the_answer_is_never_paid(a, b, words, form):
    assume(a != b and not re.search(r"[#:\\\n]", words))
    text = form.format(a) + "\n" + words + f" {b}"
    assert answer_reward([""], [text], answer=[a]) == [0.0]


CHANGING = [
    "doubled", "tripled", "halved", "quadrillion", "trillionths", "grand", "recurring", "too small",
    "too many", "fewer", "short", "or so", "fold", "tens", "sixties", "pairs", "dozens", "times 2",
    "bn", "M", "K", "percent of x", "at most", "over 2", "no", "not", "apples and pears", "(approx)",
]  # fmt: skip
NOT_PAID = [  # (a text that says another thing than the number, or nothing certain; the number)
    ("a + 3z = 0", "0"),
    ("AZYUK2A", "2"),
    ("so 3^2", "2"),
    ("so 2x", "2"),
    ("41 or 42", "42"),
    ("$\\frac13$", "13"),
    ("3-4", "4"),
    ("3–4", "4"),
    ("3 to 4", "4"),
    ("between 41 and 42", "42"),
    ("41/42", "42"),
    ("about 42", "42"),
    ("approximately 42", "42"),
    ("not 42", "42"),
    ("It isn't 42.", "42"),
    ("42nd", "42"),
    ("5th", "5"),
    ("The time is 3:30", "30"),
    ("3:30", "3"),
    ("2024-05-01", "1"),
    ("5/6/2024", "2024"),
    ("May 5", "5"),
    ("1.234,56", "56"),
    ("1 234", "234"),
    ("1'234", "234"),
    ("12,34,567", "567"),
    ("3²", "3"),
    ("3²", "32"),
    ("x² = 4", "4"),
    ("2^{10}", "10"),
    ("\\sqrt{16}", "16"),
    ("\\sqrt{16}", "4"),
    ("√16", "16"),
    ("2·3", "3"),
    ("2*3", "3"),
    ("2 x 3", "3"),
    ("2 × 3", "3"),
    ("2 + 3", "3"),
    ("10 - 3", "3"),
    ("10 \\cdot 3", "3"),
    ("\\pm 3", "3"),
    ("±3", "3"),
    ("+-3", "3"),
    ("[3,5)", "5"),
    ("(3, 4)", "4"),
    ("{3, 4}", "4"),
    ("\\{3\\}", "3"),
    ("\\{3,4\\}", "4"),
    ("\\infty", "infinity"),
    ("1.5e", "1.5"),
    ("0x2A", "2"),
    ("0x10", "10"),
    ("101_2", "101"),
    ("101_2", "2"),
    ("101_{2}", "101"),
    ("101 base 2", "101"),
    ("0.333...", "0.333"),
    ("0.\\overline{3}", "0.3"),
    ("0.\\overline{3}", "3"),
    ("0.(3)", "3"),
    ("0.3̅", "0.3"),
    ("2 million", "2"),
    ("1.5 million", "1.5"),
    ("5 hundred", "5"),
    ("5 and a half", "5"),
    ("2 thirds", "2"),
    ("3k", "3"),
    ("5‰", "5"),
    ("5!", "5"),
    ("-(-5)", "5"),
    ("-(-5)", "-5"),
    ("minus 5", "5"),
    ("negative 5", "5"),
    ("5 below zero", "5"),
    ("more than 5", "5"),
    ("at least 5", "5"),
    ("> 5", "5"),
    ("x < 5", "5"),
    ("≥5", "5"),
    ("5+", "5"),
    ("5-", "5"),
    ("5 or more", "5"),
    ("5 squared", "5"),
    ("half of 42", "42"),
    ("twice 21", "21"),
    ("42 divided by 2", "42"),
    ("Route 66", "66"),
    ("COVID-19", "19"),
    ("v2.0", "2"),
    ("1.2.3", "3"),
    ("192.168.0.1", "1"),
    ("#1", "1"),
    ("0.3 repeating", "0.3"),
    *((f"42 {word}", "42") for word in CHANGING),
    ("41 = 42", "42"),
    ("x = 41 = 42", "42"),
    ("The opposite is 42", "42"),
    ("up to 42", "42"),
    ("hardly 42", "42"),
    ("42 ft 3 in", "42"),
    ("42 hours 30 minutes", "42"),
    ("42 dollars 50 cents", "42"),
    ("\\text{not }42", "42"),
    ("\\cancel{42}", "42"),
    ("42\\ldots", "42"),
    ("42.\\dot{3}", "42"),
    ("\\binom{42}{1}", "42"),
    ("A4", "4"),
    ("H2O", "2"),
    ("R2D2", "2"),
    ("GPT-4", "4"),
    ("e^5", "5"),
    ("ln 5", "5"),
    ("log 100", "100"),
    ("sin 30", "30"),
    ("5i", "5"),
    ("3+4i", "3"),
    ("3+4i", "4"),
    ("2π", "2"),
    ("2pi", "2"),
    ("2 pi", "2"),
    ("2\\pi", "2"),
    ("2e", "2"),
    ("2ab", "2"),
    ("2 xy", "2"),
    ("5a", "5"),
    ("5m", "5000"),
    ("x_1", "1"),
    ("x1", "1"),
    ("a1", "1"),
    ("5 | 6", "6"),
    ("5;6", "6"),
    ("5, 6", "6"),
    ("5 6", "6"),
    ("1,2", "2"),
    ("5 => 6", "5"),
    ("42 = x + 1", "1"),
    ("2x = 10", "10"),
    ("x + y = 10", "10"),
    ("2x + 3 = 11", "11"),
    ("f(x) = 5", "5"),
    ("if x = 5", "5"),
    ("x != 5", "5"),
    ("x ≠ 5", "5"),
    ("x >= 5", "5"),
    ("½", "1"),
    ("5½", "5"),
    ("1½", "1"),
    ("٤٢", "42"),
    ("5٣", "5"),
    ("42万", "42"),
    ("$5 - $3", "3"),
    ("5%-3%", "3"),
    ("\\frac{1}{2}3", "3"),
    ("\\frac12 3", "3"),
    ("2^\\frac12", "1/2"),
    ("\\frac{x}{2}", "2"),
    ("\\frac{1}{x}", "1"),
    ("x\\frac12", "1/2"),
    ("2 1/2x", "2.5"),
    ("1/2/3", "3"),
    ("1/0", "1"),
    ("($5)", "-5"),
    ("(1,234)", "1234"),
    ("Step 3", "3"),
    ("Chapter 3: 5 cats and 3 dogs", "3"),
    ("2) x", "2"),
    ("(B) 42", "42"),
    ("Q42", "42"),
    ("pages 41-42", "42"),
    ("42 out of 50", "50"),
    ("42 of 50", "42"),
    ("3 in 4", "4"),
    ("3 : 4", "4"),
    ("ratio is 3: 4", "4"),
    ("3 - 4 = x", "4"),
    ("42 42", "42"),
    ("42/43 = 42", "43"),
    ("4 200", "200"),
    ("–42", "42"),
    ("—42", "42"),
    ("﹣42", "42"),
    ("x = y = 3z = 5", "5"),
    ("2θ = 60", "60"),
    ("2\\theta = 60", "60"),
    ("\\sqrt{x} = 4", "4"),
    ("|x| = 4", "4"),
    ("x mod 4 = 3", "3"),
    ("dx/dt = 5", "5"),
    ("Q: 1+1? A: 2x", "2"),
    ("Option 2", "2"),
    ("I have no idea, so 42", "42"),
    ("twenty 2", "2"),
    ("2 dozen", "2"),
    ("2 pairs or 3", "2"),
    ("5 ½", "5"),
    ("5 ²", "5"),
    ("5₂", "5"),
    ("①", "1"),
    ("Ⅳ", "4"),
    ("42\u200b3", "42"),
    ("42́", "42"),
    ("4\xa02", "42"),
    ("42°30'", "42"),
    ("42''", "42"),
    ("42'", "42"),
    ("42 (mod 5)", "42"),
    ("42 mod 5", "42"),
    ("C(5,2)", "2"),
    ("5C2", "5"),
    ("5P2", "2"),
    ("n = 5, m = 6", "6"),
    ("n = 5 and m = 6", "6"),
    ("x=5 or x=6", "6"),
    ("{5}", "5"),
    ("<5>", "5"),
    ("«5»", "5"),
    ("5 percent of x", "0.05"),
    ("−42", "42"),
    ("42 is wrong", "42"),
    ("4 2", "42"),
    ("4,2", "42"),
    ("not " + " " * 3000 + "42", "42"),
]
NOT_PAID_WHOLE = [  # the same, of whole responses with a marker of their own
    ("\\boxed{5}^2", "5"),
    ("\\boxed{5}x", "5"),
    ("\\boxed{5} \\times 10^3", "5"),
    ("2\\boxed{5}", "5"),
    ("-\\boxed{5}", "5"),
    ("x^{\\boxed{5}}", "5"),
    ("\\frac{\\boxed{1}}{2}", "1"),
    ("\\boxed{5}, 6", "5"),
    ("not \\boxed{5}", "5"),
    ("x \\neq \\boxed{5}", "5"),
    ("x > \\boxed{5}", "5"),
    ("I guess \\boxed{5}?", "5"),
    ("not #### 42", "42"),
    ("twice \\boxed{42}", "42"),
    ("half of \\boxed{42}", "42"),
    ("Twice the number is \\boxed{42}", "42"),
    ("\\boxed{42} plus one", "42"),
    ("\\boxed{42}{3}", "42"),
    ("\\boxed{42} is not the answer", "42"),
    ("\\boxed{42}. On second thought, 43.", "42"),
    ("\\boxed{41} = \\boxed{42}", "42"),
    ("\\boxed{41}\\boxed{42}", "42"),
    ("\\boxed{42}\\text{ thousand}", "42"),
    ("\\boxed{42}\\%\\text{ of } 8", "42"),
    ("\\boxed{42}_8", "42"),
    ("\\boxed{Paris} or Rome", "Paris"),
    ("The answer is 42. Hold on, it is 43.", "42"),
    ("42. Let me rethink: 43.", "42"),
    ("#### 42\nHowever, it should be 43", "42"),
    ("#### 41 #### 42", "42"),
    ("41 #### 42", "42"),
    ("The answer is Paris. Or Rome.", "Paris"),
    ("The answer is 42, because 43", "42"),
    ("The answer is 42. I made a mistake.", "42"),
    ("The answer is 42. That's not right.", "42"),
    ("The answer is 42. Let me recheck. It's 43.", "42"),
    ("The answer is 42. The real result is 43.", "42"),
    ("suppose the answer is 5", "5"),
    ("if the answer is 5", "5"),
    ("The answer is 42, which is wrong.", "42"),
    ("\\boxed{5\\text{ million}}", "5"),
    ("\\boxed{\\approx 42}", "42"),
    ("\\boxed{42 \\pm 1}", "42"),
    ("#### 42 - 43", "42"),
    ("#### ~42", "42"),
    ("The answer is 41 or 42", "42"),
    ("The answer is 42 or 43", "42"),
    ("The answer is between 41 and 42.", "42"),
    ("The answer is ≈ 42", "42"),
    ("The answer is not 42.", "42"),
    ("42. No, 43", "42"),
    ("The answer is 42. No, 43", "42"),
    ("The answer is 42. Wait, it is 43.", "42"),
    ("The answer is 42. Actually, 43.", "42"),
    ("\\boxed{41} or \\boxed{42}", "42"),
    ("\\boxed{41}, \\boxed{42}", "42"),
    ("#### 41 or 42", "42"),
    ("The answer is 41 or the answer is 42", "42"),
    ("#### 5!", "5"),
    ("The answer is negative 5", "5"),
    ("Is the answer 42?", "42"),
    ("The answer is 42?", "42"),
    ("The wrong answer is 42", "42"),
    ("42 is not the answer", "42"),
    ("The answer is not 41 but 42", "41"),
    ("I do not know. 42", "41"),
    ("The answer is 42, or 43.", "42"),
    ("The answer is 42, maybe 43.", "42"),
    ("The answer is 42 (or 43)", "42"),
    ("The answer is 42; 43", "42"),
    ("The answer is either 42 or 43", "43"),
    ("The answer is less than 42", "42"),
    ("The answer could be 42", "42"),
    ("The answer is probably 42", "42"),
    ("The sum of digits of the answer is 6. ", "7"),
    ("Twice the answer is 84", "84"),
    ("The square of the answer is 64", "64"),
    ("answer: 42 43 44", "44"),
    ("answer 2x is 4", "4"),
    ("the answer is 10^5", "10"),
    ("the answer is 10^5", "5"),
    ("the answer is 10 ** 5", "10"),
    ("the answer is 2**5", "5"),
    ("\\boxed{5!}", "5"),
    ("\\boxed{5,6}", "6"),
    ("\\boxed{x=5,y=6}", "6"),
    ("\\boxed{5x}", "5"),
    ("\\boxed{-}5", "5"),
    ("\\boxed{5^\\circ}3", "3"),
    ("\\boxed{10^{-5}}", "-5"),
    ("\\boxed{2 \\text{ or } 3}", "3"),
    ("\\boxed{\\text{not } 3}", "3"),
    ("\\boxed{3+}", "3"),
    ("The answer is 42. That is wrong.", "42"),
    ("The answer is 42, no wait, 43", "42"),
    ("The answer is 42. Hmm, no.", "42"),
    ("The answer is 42.\n\nOr is it 43?", "42"),
    ("#### 42\nWait, 43", "42"),
    ("#### 42\n\nNo, it is 43.", "42"),
    ("\\boxed{42}. But I made a mistake, it is 43", "42"),
    ("The answer is 42 apples, not 42", "43"),
]
PAID = [  # (a response, its answer)
    ("$x+y=\\boxed{7}$", "7"),
    ("Thus there are $\\boxed{7}$ ways.", "7"),
    ("\\boxed{7}\\,\\text{cm}", "7"),
    ("#### 7 miles per hour", "7"),
    ("The value of $x$ is $\\boxed{7}$.", "7"),
    ("Thus, the answer is $\\boxed{7}$ meters.", "7"),
    ("\\boxed{7}\\text{ miles}", "7"),
    ("\\boxed{50}\\%", "50"),
    ("\\boxed{72^\\circ\\text{C}}", "72"),
    ("\\boxed{\\text{\\$7}}", "7"),
    ("\\boxed{\\frac{1}{2}\\text{ cup}}", "0.5"),
    ("Final Answer: The final answer is $7$. I hope it is correct.", "7"),
    ("$3 \\cdot 4 = 12$ apples", "12"),
    ("(3 + 4) * 2 = 14", "14"),
    ("\\boxed{125\\textnormal{ miles}}", "125"),
    ("\\boxed{11,\\! 111}", "11111"),
    ("11,\\! 111", "11111"),
    ("\\tfrac83", "8/3"),
    ("\\boxed{\\tfrac83}", "8/3"),
    ("\\dfrac12", "0.5"),
    ("\\frac{1}{2}", "0.5"),
    ("\\frac 1 2", "0.5"),
    ("\\frac 12", "0.5"),
    ("\\cfrac{1}{2}", "1/2"),
    ("\\cfrac12", "1/2"),
    ("\\frac1{2}", "1/2"),
    ("\\frac{1}2", "1/2"),
    ("-\\frac12", "-1/2"),
    ("1\\frac12", "1.5"),
    ("$\\frac13$", "1/3"),
    ("\\boxed{\\frac{13}{4}}", "3.25"),
    ("5\\text{ cm}", "5"),
    ("\\boxed{5\\text{ cm}^2}", "5"),
    ("\\boxed{5 \\mbox{ inches}}", "5"),
    ("\\boxed{5\\,\\mathrm{cm}}", "5"),
    ("\\boxed{5~\\mathrm{m}}", "5"),
    ("\\boxed{5\\ \\text{miles per hour}}", "5"),
    ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{90^{\\circ}}", "90"),
    ("90\\degree", "90"),
    ("\\boxed{50\\%}", "50"),
    ("\\boxed{\\$18}", "18"),
    ("\\boxed{\\$1,234.50}", "1234.5"),
    ("\\boxed{\\text{42}}", "42"),
    ("\\boxed{\\mathbf{42}}", "42"),
    ("\\fbox{42}", "42"),
    ("\\boxed{x = 42}", "42"),
    ("\\boxed{1{,}234}", "1234"),
    ("\\boxed{10,\\!000}", "10000"),
    ("\\boxed{-42}", "-42"),
    ("\\boxed{\\textbf{42}}", "42"),
    ("\\boxed{ 42 }", "42"),
    ("$$\\boxed{42}$$", "42"),
    ("\\[\\boxed{42}\\]", "42"),
    ("so $x=\\boxed{42}$.", "42"),
    ("\\boxed{42} apples", "42"),
    ("\\boxed{3.14}", "3.14"),
    ("\\boxed{42.}", "42"),
    ("\\boxed{\\displaystyle\\frac12}", "1/2"),
    ("４２", "42"),
    ("−42", "-42"),
    ("#### 42", "42"),
    ("#### 42 apples", "42"),
    ("#### $42", "42"),
    ("#### 1,000", "1000"),
    ("The answer is 42.", "42"),
    ("The answer is $42.", "42"),
    ("The answer is $42$.", "42"),
    ("The answer is **42**.", "42"),
    ("The answer is: 42", "42"),
    ("The final answer is 42 dollars.", "42"),
    ("**Answer: 42**", "42"),
    ("**Answer**: 42", "42"),
    ("Answer: 42 km/h", "42"),
    ("x = 5", "5"),
    ("42", "42"),
    ("42.", "42"),
    ("42 apples", "42"),
    ("$42", "42"),
    ("x = 10 - 5 = 5", "5"),
    ("1/2", "0.5"),
    ("1 1/2", "1.5"),
    ("5km", "5"),
    ("5 km", "5"),
    ("20°C", "20"),
    ("20 °C", "20"),
    ("50%", "50"),
    ("50 percent", "50"),
    ("2.5e-1", "0.25"),
    ("3 + 4 = 7", "7"),
    ("The answer is 42.\n\nQuestion: Tom has 5 apples. But he eats 2.", "42"),
    ("The answer is 42.", "42.0"),
    ("#### 0.50", "1/2"),
    ("Final Answer: $\\boxed{42}$", "42"),
    ("The answer is B.", "B"),
    ("The answer is Paris.", "paris"),
    ("The answer is (B).", "(B)"),
    ("**Final Answer**\n\n$\\boxed{42}$", "42"),
    ("\\boxed{42\\text{ units}^2}", "42"),
    ("\\boxed{12\\pi}", "12\\pi"),
    ("Answer: 5 m", "5"),
    ("Answer: 25 cm²", "25"),
    ("Answer: -$5", "-5"),
    ("Answer: 5€", "5"),
    ("She sold 72 clips altogether in April and May.\n#### 72", "72"),
    ("The correct answer is 42.", "42"),
    ("Answer: 10 days", "10"),
    ("The answer is x = 42.", "42"),
    ("\\boxed{x=42}", "42"),
    ("n=42", "42"),
    ("The answer is\n42", "42"),
    ("The answer is \\(42\\).", "42"),
    ("The answer is \\[42\\]", "42"),
]
GIVEN_UP = [  # right, but not in an accepted form: no mark, other words, or not a plain number
    ("It takes 7 minutes.", "7"),
    ("They have a total of 7 apples.", "7"),
    ("She pays $7 in total.", "7"),
    ("So she has 3 * 2 = 6 apples.", "6"),
    ("That makes 42.", "42"),
    ("The total is 42.", "42"),
    ("She sold 48+24 = <<48+24=72>>72 clips.", "72"),
    ("There are 42 students.", "42"),
    ("The largest n is 34", "34"),
    ("Hence the area is 12 cm^2.", "12"),
    ("The area is 12 square meters.", "12"),
    ("She needs 5 more dollars.", "5"),
    ("It costs $3.50.", "3.5"),
    ("The answer is 42 apples, since 6 * 7 = 42.", "42"),
    ("Final Answer: The smallest positive integer $k$ is 7.", "7"),
    ("Final Answer: The largest $n$ is 34.", "34"),
    ("\\boxed{(42)}", "42"),
    ("\\boxed{\\left(42\\right)}", "42"),
    ("Therefore, x = 5.", "5"),
    ("Thus $x = 5$.", "5"),
    ("The answer is 41. No, the answer is 42.", "42"),
    ("so 42", "42"),
    ("Answer: US$5", "5"),
    ("Answer: USD 5", "5"),
    ("Answer: 5 USD", "5"),
    ("answer: Rs. 500", "500"),
    ("Answer: 42 students", "42"),
]
WRAPPED = [
    "{}",
    "#### {}",
    r"\boxed{{{}}}",
    "The answer is {}.",
    "Answer: {}",
    "So {}.",
    "We add.\n{}",
]


@pytest.mark.parametrize("text, wrong", NOT_PAID)
def test_what_only_looks_like_the_answer_is_not_paid(text, wrong):
    assert not same_answer(text, wrong)
    responses = [form.format(text) for form in WRAPPED]
    for question in ("", text):  # also where the question holds all words of the response
        assert answer_reward([question] * 7, responses, answer=[wrong] * 7) == [0.0] * 7


@pytest.mark.parametrize("text, wrong", NOT_PAID_WHOLE)
def test_an_answer_that_is_denied_or_taken_back_is_not_paid(text, wrong):
    for question in ("", text):
        assert answer_reward([question], [text], answer=[wrong]) == [0.0]


@pytest.mark.parametrize("text, right", PAID)
def test_a_right_answer_is_paid_in_every_accepted_form(text, right):
    assert answer_reward([QUESTION], [text], answer=[right]) == [1.0]


@pytest.mark.parametrize("text, right", GIVEN_UP)
def test_a_right_answer_in_another_form_is_not_paid(text, right):
    assert answer_reward([QUESTION], [text], answer=[right]) == [0.0]


TOUCHED = [
    "{a}{x}", "{x}{a}", "{a} {x}", "{x}*{a}", "{a}^{b}", "{a}**{b}", "{a} + {b}", "{b} - {a}",
    "{a}*{b}", "{a} or {b}", "{b} or {a}", "{a}, {b}", "{b} {a}", "{a} {b}", "{b}:{a}", "{a}-{b}",
    r"\sqrt{{{a}}}", r"{a}\cdot {b}", "±{a}", "> {a}", "{a}!", "{a}_{b}", "|{a}", "~{a}~{b}",
    "{a}{x} = {b}", "{x}{b} = {a}", "{x} + {b} = {a}", "{b}{x} is {a}", "not {a}", "{a} million",
]  # fmt: skip


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from("abcefknqxyzABXZπθ"),
    st.sampled_from(TOUCHED), PLACES,
)  # fmt: skip
def test_a_letter_an_operator_or_a_second_number_is_never_paid(a, b, letter, form, place):
    text = place.format(form.format(a=a, b=b, x=letter))
    assert answer_reward([""], [text], answer=[a]) == [0.0]


PIECES = [*"0123456789,./-+ eE=x%$*_`:#\n{}\\\u2212²", r"\frac{", r"\boxed{", "answer is ", "####"]


@settings(max_examples=100)
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
    "<answer>",
    "<answer>1</answer>",
    "</think>",
    "the ",
    "is ",
    "a: ",
    "'s ",
    "x =\n",
    "5. ",
    "abc! ",
    "approx. ",
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
        ["#### 18", "Answer: $18.00 a day.", "18 or 19? 19", "", r"\boxed{18}"],
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
        (["1"], r"^answer holds 1 values for 2 completions; give one for each, in a list\.$"),
        (
            ["1", ""],
            r"^Answer 2 is ''; it must hold the right answer, as text or as a finite number\.$",
        ),
        (["1", None], "Answer 2 is None; it must"),
        ([" #### ", "1"], "Answer 1 is ' #### '; it must"),
    ],
)
def test_a_missing_answer_is_refused(answer, said):
    with pytest.raises(ValueError, match=said):
        answer_reward(["q", "q"], ["1", "1"], answer=answer)


@pytest.mark.parametrize("name", ["answer_numbers", "answers"])
def test_the_files_need_only_the_standard_library(name):
    file = Path(minirlhf.__file__).parent / "rewards" / f"{name}.py"
    imported = {
        node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    ours = {module for module in imported if module.startswith("minirlhf.rewards")}
    assert {module.split(".")[0] for module in imported - ours} <= sys.stdlib_module_names
