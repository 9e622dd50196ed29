"""Exercise 1 of lesson 15: the turns of a policy and a tool, both of them made up.

The fakes follow a script. They know what they have to be given, so the first slip is named where it
happens: in the loop, or in one of the two lists that it returns.
"""

from collections.abc import Callable
from typing import Any

from minirlhf.classroom.exercise import LONGEST, Result, cut

SYMBOLS = ["EOS", *"0123456789*~[]{}!"]  # a symbol's place is its id
EOS, CALL_END = SYMBOLS.index("EOS"), SYMBOLS.index("]")
SCRIPTS = (  # policy, tool, policy, ...; an EOS follows
    ("[2*3]", "{6}", "7"),
    ("~7",),
    ("[2*3]", "{6}", "[6*4]", "{24}", "25"),
    ("[]", "{!}", "~5"),
)


class Slip(Exception):
    """A mistake that a fake policy or a fake tool has seen, as a message."""


def ids_of(text: str) -> list[int]:
    """The ids of a text of SYMBOLS, each of one character."""
    return [SYMBOLS.index(symbol) for symbol in text]


def text_of(ids: list[int]) -> str:
    """The text of ids, EOS with a space before it; "nothing" if there are none."""
    symbols = [SYMBOLS[i] if 0 <= i < len(SYMBOLS) else "?" for i in ids]
    return "".join(symbols).replace("EOS", " EOS").strip() or "nothing"


class Played:
    """A fake policy and a fake tool that follow one script, and what they have written.

    Args:
        script: the turns, the policy's first.
    """

    def __init__(self, script: tuple[str, ...]) -> None:
        self.ids: list[int] = []
        self.own: list[bool] = []
        self.to_write = [*ids_of("".join(script[::2])), EOS]
        self.results = [ids_of(result) for result in script[1::2]]
        self.due = False  # the policy has ended a call, and the tool has not answered

    def policy(self, ids: Any) -> int:
        """The next id of the script."""
        if not self.to_write:
            raise Slip("the loop goes on after the EOS. The EOS ends the response.")
        if self.due:
            raise Slip("the policy has written ], and the loop does not ask the tool.")
        self._compare("policy", ids)
        self._write([self.to_write.pop(0)], own=True)
        self.due = self.ids[-1] == CALL_END
        return self.ids[-1]

    def tool(self, ids: Any) -> list[int]:
        """The ids of the result of the call that has just ended."""
        if not self.due:
            raise Slip("the tool is asked although no call has just ended. Ask it once, after ].")
        self._compare("tool", ids)
        self.due, result = False, self.results.pop(0)
        self._write(result, own=False)
        return list(result)

    def _write(self, ids: list[int], *, own: bool) -> None:
        self.ids += ids
        self.own += [own] * len(ids)

    def _compare(self, reader: str, given: Any) -> None:
        """Raise a Slip unless a reader is given all ids so far."""
        ids = numbers(given, "ids")
        if ids == self.ids:
            return
        kept = [i for i, own in zip(self.ids, self.own, strict=True) if own]
        if ids == kept:
            raise Slip("the tool's result is missing in ids. The policy goes on after it.")
        raise Slip(
            f"the {reader} is given {text_of(ids)}. It reads all ids so far: {text_of(self.ids)}."
        )


def numbers(given: Any, name: str) -> list[int]:
    """A list or tensor of numbers as a list of int.

    Raises:
        Slip: it is none.
    """
    try:
        found = given.tolist() if hasattr(given, "tolist") else list(given)
    except TypeError:
        raise Slip(f"{name} is of type {type(given).__name__}. It must be a list.") from None
    if any(isinstance(item, list | tuple) for item in found):
        raise Slip(f"{name} has a list inside. A result has several ids: use `ids += result`.")
    try:
        return [int(item) for item in found]
    except (TypeError, ValueError):
        raise Slip(f"{name} must have one number for each token.") from None


def take_turns(function: Callable) -> Result:
    """Check a student's loop of turns.

    Args:
        function: (policy, tool, call_end, eos) -> (ids, own). policy(ids) gives the next id,
            tool(ids) the ids of a result.

    Returns:
        The Result. Its message is about the first response that is not right.
    """
    for script in SCRIPTS:
        played = Played(script)
        whole = " ".join(["".join(script), "EOS"])
        try:
            answer = function(played.policy, played.tool, CALL_END, EOS)
            wrong = found_in(answer, played)
        except Slip as slip:
            wrong = str(slip)
        except Exception as error:  # reported as a message
            wrong = f"take_turns raised {type(error).__name__}: {' '.join(str(error).split())}"
        if wrong:
            return Result(False, cut(f"response {whole}: {wrong}", LONGEST))
    return Result(True, f"take_turns is right for {len(SCRIPTS)} responses.")


def found_in(answer: Any, played: Played) -> str:
    """What is wrong with a student's two lists, after the loop; "" if nothing is."""
    if answer is None:
        return "take_turns returned None. Is the `return` missing?"
    if not isinstance(answer, list | tuple) or len(answer) != 2:
        return "take_turns must return two lists: ids and own."
    ids, own = numbers(answer[0], "ids"), numbers(answer[1], "own")
    if not played.ids:
        return "the policy was never asked."
    if played.to_write and not played.own[-1]:
        return "the loop stops at the tool's result. The policy goes on after it, until its EOS."
    if played.to_write:
        return "the loop stops before the policy has written its EOS."
    if ids == played.ids[:-1]:
        return "the EOS is missing in ids. It is a token of the response."
    if ids != played.ids:
        return f"ids is {text_of(ids)}. Return all tokens: {text_of(played.ids)}."
    if len(own) != len(ids):
        return f"own has {len(own)} entries for {len(ids)} tokens. Each token needs one."
    return wrong_authors([bool(x) for x in own], played)


def wrong_authors(own: list[bool], played: Played) -> str:
    """What is wrong with the list of who wrote a token; "" if nothing is."""
    right = played.own
    if own == right:
        return ""
    if own == [not x for x in right]:
        return "own is inverted. It is True where the policy wrote the token."
    if not own[-1]:
        return "the EOS is not marked as own. The policy decides to end the response."
    ends = [i for i, token in enumerate(played.ids) if token == CALL_END]
    if not all(own[i] for i in ends):
        return "the ] is not marked as own. The policy decides to end the call."
    if any(mine and not theirs for mine, theirs in zip(own, right, strict=True)):
        return "ids of the tool's result are marked as own. The tool wrote them."
    place = next(i for i, x in enumerate(own) if not x and right[i])
    return (
        f"token {place}, {SYMBOLS[played.ids[place]]}, is not marked as own. The policy wrote it."
    )
