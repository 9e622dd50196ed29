"""One response, token by token: every number that PPO computes, a row per token."""

from minirlhf.core.kl import k1, log_ratio
from minirlhf.core.policy_gradient import is_clipped
from minirlhf.core.returns import gae, td_errors
from minirlhf.core.rollout import Rollout
from minirlhf.show.strips import escape, visible

COLUMNS = (
    "token",
    "logprob",
    "old_logprob",
    "ref_logprob",
    "kl",
    "reward",
    "value",
    "td_error",
    "advantage",
    "return",
    "ratio",
    "clipped",
)


def token_table(
    tokens: list[str],
    rollout: Rollout,
    *,
    logprobs,
    ref_logprobs,
    rewards,
    values,
    advantages=None,
    gamma: float = 1.0,
    lam: float = 0.95,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    row: int = 0,
) -> list[dict]:
    """All numbers of one response in PPO: log-probabilities, KL, reward, value, advantage, ratio.

    Args:
        tokens: the response's tokens as text. row: which response of the batch.
        logprobs: (B, R) under the current policy, nats. ref_logprobs: (B, R) under the reference.
        rewards: (B, R) after the KL penalty. values: (B, R) of the critic when it was sampled.
        advantages: (B, R) that the loss used, where they are not plain GAE. Whitening moves the
            mean and can change a sign, and the sign decides what is clipped.

    Returns:
        A dict per real token with the keys of COLUMNS. kl is the estimator k1 of the sampling
        policy against the reference, nats. return is GAE's advantage + value, before any whitening.

    Raises:
        ValueError: the number of texts is not the number of the row's real tokens.
    """
    mask, old = rollout.action_mask, rollout.old_logprobs
    plain, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    advantages = plain if advantages is None else advantages
    columns = {
        "logprob": logprobs,
        "old_logprob": old,
        "ref_logprob": ref_logprobs,
        "kl": k1(old, ref_logprobs, mask),
        "reward": rewards,
        "value": values,
        "td_error": td_errors(rewards, values, mask, gamma=gamma),
        "advantage": advantages,
        "return": returns,
        "ratio": log_ratio(logprobs, old, mask).exp(),
        "clipped": is_clipped(
            logprobs, old, advantages, mask, clip_eps=clip_eps, clip_eps_high=clip_eps_high
        ),
    }
    length = int(rollout.response_mask[row].sum())
    if len(tokens) != length:
        raise ValueError(f"Row {row} has {length} real tokens, but {len(tokens)} texts were given.")
    return [
        {"token": token} | {name: column[row, t].item() for name, column in columns.items()}
        for t, token in enumerate(tokens)
    ]


def token_table_html(rows: list[dict]) -> str:
    """The table as HTML, text escaped."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row[name])}</td>" for name in COLUMNS) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def token_table_text(rows: list[dict]) -> str:
    """The table as lines of text, for a terminal or a notebook's plain output."""
    lines = ["".join(f"{name:>12}" for name in COLUMNS)]
    for row in rows:
        lines.append(
            f"{visible(row['token'])[:11]:>12}"
            + "".join(f"{_number(row[name]):>12}" for name in COLUMNS[1:])
        )
    return "\n".join(lines)


def _number(value) -> str:
    return ("yes" if value else "") if isinstance(value, bool) else f"{value:+.3f}"


def _cell(value) -> str:
    return escape(visible(value)) if isinstance(value, str) else _number(value)
