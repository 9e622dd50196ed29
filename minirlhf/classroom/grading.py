"""Grade a folder of submissions: each answer goes through its exercise's checker.

Each answer is checked in a process of its own, with a time limit. So an endless loop or a crash
does not reach the other answers. It is no sandbox: a submission can do
whatever you can do on this machine.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
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

COLUMNS = ["student", "file", "lesson", "exercise", "result", "message"]
RESULTS = ("passed", "not yet", "blank", "missing", "time limit", "unreadable")
STARTING = 300.0  # seconds until a process must have imported torch

# A server imports the checkers once. Each process is a copy of it. Windows has no such server.
_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_PROCESSES = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
if _FORKS:
    _PROCESSES.set_forkserver_preload([__name__])


def grade_folder(
    folder: str | Path,
    *,
    exercises: tuple[str, ...] = (),
    seconds: float = 30.0,
    seed: int = 0,
    on_file: Callable[[Submission], None] = lambda submission: None,
) -> pd.DataFrame:
    """Check all answers of all submissions in a folder.

    Args:
        folder: holds notebooks and Python files, see read_submissions.
        exercises: only these; by default those in each file, and the other exercises of a
            notebook's lesson.
        seconds: the time limit of one answer.
        seed: the seed of the random cases, as MINIRLHF_STUDENT.
        on_file: called before each file.

    Returns:
        One row for each exercise of each file, with COLUMNS. `result` is one of RESULTS:
        "passed"; "not yet" (the checker's message says why); "blank" (still what the lesson
        gives); "missing" (the file has no such function); "time limit" (stopped after `seconds`);
        "unreadable" (the file, or the cell with the answer, is not Python).

    Raises:
        ValueError: the folder holds no submission, or an option is wrong.
    """
    check("--seconds", seconds, seconds > 0, "greater than 0")
    for name in exercises:
        check("exercise", name, name in EXERCISES, f"one of {', '.join(sorted(EXERCISES))}")
    rows = []
    for submission in read_submissions(folder):
        on_file(submission)
        rows += _graded(submission, Path(folder), exercises, seconds, seed)
    return pd.DataFrame(_once(rows), columns=COLUMNS)


def _graded(
    submission: Submission, folder: Path, exercises: tuple[str, ...], seconds: float, seed: int
) -> list[dict]:
    """The rows of one file."""
    expected = exercises or _expected(submission)
    chosen = [submission.answers[name] for name in expected if name in submission.answers]
    results = {
        a.exercise: check_answer(a, seconds=seconds, seed=seed) for a in chosen if not a.blank
    }
    rows = []
    for name in expected or ("",):
        answer = submission.answers.get(name)
        if name in results:
            result, message = results[name]
        elif answer is not None:
            result, message = "blank", "the answer is still what the lesson gives."
        elif submission.problem:
            result, message = "unreadable", submission.problem
        elif name:
            result, message = "missing", f"{submission.path.name} has no function {name}."
        else:
            result, message = "missing", f"{submission.path.name} answers no exercise."
        file = submission.path.relative_to(folder).as_posix()
        lesson = lesson_of_exercise(name)
        row = (submission.student, file, lesson, name, result, message)
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def _expected(submission: Submission) -> tuple[str, ...]:
    """The exercises that a file should answer.

    A Python file: those that it answers. A notebook: all exercises of its lesson, too.
    """
    found = tuple(submission.answers)
    if submission.path.suffix == ".py":
        return found
    lessons = {lesson_of_file(submission.path), *map(lesson_of_exercise, found)}
    asked = exercises_of_lessons()
    return tuple(
        dict.fromkeys([*(e for lesson in sorted(lessons - {""}) for e in asked[lesson]), *found])
    )


def _once(rows: list[dict]) -> list[dict]:
    """Leave out what a student misses in one file and has in another."""
    has = {(row["student"], row["exercise"]) for row in rows if row["result"] != "missing"}
    kept, told = [], set()
    for row in rows:
        key = row["student"], row["exercise"]
        if row["result"] == "missing" and (key in has or key in told):
            continue
        told.add(key)
        kept.append(row)
    return kept


def check_answer(answer: Answer, *, seconds: float, seed: int = 0) -> tuple[str, str]:
    """Check one answer in a process of its own.

    Args:
        answer: the answer.
        seconds: its time limit, after which the process is killed.
        seed: the seed of the random cases.

    Returns:
        (result, message).
    """
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_checked, args=(theirs, answer, seed))
    process.start()
    theirs.close()  # so that the pipe ends when the process does
    try:
        _received(ours, STARTING)
        message = _received(ours, seconds)
    except TimeoutError:
        return "time limit", f"stopped after {seconds:g} seconds."
    except EOFError:
        process.join()
        return "not yet", f"the code ends the process (exit code {process.exitcode})."
    finally:
        _kill(process)
    return message


def _received(connection, seconds: float):
    """The next object that a connection gives within some seconds."""
    if not connection.poll(seconds):
        raise TimeoutError
    return connection.recv()


def _checked(connection, answer: Answer, seed: int) -> None:
    """In the other process: run an answer's code and its checker, and send (result, message)."""
    if hasattr(os, "setsid"):
        os.setsid()  # what the code starts is killed together with this process
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(silent, stream)  # nobody sees what it prints, and it cannot wait for an input
    torch.set_num_threads(1)
    connection.send("ready")
    names: dict = {"__name__": "submission"}
    try:
        exec(compile(answer.code, "submission", "exec"), names)
        result = EXERCISES[answer.exercise](names[RESULT], seed=seed)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:160]
        connection.send(("not yet", f"the code stops with {type(error).__name__}: {text}"))
    else:
        connection.send(("passed" if result.passed else "not yet", result.message))


def _kill(process) -> None:
    """End a process, and what it has started where the system knows process groups."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, or it has no group of its own yet
    process.kill()
    process.join()


def write_grades(grades: pd.DataFrame, path: str | Path) -> None:
    """Write the rows as CSV.

    A spreadsheet takes a text that begins with `=` for a formula. Such a text gets a `'` in front.
    """
    safe = grades.map(lambda text: f"'{text}" if str(text)[:1] in tuple("=+-@\t\r") else text)
    with atomic_path(path) as temporary:
        safe.to_csv(temporary, index=False)


def sentences(grades: pd.DataFrame) -> list[str]:
    """One sentence for each exercise: how many pass, and the commonest message of the others."""
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
