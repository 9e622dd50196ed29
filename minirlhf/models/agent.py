"""Turns of a policy and a tool in one response.

    prompt      47*83+5=
    response    [47*83]  {3901}  3906 EOS
    written by  policy   tool    policy

The policy samples token by token until its call ends. Then the tool appends its own tokens, and the
policy goes on after them. A response is one row of token ids from the first turn to the last:
nothing is decoded and tokenised again, so the ids that are trained on are those that were sampled.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from minirlhf.models.forward import spelled_tokens, text_of
from minirlhf.runtime import check
from minirlhf.runtime.shared import settings_kept
from minirlhf.runtime.user_code import name_of, on_one_line, raised


class Tool(Protocol):
    """A tool that a policy can call.

    call_end: the id of the token that ends a call.
    run: called with the ids of the response so far, the call's end included. Returns the ids that
    the tool appends; an empty list appends nothing. It must answer every call, right or wrong: an
    exception ends the run.
    """

    call_end: int

    def run(self, ids: list[int]) -> list[int]: ...


class TextTool:
    """A tool from a function of texts.

    The function is given the response so far as text. Its answer is tokenised and appended. The
    policy's own ids stay as they were sampled. What the function sets in torch is set back.

    Args:
        tokenizer: the policy's.
        call_end: the text of one token of the tokenizer: a call ends where the policy writes it.
        function: text of the response so far, the call's end included -> text that is appended. A
            special token in the answer is text, like any other characters. "" appends nothing.

    Raises:
        ValueError: `call_end` is not one token, or ends a response. When called: the function
            raised, or its answer is no text or cannot be written with this tokenizer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, call_end: str, function: Callable[[str], str]
    ) -> None:
        known = isinstance(call_end, str) and call_end in tokenizer.get_vocab()
        ids = [tokenizer.get_vocab()[call_end]] if known else []
        if isinstance(call_end, str) and not known:
            ids = tokenizer(call_end, add_special_tokens=False).input_ids
        one = len(ids) == 1 and text_of(tokenizer, ids) == call_end
        allowed = "a text that is one token of the policy's tokenizer, and not its end of sequence"
        check("The end of a call", call_end, one and ids[0] != tokenizer.eos_token_id, allowed)
        self.tokenizer, self.call_end, self.function = tokenizer, int(ids[0]), function

    def run(self, ids: list[int]) -> list[int]:
        """The ids of the function's answer to the response so far."""
        so_far = text_of(self.tokenizer, ids)
        named = f"The tool's function {name_of(self.function)}"
        given = f"it was given the response {so_far[-60:]!r}"
        try:
            with settings_kept():
                answer = self.function(so_far)
        except KeyboardInterrupt:  # Ctrl-C
            raise
        except BaseException as error:
            raise ValueError(f"{named} {raised(error, self.function)}; {given}.") from error
        if not isinstance(answer, str):
            kind = type(answer).__name__
            raise ValueError(
                f"{named} returned {on_one_line(answer, 60, repr)}, of type {kind}; it must be "
                f"text; {given}."
            )
        written = spelled_tokens(self.tokenizer, answer)
        if {self.tokenizer.eos_token_id, self.tokenizer.unk_token_id} & {*written}:
            raise ValueError(
                f"{named} returned {answer[:60]!r}, which has characters that the tokenizer cannot "
                f"write; {given}."
            )
        return written


class Turns:
    """Who writes the next token of each row: the policy, or the tool.

    Args:
        tool: None: the policy writes everything.
        rows: number of responses.
    """

    def __init__(self, tool: Tool | None, rows: int) -> None:
        self.tool = tool
        self.waiting: list[deque[int]] = [deque() for _ in range(rows)]  # the tool's next tokens

    def take(self, rows: torch.Tensor, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of these rows.

        Args:
            rows: (N,) numbers of the rows.
            drawn: (N,) tokens that the policy would write.

        Returns:
            (tokens, chosen), (N,): the drawn token where it is the policy's turn, else the tool's.
        """
        if self.tool is None:
            return drawn, torch.ones_like(drawn, dtype=torch.bool)
        queues = [self.waiting[row] for row in rows.tolist()]
        tokens = [
            queue[0] if queue else token
            for queue, token in zip(queues, drawn.tolist(), strict=True)
        ]
        chosen = [not queue for queue in queues]
        for queue in queues:
            if queue:
                queue.popleft()
        return torch.tensor(tokens).to(drawn), torch.tensor(chosen).to(drawn.device)

    def answer(self, rows: torch.Tensor, ends_call: torch.Tensor, so_far: torch.Tensor) -> None:
        """Run the tool for the rows in which the policy has just ended a call.

        Args:
            rows: (N,) numbers of the rows.
            ends_call: (N,) True where the policy has just written the end of a call.
            so_far: (N, t) response ids, that end included.
        """
        if self.tool is None:
            return
        for row, ids in zip(rows[ends_call].tolist(), so_far[ends_call].tolist(), strict=True):
            self.waiting[row].extend(self.tool.run(ids))
