"""Grade a folder of submissions: each answer goes through its exercise's checker.

Each answer is checked in a process of its own, with a time limit. So an endless loop or a crash in
one answer does not stop the others. This process is no sandbox: a submission can do whatever you
can do on this machine, and who wants to can forge a pass.
"""

import __future__

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import torch

from minirlhf.classroom.check import EXERCISES
from minirlhf.classroom.submissions import (
    RESULT,
    Answer,
    Submission,
    exercises_of_lessons,
    lesson_of_exercise,
    lesson_of_file,
    read_submissions,
)
from minirlhf.runtime import atomic_path, check
from minirlhf.show.strips import printable

COLUMNS = ["student", "file", "lesson", "exercise", "result", "message"]
RESULTS = ("passed", "not yet", "time limit", "blank", "unreadable", "missing")  # best first
LONGEST = 3600.0  # seconds that an answer may be given
STARTING = 300.0  # seconds until a process must have imported torch
LARGEST = 10_000  # bytes of a result

# A server imports the checkers once. Each process is a copy of it. Windows has no such server.
if sys.platform == "win32":
    _PROCESSES = multiprocessing.get_context("spawn")
else:
    _PROCESSES = multiprocessing.get_context("forkserver")
    _PROCESSES.set_forkserver_preload([__name__])


def grade_folder(
    folder: str | Path,
    *,
    exercises: tuple[str, ...] = (),
    students: tuple[str, ...] = (),
    seconds: float = 30.0,
    seed: int = 0,
    on_file: Callable[[Submission, pd.DataFrame], None] = lambda submission, grades: None,
) -> pd.DataFrame:
    """Check all answers of all submissions in a folder.

    Args:
        folder: holds notebooks and Python files, see read_submissions.
        exercises: only these; by default those that a file answers, and the other exercises of a
            notebook's lesson.
        students: the names of the class. Who has no file gets a row for each of `exercises`.
        seconds: the time limit of one answer.
        seed: the seed of the random cases, as MINIRLHF_STUDENT.
        on_file: called after each file with the rows so far.

    Returns:
        One row for each student and exercise, with COLUMNS. If several files answer an exercise,
        the best result counts. `result` is one of RESULTS: "passed"; "not yet" (the checker's
        message says why); "blank" (still what the lesson gives); "missing" (no such function);
        "time limit" (stopped after `seconds`); "unreadable" (a file without a single answer, which
        is not a notebook or not Python).

    Raises:
        ValueError: the folder holds no submission, or an option is wrong.
    """
    check("--seconds", seconds, 0 < seconds <= LONGEST, f"above 0 and at most {LONGEST:g}")
    for name in exercises:
        check("exercise", name, name in EXERCISES, f"one of {', '.join(sorted(EXERCISES))}")
    rows: list[dict] = []
    for submission in read_submissions(folder):
        rows += _graded(submission, Path(folder), exercises, seconds, seed)
        on_file(submission, _table(rows))
    known = {row["student"] for row in rows}
    for student in students:
        if student not in known:
            message = "there is no file of this student."
            for name in exercises or ("",):
                rows.append(_row(student, "", name, "missing", message))
    return _table(rows)


def _row(student: str, file: str, exercise: str, result: str, message: str) -> dict:
    values = (student, file, lesson_of_exercise(exercise), exercise, result, message)
    return {name: printable(text) for name, text in zip(COLUMNS, values, strict=True)}


def _table(rows: list[dict]) -> pd.DataFrame:
    """The best row of each student and exercise, in the order of the first ones."""
    best: dict[tuple[str, str], dict] = {}
    for row in rows:
        key = row["student"], row["exercise"]
        old = best.get(key, row)
        better = RESULTS.index(row["result"]) < RESULTS.index(old["result"])
        best[key] = row if better else old
    return pd.DataFrame(list(best.values()), columns=COLUMNS)


def _graded(
    submission: Submission, folder: Path, exercises: tuple[str, ...], seconds: float, seed: int
) -> list[dict]:
    """The rows of one file."""
    path, answers = submission.path, submission.answers
    rows = []
    for name in exercises or _expected(submission) or ("",):
        answer = answers.get(name)
        if answer is None and submission.problem and not answers:
            result, message = "unreadable", submission.problem
        elif answer is None:
            what = f"has no function {name}" if name else "answers no exercise"
            result, message = "missing", f"{path.name} {what}. {submission.problem}".strip()
        elif answer.blank:
            result, message = "blank", "the answer is still what the lesson gives."
        else:
            result, message = check_answer(answer, seconds=seconds, seed=seed, folder=path.parent)
        file = path.relative_to(folder).as_posix()
        rows.append(_row(submission.student, file, name, result, message))
    return rows


def _expected(submission: Submission) -> tuple[str, ...]:
    """The exercises that a file should answer.

    A Python file: those that it answers. A notebook: also the other exercises of its lesson, which
    its name gives, or else its answers.
    """
    found = tuple(submission.answers)
    if submission.path.suffix == ".py":
        return found
    named = lesson_of_file(submission.path)
    lessons = [named] if named else sorted({*map(lesson_of_exercise, found)} - {""})
    asked = exercises_of_lessons()
    return tuple(dict.fromkeys([*(e for lesson in lessons for e in asked[lesson]), *found]))


def check_answer(
    answer: Answer, *, seconds: float, seed: int = 0, folder: Path | None = None
) -> tuple[str, str]:
    """Check one answer in a process of its own.

    Args:
        answer: the answer.
        seconds: its time limit, after which the process is killed.
        seed: the seed of the random cases.
        folder: its file's folder, from which it may import.

    Returns:
        (result, message).

    Raises:
        RuntimeError: the process did not start.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        arguments = (answer, seed, own, str(Path(folder or own).absolute()))
        process = _PROCESSES.Process(target=_run, args=arguments)
        process.start()
        try:
            limit = time.monotonic() + STARTING
            while not (Path(own) / "ready").exists():
                if process.exitcode is not None or time.monotonic() > limit:
                    raise RuntimeError("the process that checks the answers did not start.")
                time.sleep(0.01)
            process.join(seconds)
            if process.exitcode is None:
                return "time limit", f"stopped after {seconds:g} seconds."
            found = _result(Path(own) / "result.json")
            ended = f"the code ends the process (exit code {process.exitcode})."
            return found or ("not yet", ended)
        finally:
            _kill(process)


def _result(path: Path) -> tuple[str, str] | None:
    """The (result, message) that a process has written; None if there is none.

    It is JSON and not a pickle, because a student's code may have written it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            result, message = json.loads(file.read(LARGEST))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    right = result in ("passed", "not yet") and isinstance(message, str)
    return (result, message[:1000]) if right else None


def _run(answer: Answer, seed: int, own: str, folder: str) -> None:
    """In the other process: check an answer, and write (result, message) to own/result.json."""
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, so that what the code starts can be killed with it
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(silent, stream)  # nobody sees what it prints, and it cannot wait for an input
    os.chdir(own)
    sys.path.append(folder)
    torch.set_num_threads(1)
    Path("ready").touch()
    found = _checked(answer, seed)
    text = json.dumps(found, ensure_ascii=True)
    Path(own, "result.json").write_text(text, encoding="utf-8")
    os._exit(0)  # also if the code has left a thread behind


def _checked(answer: Answer, seed: int) -> tuple[str, str]:
    """Run an answer's statements and its checker."""
    module = types.ModuleType("submission")
    sys.modules["submission"] = module  # dataclasses look their module up
    future = any("from __future__ import annotations" in text for text in answer.statements)
    flags = __future__.annotations.compiler_flag if future else 0
    try:
        for source, needed in zip(answer.statements, answer.needed, strict=True):
            try:
                exec(compile(source, "submission", "exec", flags), module.__dict__)
            except Exception:
                if needed:
                    raise
        result = EXERCISES[answer.exercise](module.__dict__[RESULT], seed=seed)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:160]
        return "not yet", f"the code stops with {type(error).__name__}: {text}"
    return "passed" if result.passed else "not yet", result.message


def _kill(process: BaseProcess) -> None:
    """End a process and its group, where the system knows groups."""
    if sys.platform != "win32" and process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            pass  # it has ended, or it has no group of its own yet
    process.kill()
    process.join()


def by_student(grades: pd.DataFrame) -> pd.DataFrame:
    """One row for each student: how many exercises are passed, and the result of each one."""
    wide = grades.pivot(index="student", columns="exercise", values="result")
    wide = wide[[name for name in grades["exercise"].unique() if name]]
    passed = (wide == "passed").sum(axis=1)
    wide.insert(0, "passed", passed)
    wide.insert(1, "of", wide.shape[1] - 1)
    return wide.reindex(grades["student"].unique()).reset_index()


def write_grades(grades: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV.

    A spreadsheet takes a text that begins with `=` for a formula. Such a text gets a `'` in front.
    """
    safe = grades.map(lambda text: f"'{text}" if str(text)[:1] in tuple("=+-@\t\r") else text)
    with atomic_path(path) as temporary:
        safe.to_csv(temporary, index=False)


def sentences(grades: pd.DataFrame) -> list[str]:
    """One sentence for each exercise: how many students pass it, and what most others are told."""
    lines = []
    for (lesson, exercise), rows in grades.groupby(["lesson", "exercise"], sort=False):
        counts = rows["result"].value_counts()
        others = [f"{counts[result]} {result}" for result in RESULTS[1:] if result in counts]
        line = f"{lesson or 'no lesson'} {exercise or '(no exercise)'}: "
        line += f"{counts.get('passed', 0)} of {len(rows)} passed"
        line += f", {', '.join(others)}." if others else "."
        if len(wrong := rows.loc[rows["result"] == "not yet", "message"]):
            times = wrong.value_counts()
            line += f' Most often ({times.iloc[0]}): "{times.index[0]}"'
        lines.append(line)
    return lines
