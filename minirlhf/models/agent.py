"""Turns of a policy and a tool in one response.

    prompt      47*83+5=
    response    [47*83]  {3901}  3906 EOS
    written by  policy   tool    policy

The policy samples token by token until its call ends. Then the tool appends its own tokens, and the
policy goes on after them. A response is one row of token ids from the first turn to the last:
nothing is decoded and tokenised again, so the ids that are trained on are those that were sampled.
"""

from collections import deque
from typing import Protocol

import torch


class Tool(Protocol):
    """A tool that a policy can call.

    call_end: the id of the token that ends a call.
    run: called with the ids of the response so far, the call's end included. Returns the ids that
    the tool appends; an empty list appends nothing. It must answer every call, right or wrong: an
    exception ends the run.
    """

    call_end: int

    def run(self, ids: list[int]) -> list[int]: ...


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
