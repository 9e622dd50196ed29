"""The table of a batch: one row per token, with every number that the four models give it.

`token_table` is the data of `show.microscope`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from minirlhf.core.kl import k1, kl_shaped_rewards, log_ratio
from minirlhf.core.logprobs import entropy, response_logprobs
from minirlhf.core.policy_gradient import is_clipped
from minirlhf.core.returns import gae, td_errors
from minirlhf.core.rollout import Rollout
from minirlhf.models.adapters import BelowAdapter, LanguageModel, Policy
from minirlhf.models.forward import policy_logits, response_values, text_of, token_scores
from minirlhf.models.heads import ScalarModel, SharedCritic
from minirlhf.models.sampling import SamplingConfig
from minirlhf.rewards.model import rollout_score
from minirlhf.runtime import check

CARRIED = {  # a column of a batch -> the table's name for one entry of it
    "logprobs": "logprob",
    "ref_logprobs": "ref_logprob",
    "rewards": "reward",
    "values": "value",
    "advantages": "advantage",
    "returns": "return",
    "scores": "score",
}
OF_ALL_TOKENS = ("prefix_reward", "one_pass_reward")  # the reward model reads a tool's tokens too
ORDER = (
    *OF_ALL_TOKENS,
    "logprob",
    "old_logprob",
    "ref_logprob",
    "kl",
    "score",
    "reward",
    "value",
    "td_error",
    "advantage",
    "return",
    "ratio",
    "clipped",
    "implicit_reward",
    "entropy",
)


@torch.no_grad()
def token_table(
    batch: Rollout,
    tokenizer: PreTrainedTokenizerBase,
    *,
    actor: Policy | None = None,
    reference: LanguageModel | None = None,
    reward_model: ScalarModel | None = None,
    critic: ScalarModel | None = None,
    temperature: float = SamplingConfig.temperature,
    kl_coef: float = 0.0,
    gamma: float = 1.0,
    lam: float = 0.95,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    beta: float | None = None,
    alternatives: int = 5,
) -> pd.DataFrame:
    """The table of a batch: one row per real token of its responses.

        table = token_table(batch, tokenizer, actor=actor, reference=sft, reward_model=scorer,
                            critic=critic, kl_coef=0.5)
        show.microscope(table)

    Give the models that you have. A column whose model is missing is left out. Every row has:

        text, prompt       the number of the response in the batch, and its prompt
        position, token    the number of the token in the response, from 0, and its text
        chosen             whether the policy chose the token (action_mask)

    Of every token, if the reward model is given:

        prefix_reward      reward of the response up to this token, ended with EOS, scored alone
        one_pass_reward    the same head, read at this token in one pass over the response

    Of the tokens that the policy chose:

        logprob, old_logprob, ref_logprob    under the actor, the policy that sampled, the reference
        kl                 old_logprob - ref_logprob (k1)
        reward             -kl_coef * kl, and the score at the last token that the policy chose
        value              of the tokens before this one, by the critic
        td_error           reward + gamma * next value - value
        advantage          by generalised advantage estimation (GAE), not whitened
        return             the critic's target: advantage + value
        ratio, clipped     importance ratio of actor and sampling policy; whether the clip of PPO
                           sets the token's gradient to 0
        implicit_reward    beta * (logprob - ref_logprob), if beta is given
        entropy            of the actor's next-token distribution
        alternatives       the actor's likeliest next tokens: a list of (token, probability)
        ref_alternatives   the reference's

    A batch may carry columns that training has computed: logprobs, ref_logprobs, scores (B,),
    rewards, values, advantages, returns. Then these are shown and used, not new ones. For example
    `batch.with_columns(advantages=...)` shows whitened advantages, or those of GRPO. Any other
    column of shape (B,) or (B, R) is shown under its own name. One number per response stands at
    each of its tokens.

    If no policy sampled the responses (they come from `encode`), all their old_logprobs are 0. Then
    the table treats the actor as the policy that sampled: old_logprob is logprob and the ratio
    is 1.

    Args:
        batch: B responses of at most R tokens.
        actor, reference: policies.
        reward_model, critic: ScalarModels with the tokenizer of the policies. A batch that carries
            `scores` needs no reward model for its rewards.
        temperature: the one at which the responses were sampled; 0.7 if left out, as in
            SamplingConfig. For DPO use 1.
        kl_coef: reward units per nat, 0 or more. Above 0 it needs a reference.
        gamma, lam: of GAE.
        clip_eps, clip_eps_high: of PPO's clip, as in `core.ppo_clip`.
        beta: reward units per nat, of the implicit reward.
        alternatives: how many next tokens are listed, 0 for none.

    Returns:
        Log-probabilities, KL and entropy in nats; rewards, values and advantages in reward units.
        A token that the policy did not choose has NaN, False or an empty list in the columns of
        chosen tokens. See `token_text` for a token that is a part of a character. The settings
        kl_coef, gamma and lam stand in `attrs["settings"]`, so that the microscope can show how
        the numbers add up.

    Raises:
        ValueError: kl_coef is above 0, the score is known and the reference is not; a sequence is
            longer than a model reads; a setting is out of range.
    """
    check("alternatives", alternatives, alternatives >= 0, "0 or more")
    mask, lists = batch.action_mask, {}
    with evaluation_mode(actor, reference, reward_model, critic):
        columns = _rewards_of_prefixes(reward_model, batch, tokenizer.eos_token_id)
        for prefix, policy in (("", actor), ("ref_", reference)):
            if policy is None:
                continue
            logits = policy_logits(policy, batch).to(batch.device)
            columns[f"{prefix}logprob"] = response_logprobs(
                logits, batch.response_ids, mask, temperature=temperature
            )
            if prefix == "":
                columns["entropy"] = entropy(logits, mask, temperature=temperature)
            if alternatives:
                lists[f"{prefix}alternatives"] = _likeliest(
                    logits, mask, tokenizer, temperature, alternatives
                )
        if critic is not None:
            columns["value"] = response_values(critic, batch)
        scores = batch.columns.get("scores")
        if scores is None and reward_model is not None:
            scores = rollout_score(reward_model, tokenizer.eos_token_id)(batch)
    columns |= {
        CARRIED.get(name, name): _by_token(column, mask)
        for name, column in batch.columns.items()
        if column.dim() <= 2
    }
    columns = _derived(
        columns,
        batch,
        scores,
        kl_coef=kl_coef,
        gamma=gamma,
        lam=lam,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        beta=beta,
    )
    table = _frame(batch, tokenizer, columns, lists)
    table.attrs["settings"] = {"kl_coef": float(kl_coef), "gamma": float(gamma), "lam": float(lam)}
    return table


@contextmanager
def evaluation_mode(*models: nn.Module | BelowAdapter | None) -> Iterator[None]:
    """Context manager that switches dropout off, and afterwards gives each module its old mode.

    Args:
        models: None is allowed.
    """
    inner = [_without_wrapper(model) for model in models]
    modes = [(module, module.training) for m in inner if m is not None for module in m.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def _without_wrapper(model: nn.Module | BelowAdapter | None) -> nn.Module | None:
    """The model inside an object that reads it."""
    if isinstance(model, BelowAdapter):
        return model.model
    return model.actor if isinstance(model, SharedCritic) else model


def _rewards_of_prefixes(
    model: ScalarModel | None, batch: Rollout, eos_id: int, batch_size: int = 64
) -> dict[str, torch.Tensor]:
    """The two rewards (B, R) of the response up to each token, as `rewards.prefix_scores` does.

    A prefix that ends in EOS already gets no second one.
    """
    if model is None:
        return {}
    one_pass = token_scores(model, batch)[:, batch.prompt_ids.shape[1] :]
    score, with_eos = rollout_score(model, eos_id), torch.zeros_like(one_pass)
    rows, ends = batch.response_mask.nonzero(as_tuple=True)
    for part in torch.arange(len(rows), device=rows.device).split(batch_size):
        whole = batch.select(rows[part])
        columns = torch.arange(whole.response_ids.shape[1], device=rows.device)
        mask = columns <= ends[part][:, None]
        prefixes = Rollout(
            whole.prompt_ids, whole.prompt_mask, whole.response_ids, mask, whole.old_logprobs
        )
        with_eos[rows[part], ends[part]] = score(prefixes)
    return {"prefix_reward": with_eos, "one_pass_reward": one_pass}


def _likeliest(
    logits: torch.Tensor,
    mask: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
    count: int,
) -> list[list[tuple[str, float]]]:
    """The likeliest next tokens at each token of the batch that the policy chose, in order."""
    chosen = logits[mask]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    probabilities = (chosen / temperature).softmax(-1)
    best, ids = probabilities.topk(min(count, probabilities.shape[-1]))
    return [
        [(token_text(tokenizer, i), p) for i, p in zip(*row, strict=True) if p > 0]
        for row in zip(ids.tolist(), best.tolist(), strict=True)
    ]


def _derived(
    columns: dict[str, torch.Tensor],
    batch: Rollout,
    scores: torch.Tensor | None,
    *,
    kl_coef: float,
    gamma: float,
    lam: float,
    clip_eps: float,
    clip_eps_high: float | None,
    beta: float | None,
) -> dict[str, torch.Tensor]:
    """The columns, and what the functions of `core` make of them.

    A column that is there already stays as it is.
    """
    mask, made = batch.action_mask, dict(columns)

    def has(*names: str) -> bool:
        return all(name in made for name in names)

    if batch.old_logprobs[mask].any():
        made["old_logprob"] = batch.old_logprobs
    elif has("logprob"):  # written responses: all old_logprobs are 0
        made["old_logprob"] = made["logprob"]
    compared = has("old_logprob", "ref_logprob")
    if compared:
        made.setdefault("kl", k1(made["old_logprob"], made["ref_logprob"], mask))
    if scores is not None and "reward" not in made:
        known = compared or kl_coef == 0
        needs = "0 without log-probabilities of both the reference and the sampling policy"
        check("kl_coef", kl_coef, known, needs)
    if scores is not None and (compared or has("value")):
        nothing = torch.zeros_like(batch.old_logprobs)
        old, ref = (made[name] if compared else nothing for name in ("old_logprob", "ref_logprob"))
        made.setdefault("reward", kl_shaped_rewards(scores, old, ref, mask, kl_coef=kl_coef))
    if has("reward", "value"):
        given = (made["reward"], made["value"], mask)
        made.setdefault("td_error", td_errors(*given, gamma=gamma))
        advantages, returns = gae(*given, gamma=gamma, lam=lam)
        made.setdefault("advantage", advantages)
        made.setdefault("return", returns)
    if has("logprob", "old_logprob"):
        policies = (made["logprob"], made["old_logprob"])
        made.setdefault("ratio", log_ratio(*policies, mask).exp())
        if has("advantage"):
            clipped = is_clipped(
                *policies, made["advantage"], mask, clip_eps=clip_eps, clip_eps_high=clip_eps_high
            )
            made.setdefault("clipped", clipped)
    if beta is not None and has("logprob", "ref_logprob"):
        implicit = beta * log_ratio(made["logprob"], made["ref_logprob"], mask)
        made.setdefault("implicit_reward", implicit)
    return made


def _by_token(column: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A column of shape (B, R); one number per response is repeated."""
    return column[:, None].expand(mask.shape) if column.dim() == 1 else column


def _frame(
    batch: Rollout,
    tokenizer: PreTrainedTokenizerBase,
    columns: dict[str, torch.Tensor],
    lists: dict[str, list[list[tuple[str, float]]]],
) -> pd.DataFrame:
    """The columns at the real tokens, as a DataFrame in the order of ORDER."""
    texts, positions = batch.response_mask.nonzero(as_tuple=True)
    chosen = batch.action_mask[texts, positions].tolist()
    prompts = [
        text_of(tokenizer, ids[mask])
        for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)
    ]
    ids = batch.response_ids[texts, positions].tolist()
    frame = {
        "text": texts.tolist(),
        "prompt": [prompts[row] for row in texts.tolist()],
        "position": positions.tolist(),
        "token": [token_text(tokenizer, i) for i in ids],
        "chosen": chosen,
    }
    for name in columns:
        taken = f"another name than {', '.join(frame)}, which every table has"
        check("column of the batch", name, name not in frame, taken)
    further = [name for name in columns if name not in ORDER]
    for name in [name for name in (*ORDER, *further) if name in columns]:
        values = columns[name][texts, positions].tolist()
        if name in ORDER and name not in OF_ALL_TOKENS:
            hole = False if name == "clipped" else math.nan
            values = [v if c else hole for v, c in zip(values, chosen, strict=True)]
        frame[name] = values
    for name, entries in lists.items():
        of_chosen = iter(entries)
        frame[name] = [next(of_chosen) if c else [] for c in chosen]
    return pd.DataFrame(frame)


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    r"""The text of one token, with its leading space.

    In byte-level byte-pair encoding (BPE) a token can be a part of a character: "\u597d" is three
    bytes, which may be two tokens. Such a token alone is no text. Its incomplete bytes are written
    as in Python: \xe5 is the byte 229.
    """
    text = text_of(tokenizer, [token_id], clean_up_tokenization_spaces=False)
    if "\ufffd" not in text:
        return text
    symbols = str(tokenizer.convert_ids_to_tokens(token_id))
    if not set(symbols) <= _bytes_of_symbols().keys():
        return symbols  # another kind of tokenizer
    content = bytes(_bytes_of_symbols()[symbol] for symbol in symbols)
    return content.decode("utf-8", errors="backslashreplace")


@cache
def _bytes_of_symbols() -> dict[str, int]:
    """The symbols by which byte-level BPE stands for the 256 bytes, each with its byte.

    A byte that prints in Latin-1 is its own symbol. The others, in order, are the characters from
    number 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }
