import pytest

from minirlhf.classroom.lessons.concepts import QUESTIONS, Questions, graded
from minirlhf.runtime import ROOT

KEY = "".join(
    next(letter for letter, option in q.options(n).items() if option == q.right)
    for n, q in enumerate(QUESTIONS, 1)
)


def test_the_key_gets_full_marks_and_a_wrong_option_its_lesson_and_reason():
    assert graded(KEY) == "12 of 12."
    for number, question in enumerate(QUESTIONS, 1):
        assert len(question.wrong) == 3
        for letter, option in question.options(number).items():
            answers = KEY[: number - 1] + letter + KEY[number:]
            if option == question.right:
                continue
            assert graded(answers).splitlines() == [
                "11 of 12. Not yet:",
                f"  {number}, lesson {question.lesson}",
            ]
            assert question.wrong[option] in graded(answers, explain=True)
        unknown = graded(KEY[: number - 1] + "-" + KEY[number:], explain=True)
        assert (
            unknown.startswith("11 of 12") and question.right not in unknown
        )  # a blank page is no way to the answers


def test_one_letter_or_the_longest_option_is_a_bad_guess():
    assert all(KEY.count(letter) <= 5 for letter in "abcd")
    longest = [max(q.options(n).values(), key=len) == q.right for n, q in enumerate(QUESTIONS, 1)]
    assert sum(longest) <= 6  # nor is the longest option


@pytest.mark.parametrize("answers", ["", "abc", "a" * 13, "abcdabcdabce"])
def test_malformed_answers_are_refused(answers):
    with pytest.raises(ValueError, match="must be 12"):
        graded(answers)


def test_blanks_and_capitals_are_accepted():
    assert graded(" ".join(KEY.upper())) == "12 of 12."


def test_every_question_is_shown_and_its_lesson_exists():
    shown = Questions()._repr_markdown_()
    for question in QUESTIONS:
        assert (
            question.text in shown
            and question.right in shown
            and all(option in shown for option in question.wrong)
        )
        assert list((ROOT / "notebooks" / "src").glob(f"{question.lesson}_*.py"))
