"""Preference optimisation on pairs of the policy's own responses, labelled by a reward model.

online       two responses to each prompt, one step on these pairs, repeat    (Guo et al. 2024)
iterative    k responses, the best against the worst, some steps, repeat      (Xiong et al. 2023)
rso          k responses of the initial policy, two kept by rejection         (Liu et al. 2023)
             sampling

With pick="labels" every response is kept, with a label: right or wrong. This is for losses of
single responses, such as KTO.

If a policy calls a tool (formulas.sample with a `tool`), a response is kept as the token ids that
were sampled, and the loss counts only those that the policy chose. This is the loss of multi-turn
DPO and KTO (Xiong et al. 2024).
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from einops import rearrange
from transformers import PreTrainedTokenizerBase

from minirlhf.core.masking import masked_mean
from minirlhf.core.rejection import rejection_sample
from minirlhf.core.rollout import Rollout, Score
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import (
    checked_scores,
    clipped_step,
    make_optimizer,
    set_learning_rate,
    shuffled_batches,
    with_rows,
)
from minirlhf.loops.config import KLConfig, check_batch
from minirlhf.loops.losses import LOSSES, DPOFormulas
from minirlhf.loops.preference import DPOConfig, preference_step, reference_for, sync
from minirlhf.loops.rows import also_reading, check_tokens
from minirlhf.models.adapters import LanguageModel, Policy, SomePolicy
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import Response, decode, encode_prompts
from minirlhf.models.sampling import SamplingConfig
from minirlhf.runtime import History, OnStep, Row, check, seed_all
from minirlhf.tasks.prompts import prompt_texts

Rows = dict[str, list]  # columns of the rows of one step
PICKS = ("best and worst", "rejection", "labels")


class OwnConfig(Protocol):
    """What `train_on_own` reads of the settings of a loop on the policy's own responses."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def refresh(self) -> int: ...
    @property
    def sampling(self) -> SamplingConfig: ...
    @property
    def dpo(self) -> DPOConfig: ...


@dataclass(frozen=True)
class OnlineConfig:
    """How the pairs are made. `dpo` holds the settings of the training on them.

    A reward unit is the unit of the score, and a nat is the unit of natural logarithms.
    """

    samples: int = 2  # k, responses to a prompt, 2 .. 16
    refresh: int = 1  # steps on the responses of one policy before new responses are sampled
    # "rejection": two are kept by rejection sampling; "labels": all, right if the score is above 0
    pick: str = "best and worst"
    missing_eos_penalty: float = 1.0  # reward units, taken off the score of a truncated response
    accept_beta: float = 0.5  # beta of `rejection_sample`, reward units per nat
    sampling: SamplingConfig = SamplingConfig()
    dpo: DPOConfig = DPOConfig()

    def __post_init__(self) -> None:
        check("samples", self.samples, self.samples >= 2, "at least 2, to make a pair")
        check_batch("batch_size * samples", self.dpo.batch_size * self.samples)
        check("refresh", self.refresh, self.refresh >= 1, "at least 1")
        check("pick", self.pick, self.pick in PICKS, f"one of {', '.join(PICKS)}")
        good = 0 < self.accept_beta < float("inf")
        check("accept_beta", self.accept_beta, good, "above 0 and finite")
        good = 0 <= self.missing_eos_penalty < float("inf")
        check("missing_eos_penalty", self.missing_eos_penalty, good, "0 or more, and finite")
        single, labels = LOSSES[self.dpo.loss].single, self.pick == "labels"
        allowed = "a loss of single responses, such as kto" if labels else "a loss of pairs"
        check("loss", self.dpo.loss, single == labels, f"{allowed} with pick={self.pick!r}")
        allowed = "off: the responses are not known before the first step"
        check("precompute", self.dpo.precompute, not self.dpo.precompute, allowed)

    def with_steps(self, steps: int) -> "OnlineConfig":
        """The same settings for another number of steps.

        If the responses are sampled only once, before the first step, this stays so.
        """
        refresh = steps if self.refresh == self.dpo.steps else min(self.refresh, steps)
        return replace(self, refresh=refresh, dpo=replace(self.dpo, steps=steps))


# beta is the same number as PPO's KL coefficient. It is a weaker constraint: a reward model labels
# every pair with certainty, so these policies move further from the reference.
OWN_PAIRS = DPOConfig(beta=KLConfig.kl_coef)
ONLINE = {  # the keys are the names of the commands
    "online-dpo": OnlineConfig(dpo=OWN_PAIRS),
    "iterative-dpo": OnlineConfig(samples=4, refresh=25, dpo=OWN_PAIRS),
    "rso": OnlineConfig(
        samples=4,
        refresh=DPOConfig.steps,
        pick="rejection",
        accept_beta=KLConfig.kl_coef,
        dpo=replace(OWN_PAIRS, loss="hinge"),
    ),
}


def train_online(
    model: SomePolicy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Any],
    score: Score,
    config: OnlineConfig = OnlineConfig(),
    *,
    formulas: DPOFormulas = DPOFormulas(),
    reference: LanguageModel | None = None,
    monitors: dict[str, Score] | None = None,
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[SomePolicy, History]:
    """Train `model` in place on pairs of its own responses.

    Random numbers: the order of the prompts is that of `shuffled_batches(..., config.dpo.seed)`.
    Another generator, torch.Generator().manual_seed(config.dpo.seed), draws the responses to each
    batch of prompts (see `sample`) and, with pick="rejection", then one uniform per response.

    Args:
        prompts: texts or conversations, in any form that `tasks.prompt_texts` reads.
        score: batch -> (B,) scores in reward units. The scores less the penalty for a missing EOS
            decide, by `pick`, which two responses form a pair and which of them is chosen.
        formulas: the functions that the loss uses.
        reference: the reference policy; by default a copy of the model. It is frozen, except with
            dpo.sync_every, which updates a copy of it.
        monitors: further scores by name, logged only.
        on_step: called with each row of the history.
        checkpoint: where the run is saved and resumed from.

    Returns:
        (model, history). Rows of the history as `preference_step` gives them, grad_norm, and pairs
        (their number; responses with equal texts or equal scores make none). A step that samples
        new responses also logs their means: score (without the penalty), score_range (highest less
        lowest score), length (tokens), entropy (nats per token, estimated) and the monitors.
    """
    generator = seed_all(config.dpo.seed)
    others = also_reading(score, reference=reference if config.dpo.has_reference else None)

    def make(texts: list[str], index: torch.Tensor, step: int) -> tuple[Rows, Row]:
        return sampled_pairs(
            model, tokenizer, texts, index, step, score, config, generator, monitors or {}, formulas
        )

    return train_on_own(
        "online",
        model,
        tokenizer,
        prompts,
        make,
        config,
        max_new_tokens=config.sampling.max_new_tokens,
        generator=generator,
        others=others,
        formulas=formulas,
        judge=score,
        reference=reference,
        history=history,
        on_step=on_step,
        checkpoint=checkpoint,
    )


def train_on_own(
    loop: str,
    model: SomePolicy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Any],
    make: Callable[[list[str], torch.Tensor, int], tuple[Rows, Row]],
    config: OwnConfig,
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    others: dict[str, Any],
    formulas: DPOFormulas,
    judge: Callable,
    reference: LanguageModel | None,
    history: History | None,
    on_step: OnStep,
    checkpoint: Checkpoint | None,
) -> tuple[SomePolicy, History]:
    """The loop of `train_online` and of `train_step_dpo`, which differ in how they make the rows.

    Args:
        loop: its name, in the history and in the checkpoint.
        make: (texts of all prompts, numbers of those to sample, step) -> (rows to train on,
            metrics of what was sampled).
        max_new_tokens: most tokens that `make` samples after a prompt.
        generator: draws all that `make` samples; it is saved in the checkpoint.
        others: further models that read the rows, by name.
        judge: what decides which responses are better.
    """
    history, own = History() if history is None else history, config.dpo
    texts = prompt_texts(prompts, tokenizer)
    config.sampling.for_training()
    check_tokens(texts, tokenizer, model, max_new_tokens=max_new_tokens, others=others)
    reference = reference_for(model, own, reference)
    optimizer = make_optimizer(model, own.optimiser)
    # rows for the steps to come; they are saved in the checkpoint too
    state: dict[str, list[Rows]] = {"pool": []}
    model.eval()
    run = (checkpoint or Checkpoint()).attach(
        loop,
        config,
        texts,
        [model, reference] if own.sync_every else [model],
        [optimizer],
        history,
        generators=[generator],
        state=state,
        formulas=formulas,
        score=judge,
        reference=reference,
    )
    due = min(-run.first % config.refresh, own.steps - run.first)  # steps with rows in the pool
    check("pairs for steps to come", len(state["pool"]), len(state["pool"]) == due, f"{due} sets")
    batches = list(shuffled_batches(len(texts), own.batch_size, own.steps, own.seed))
    for step, _ in run.steps(batches):
        log: Row = {}
        # 1. Responses to the prompts of the next steps, and pairs of them.
        if step % config.refresh == 0:
            made = [make(texts, index, step) for index in batches[step : step + config.refresh]]
            state["pool"] = [rows for rows, _ in made]
            names = dict.fromkeys(name for _, row in made for name in row)
            log = {n: torch.stack([row[n] for _, row in made if n in row]).mean() for n in names}
        # 2. One step on the pairs of this step's prompts.
        rows = state["pool"].pop(0)
        set_learning_rate(optimizer, own.optimiser, step, own.steps)
        if rows["prompt"]:
            log |= preference_step(model, reference, tokenizer, rows, own, formulas=formulas)
            log["grad_norm"] = clipped_step(model, optimizer, own.optimiser.max_grad_norm)
        if own.sync_every and (step + 1) % own.sync_every == 0:
            assert reference is not None  # the settings demand one
            sync(reference, model, own.mixup)
        # 3. Log.
        on_step(history.log(loop, step, steps=own.steps, pairs=len(rows["prompt"]), **log))
    return model, history


def sampled_pairs(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    index: torch.Tensor,
    step: int,
    score: Score,
    config: OnlineConfig,
    generator: torch.Generator,
    monitors: dict[str, Score],
    formulas: DPOFormulas,
) -> tuple[Rows, Row]:
    """(pairs of sampled responses to a batch of prompts, mean metrics of the responses).

    Args:
        texts: all prompts. index: the numbers of those to sample. step: of the run.
    """
    prompts, eos_id = [texts[i] for i in index], end_ids(model, tokenizer)
    ids, prompt_mask = encode_prompts(tokenizer, prompts)
    batch = formulas.sample(
        model,
        ids,
        prompt_mask,
        eos_id=eos_id,
        config=config.sampling,
        samples_per_prompt=config.samples,
        generator=generator,
    )
    batch = with_rows(batch, index, step, config.dpo.steps)
    scores = checked_scores(score, batch)
    penalised = scores - config.missing_eos_penalty * ~batch.finished(eos_id)
    responses = responses_in_parts(batch, tokenizer, eos_id)
    row = {
        "score": scores.mean(),
        "score_range": scores.max() - scores.min(),
        "length": batch.action_mask.sum(1).float().mean(),
        "entropy": -masked_mean(batch.old_logprobs, batch.action_mask),
    }
    row |= {name: monitor(batch).mean() for name, monitor in monitors.items()}
    return pairs_of(prompts, responses, penalised, config, generator), row


def responses_in_parts(
    batch: Rollout, tokenizer: PreTrainedTokenizerBase, eos_id: tuple[int, ...]
) -> list[Response]:
    """The responses as text; those with a tool's turns as parts of the sampled token ids."""
    responses: list[Response] = []
    for row, text in enumerate(decode(tokenizer, batch)):
        ids, real, chosen = (
            x[row] for x in (batch.response_ids, batch.response_mask, batch.action_mask)
        )
        turns = list(zip(ids[real].tolist(), chosen[real].tolist(), strict=True))
        if chosen[real].all():
            responses.append(text)
            continue
        if turns[-1] == (turns[-1][0], True) and turns[-1][0] in eos_id:
            turns.pop()  # `encode` adds the EOS
        parts = itertools.groupby(turns, key=lambda turn: turn[1])
        responses.append([([token for token, _ in part], own) for own, part in parts])
    return responses


def pairs_of(
    prompts: list[str],
    responses: Sequence[Response],
    scores: torch.Tensor,
    config: OnlineConfig,
    generator: torch.Generator | None = None,
) -> Rows:
    """The rows to train on, from k responses to each prompt.

    One pair for each prompt: columns prompt, chosen, rejected. A prompt gives no pair if both
    responses or both scores are equal, because neither is better. With pick="labels" every
    response: columns prompt, completion, label.

    Args:
        responses: k for each prompt, side by side.
        scores: (N k,) reward units.
        generator: draws for pick="rejection".
    """
    if config.pick == "labels":
        # one response to each prompt, then the second ones: KTO's baseline reads each response
        # after the prompt of the row before it, which must be another prompt
        order = [n * config.samples + i for i in range(config.samples) for n in range(len(prompts))]
        return {
            "prompt": prompts * config.samples,
            "completion": [responses[i] for i in order],
            "label": [bool(scores[i] > 0) for i in order],
        }
    grouped = rearrange(scores, "(n k) -> n k", k=config.samples)
    if config.pick == "rejection":
        two = rejection_sample(grouped, beta=config.accept_beta, count=2, generator=generator)
        two = two.gather(1, grouped.gather(1, two).argsort(1, descending=True))
    else:
        two = torch.stack([grouped.argmax(1), grouped.argmin(1)], 1)
    rows = []
    for n, (best, worst) in enumerate(two.tolist()):
        chosen, rejected = (responses[n * config.samples + i] for i in (best, worst))
        if grouped[n, best] > grouped[n, worst] and chosen != rejected:
            rows.append((prompts[n], chosen, rejected))
    return {
        name: [row[i] for row in rows] for i, name in enumerate(("prompt", "chosen", "rejected"))
    }
