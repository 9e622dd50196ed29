"""Where the prompt of a pair ends, if both texts begin with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.tasks.implicit import prompt_length

E_ACUTE = "e\u0301"  # an accent of its own
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # three people, joined to one emoji


@pytest.mark.parametrize(
    "prompt, chosen, rejected",
    [
        ("The sky is", " blue.", " black."),  # a space belongs to the response
        ("The sky is", " blue", "\tgreen"),
        ("The sky", " is blue.", " is"),  # both keep an answer
        ("The sky", " is blue", " island"),  # never inside a word
        ("Is it?\n", "Yes", "No"),  # a line break belongs to the prompt
        ("Is it?\r\n", "Yes", "No"),
        ("Is it?\nA:", " Yes", " No"),
        ("Q\n\n", "good one", "bad one"),
        ("a  b ", " c", " d"),
        ("问：好看吗？\n", "答：好看", "答：无聊"),
        ("问：好看吗？", "好看", "无聊"),
        ("答案是", "12", "13"),  # a number is one word
        ("答案是", "Yes", "Yep"),
        ("映画は", "か\u3099いい", "かいい"),  # the voicing mark belongs to its letter
        ("映画は", "ｶﾞ1", "ｶﾟ2"),
        ("หนังดี", "มาก", "ไหม"),
        ("好", f"{FAMILY}1", f"{FAMILY}2"),
        ("好", "\U0001f44d\U0001f3fd", "\U0001f44d\U0001f3ff"),  # skin tones of one thumb
        ("一", "葛\U000e0100", "葛\U000e0101"),  # two forms of one letter
        (f"caf{E_ACUTE}", " au lait", " noir"),
        ("좋은 영화", " 예요", " 였다"),  # Korean has spaces
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
            " d e",
            " d f",
        ),
    ],
)
def test_the_prompt_ends_at_a_line_a_word_or_a_letter(prompt, chosen, rejected):
    assert prompt_length(prompt + chosen, prompt + rejected) == len(prompt)
    assert prompt_length(prompt + rejected, prompt + chosen) == len(prompt)


@pytest.mark.parametrize(
    "chosen, rejected",
    [
        ("abc", "abd"),
        ("좋다", "좋아"),
        (f"{E_ACUTE}1", f"{E_ACUTE}2"),
        ("e\u0301", "e\u0300"),
        (" a", " b"),
        ("\n\nYes", "\n\nNo"),
        ("", "a"),
        ("a", "a b"),
        ("好", "坏"),
    ],
)
def test_texts_without_a_common_word_have_no_prompt(chosen, rejected):
    assert prompt_length(chosen, rejected) == 0


TEXT = st.text(st.sampled_from("ab 1\n\t好看。กำe\u0301か\u3099\u200d\U0001f468"), max_size=12)


@given(TEXT, TEXT, TEXT)
def test_both_texts_begin_with_the_prompt_and_go_on(shared, one, two):
    length = prompt_length(shared + one, shared + two)
    chosen, rejected = shared + one, shared + two
    assert chosen[:length] == rejected[:length] and length == prompt_length(rejected, chosen)
    if length:
        assert chosen[:length].strip() and chosen[length:].strip() and rejected[length:].strip()
        assert chosen[length] not in "\u0301\u3099\u200d" and chosen[length - 1] != "\u200d"
