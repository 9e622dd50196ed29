"""The classroom: exercises with checkers, the concept test, and checks of the lessons' numbers.

    from minirlhf import classroom

    classroom.check.ppo_loss(my_ppo_loss)  # "pass", or "not yet" with the likely mistake
    classroom.Questions()  # the concept test
    classroom.graded("abcd-abcdabc")  # its number of right answers

`classroom.course` executes the notebooks. It is imported when it is first used, because it needs
the packages in requirements-dev.txt.
"""

from typing import Any

from minirlhf.classroom import atlas, check
from minirlhf.classroom.exercise import CASES, Exercise, Result
from minirlhf.classroom.fast import FAST
from minirlhf.classroom.lessons.concepts import QUESTIONS, Question, Questions, graded

__all__ = [
    "CASES",
    "FAST",
    "QUESTIONS",
    "Exercise",
    "Question",
    "Questions",
    "Result",
    "atlas",
    "check",
    "graded",
]


def __getattr__(name: str) -> Any:
    """Import `course` on first use."""
    if name == "course":
        import importlib

        return importlib.import_module(f"{__name__}.course")
    raise AttributeError(f"module 'minirlhf.classroom' has no attribute '{name}'")
