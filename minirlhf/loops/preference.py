"""Preference optimisation: from pairs to a policy, without a reward model and without sampling.

    loss = -log sigmoid(beta [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)])

This is DPO (Rafailov et al. 2023); the other losses of its family are the rows of LOSSES
(loops/losses.py). For pairs made from the policy's own responses see loops/online.py.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.core.logprobs import response_logprobs, sequence_logprobs
from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import (
    clipped_step,
    make_optimizer,
    set_learning_rate,
    shuffled_batches,
)
from minirlhf.loops.config import OptimiserConfig, check_batch
from minirlhf.loops.losses import LOSSES, Answers, DPOFormulas, Loss
from minirlhf.loops.rows import also_reading, check_tokens
from minirlhf.models.adapters import BelowAdapter, LanguageModel, Policy, SomePolicy, reference_of
from minirlhf.models.forward import Response, encode, policy_logits, policy_logprobs
from minirlhf.runtime import History, OnStep, check, seed_all
from minirlhf.tasks.conversations import in_parts
from minirlhf.tasks.formats import check_rows, unpaired


@dataclass(frozen=True)
class DPOConfig:
    """Settings of DPO and its family.

    beta is in reward units per nat (the unit of natural logarithms) for most losses. It is usually
    0.01 .. 0.5 for losses of sums over tokens, and 1 .. 10 for losses of means. In orpo it is a
    weight without unit, usually 0.1.
    """

    loss: str = "dpo"  # a row of LOSSES
    beta: float | None = None  # None: the value in LOSSES
    settings: dict[str, float | None] = field(default_factory=dict)  # e.g. {"penalty": 50.0}
    batch_size: int = 32  # pairs per step
    steps: int = 100
    max_response: int = 32  # tokens, EOS included
    append_eos: bool = True  # False: responses are steps of a text, and have no EOS at their end
    reference_free: bool = False  # log pi_ref = 0, as if all responses were equally likely
    sync_every: int = 0  # steps between updates of the reference (TR-DPO); 0: it stays fixed
    mixup: float = 1.0  # weight of the policy in an updated reference: 1 (hard) or less (soft)
    precompute: bool = False  # compute the reference's log-probabilities before the first step
    optimiser: OptimiserConfig = OptimiserConfig(lr=5e-5)
    seed: int = 0

    def __post_init__(self) -> None:
        check("loss", self.loss, self.loss in LOSSES, f"one of {', '.join(LOSSES)}")
        check_batch("batch_size", self.batch_size)
        check("max_response", self.max_response, self.max_response >= 1, "at least 1")
        check("steps", self.steps, self.steps >= 1, "at least 1")
        self._check_settings(LOSSES[self.loss])
        self._check_reference(LOSSES[self.loss])
        # try the loss once: it refuses settings out of range before anything is trained
        one, zero = -torch.ones(2, device="cpu"), torch.zeros((), device="cpu")
        answers = Answers(one, one, -one.long(), one > 0, -one, zero)
        LOSSES[self.loss].of(DPOFormulas(), answers, **self.of_loss)

    def _check_settings(self, row: Loss) -> None:
        """Refuse settings that the loss does not have, and values that are not finite."""
        finite = self.beta is None or 0 < self.beta < float("inf")
        check("beta", self.beta, finite, "above 0 and finite")
        once = self.beta is None or "beta" not in self.settings
        check("beta", self.beta, once, "given once, either as beta or in settings")
        known = set(self.settings) <= set(row.settings)
        check("settings", sorted(self.settings), known, f"some of {', '.join(row.settings)}")
        for name, value in self.settings.items():
            may_be_none = name == "alpha"
            good = may_be_none if value is None else abs(value) < float("inf")
            check(name, value, good, "a finite number" + (", or none" if may_be_none else ""))

    def _check_reference(self, row: Loss) -> None:
        """Refuse settings of the reference that contradict each other or the loss."""
        check("sync_every", self.sync_every, self.sync_every >= 0, "0 (off) or more")
        good = 0 < self.mixup <= 1 if self.sync_every else self.mixup == 1
        check("mixup", self.mixup, good, "above 0, at most 1; 1 without sync_every")
        good = self.has_reference or not self.sync_every
        check("sync_every", self.sync_every, good, "0 without a reference")
        fixed = self.has_reference and not (self.sync_every or row.kl or row.single)
        good = fixed or not self.precompute
        allowed = "off, unless a fixed reference gives the loss one number per response"
        check("precompute", self.precompute, good, allowed)
        good = not (row.kl and self.reference_free)
        allowed = f"off with {self.loss}: it needs the reference's probability of every token"
        check("reference_free", self.reference_free, good, allowed)
        good = row.reference or not self.reference_free
        allowed = f"off with {self.loss}: it has no reference"
        check("reference_free", self.reference_free, good, allowed)

    @classmethod
    def plain(cls, **given: Any) -> "DPOConfig":
        """DPO with a constant learning rate and no gradient clipping."""
        return cls(**{"optimiser": OptimiserConfig.plain(lr=cls.optimiser.lr)} | given)

    @property
    def of_loss(self) -> dict[str, float | None]:
        """All settings of the loss: those in LOSSES, replaced by those that were given."""
        beta = {} if self.beta is None else {"beta": self.beta}
        return LOSSES[self.loss].settings | self.settings | beta

    @property
    def has_reference(self) -> bool:
        """Whether the loss uses a reference policy."""
        return LOSSES[self.loss].reference and not self.reference_free


def train_dpo(
    model: SomePolicy,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: DPOConfig = DPOConfig(),
    *,
    formulas: DPOFormulas = DPOFormulas(),
    reference: LanguageModel | None = None,
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[SomePolicy, History]:
    """Train `model` in place on columns `prompt`, `chosen`, `rejected`.

    KTO also takes `prompt`, `completion`, `label`.

    Random numbers: the order of the pairs is that of `shuffled_batches(..., config.seed)`. Nothing
    else is random, because dropout is off. With DPO and a reference equal to the model, the loss of
    the first step is ln 2.

    Args:
        formulas: the functions that the loop uses.
        reference: the reference policy; by default a copy of the model. It is frozen, except with
            sync_every, which updates a copy of it.
        on_step: called with each row of the history.
        checkpoint: where the run is saved and resumed from.

    Returns:
        (model, history). Rows of the history as `preference_step` gives them, and grad_norm.
    """
    single = LOSSES[config.loss].single
    if single and "label" not in dataset.column_names:
        dataset = unpaired(dataset)
    check_rows(dataset, "prompt", *(("completion", "label") if single else ("chosen", "rejected")))
    check_tokens(
        dataset,
        tokenizer,
        model,
        max_response=config.max_response,
        shifted=single,
        others=also_reading(reference=reference if config.has_reference else None),
    )
    history = History() if history is None else history
    seed_all(config.seed)
    reference = reference_for(model, config, reference)
    optimizer = make_optimizer(model, config.optimiser)
    model.eval()
    responses = config.batch_size * (2 if single else 1)  # as many responses as B pairs have
    batches = list(shuffled_batches(len(dataset), responses, config.steps, config.seed))
    run = (checkpoint or Checkpoint()).attach(
        "dpo",
        config,
        dataset,
        [model, reference] if config.sync_every else [model],
        [optimizer],
        history,
        formulas=formulas,
        reference=reference,
    )
    known = None
    if config.precompute:
        known = _precomputed(reference, tokenizer, dataset, batches, config)
    for step, index in run.steps(batches):
        # 1. The loss of each pair, from the log-probabilities under both policies; its gradient.
        rows = dataset[index.tolist()]
        ref_logprobs = None if known is None else known[:, index]
        log = preference_step(
            model,
            reference,
            tokenizer,
            rows,
            config,
            ref_logprobs=ref_logprobs,
            formulas=formulas,
        )
        # 2. Update the policy and, after every sync_every steps, the reference.
        set_learning_rate(optimizer, config.optimiser, step, config.steps)
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        if config.sync_every and (step + 1) % config.sync_every == 0:
            assert reference is not None  # the settings demand one
            sync(reference, model, config.mixup)
        # 3. Log.
        on_step(history.log("dpo", step, steps=config.steps, **log, grad_norm=grad_norm))
    return model, history


def preference_step(
    model: Policy,
    reference: LanguageModel | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: dict[str, list],
    config: DPOConfig,
    *,
    ref_logprobs: torch.Tensor | None = None,
    formulas: DPOFormulas = DPOFormulas(),
) -> dict[str, torch.Tensor]:
    """Add the gradient of the mean loss of these pairs (or single responses) to the model's.

    Args:
        rows: columns of text, as in the dataset.
        ref_logprobs: (2, B) log-probabilities of the B chosen and the B rejected responses under
            the reference, if they are already known.
        formulas: the functions to use.

    Returns:
        Metrics by TRL's names. loss: mean over pairs (over responses for kto), in the unit of the
        loss function. For DPO this is nats, and ln 2 where model and reference agree.
        rewards/chosen, rewards/rejected, rewards/margins: implicit rewards beta log pi/pi_ref
        (beta log pi without a reference; means over tokens where the loss has means).
        rewards/accuracies: share of pairs with chosen strictly above rejected. logps/chosen,
        logps/rejected: nats per response; both may fall. displaced: share of chosen responses that
        are less likely than under the reference.
    """
    row, settings = LOSSES[config.loss], config.of_loss
    prompts, responses, chosen = _texts(rows, row.single)
    baseline = torch.tensor(0.0, device="cpu")
    if row.single:
        baseline = _kto_baseline(model, reference, tokenizer, prompts, responses, config, formulas)
    count = len(chosen) if row.single else len(chosen) // 2  # losses in this step
    done = []
    for micro in config.optimiser.split(torch.arange(count, device="cpu")):
        part = micro if row.single else torch.cat([micro, micro + count])  # both sides of a pair
        batch = encode(
            tokenizer,
            [prompts[i] for i in part],
            [responses[i] for i in part],
            max_response=config.max_response,
            append_eos=config.append_eos,
        )
        known = None if ref_logprobs is None else ref_logprobs[:, micro].flatten()
        answers = _answers(
            model, reference, batch, config, chosen[part], baseline, known=known, formulas=formulas
        )
        losses = row.of(formulas, answers, **settings)
        (losses.sum() / count).backward()  # a micro-batch adds its share of the mean
        unit = answers.lengths if row.mean else 1
        rewards = formulas.implicit_rewards(
            answers.logprobs / unit, answers.ref_logprobs / unit, beta=settings["beta"]
        )
        done.append((losses.detach(), torch.stack([rewards, answers.logprobs.detach()]), part))
    return _metrics(done, chosen, row, config)


def _answers(
    model: Policy,
    reference: LanguageModel | None,
    batch: Rollout,
    config: DPOConfig,
    chosen: torch.Tensor,
    baseline: torch.Tensor,
    *,
    known: torch.Tensor | None,
    formulas: DPOFormulas,
) -> Answers:
    """The inputs of the loss for these responses; only the policy's numbers carry a gradient."""
    mask = batch.action_mask
    kl = torch.zeros(len(mask), device="cpu")
    if LOSSES[config.loss].kl:  # the KL at every position: the logits of both are needed
        assert reference is not None  # DPOConfig has checked it
        logits = policy_logits(model, batch)
        with torch.no_grad():
            ref_logits = policy_logits(reference, batch).to(logits.device)
        there = batch.to(logits.device)  # a column for every word: too much to move
        logprobs, ref = (
            sequence_logprobs(
                response_logprobs(x, there.response_ids, there.action_mask).to(batch.device), mask
            )
            for x in (logits, ref_logits)
        )
        kl = formulas.exact_kl(ref_logits, logits, there.action_mask).sum(1).to(batch.device)
    else:
        logprobs = sequence_logprobs(policy_logprobs(model, batch), mask)
        ref = torch.zeros_like(logprobs) if known is None else known
        if config.has_reference and known is None:
            assert reference is not None  # `reference_for` has made it
            with torch.no_grad():
                ref = sequence_logprobs(policy_logprobs(reference, batch), mask)
    return Answers(logprobs, ref, mask.sum(1), chosen, kl, baseline)


def _metrics(
    done: list[tuple], chosen: torch.Tensor, row: Loss, config: DPOConfig
) -> dict[str, torch.Tensor]:
    """The metrics of `preference_step`, from the parts of all micro-batches."""
    order = torch.cat([part for *_, part in done]).argsort()
    rewards, logps = torch.cat([each for _, each, _ in done], 1)[:, order]
    log = {"loss": torch.cat([losses for losses, *_ in done]).mean()}
    for name, side in (("chosen", chosen), ("rejected", ~chosen)):
        if side.any():
            log |= {f"rewards/{name}": rewards[side].mean(), f"logps/{name}": logps[side].mean()}
    if chosen.any() and not chosen.all():
        log["rewards/margins"] = log["rewards/chosen"] - log["rewards/rejected"]
    if not row.single:
        log["rewards/accuracies"] = (rewards[chosen] > rewards[~chosen]).float().mean()
    if config.has_reference and chosen.any():
        log["displaced"] = (rewards[chosen] < 0).float().mean()
    return log


def _kto_baseline(
    model: Policy,
    reference: LanguageModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    responses: list[Response],
    config: DPOConfig,
    formulas: DPOFormulas,
) -> torch.Tensor:
    """KTO's baseline, an estimate of KL(pi || pi_ref) in nats.

    It is estimated on mismatched pairs: each response after the prompt of the row before it.
    """
    shifted = prompts[-1:] + prompts[:-1]
    with torch.no_grad():
        logprobs = _summed(model, tokenizer, shifted, responses, config)
        ref_logprobs = _summed(reference, tokenizer, shifted, responses, config)
    return formulas.kto_baseline(logprobs, ref_logprobs)


def reference_for(
    model: Policy, config: DPOConfig, given: LanguageModel | None = None
) -> LanguageModel | None:
    """The reference policy: the one given, or the model as it is now; None where none is needed.

    A reference that will be updated (sync_every) is always a separate copy. So neither the model
    nor the given reference changes with it.

    Raises:
        ValueError: the reference is a model below its adapter, and sync_every would change it.
    """
    if not config.has_reference:
        return None
    if config.sync_every:
        if isinstance(given, BelowAdapter):
            raise ValueError("sync_every cannot update a model below its adapter; give a copy.")
        # requires_grad: a checkpoint saves only such weights
        return copy.deepcopy(model if given is None else given).eval().requires_grad_(True)
    return reference_of(model) if given is None else given.eval()


@torch.no_grad()
def sync(reference: LanguageModel, model: Policy, mixup: float) -> None:
    """Update the reference: mixup times the policy's weights plus (1 - mixup) times its own."""
    for old, new in zip(reference.parameters(), model.parameters(), strict=True):
        old.lerp_(new.detach(), mixup)


def _texts(rows: dict[str, list], single: bool) -> tuple[list[str], list[Response], torch.Tensor]:
    """(prompts, responses, which are chosen). Of pairs, all chosen responses come first."""
    if single:
        labels = torch.tensor(rows["label"], device="cpu")
        return rows["prompt"], in_parts(rows, "completion"), labels
    half = len(rows["prompt"])
    both = in_parts(rows, "chosen") + in_parts(rows, "rejected")
    return rows["prompt"] * 2, both, torch.arange(2 * half, device="cpu") < half


def _summed(
    model: LanguageModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    responses: list[Response],
    config: DPOConfig,
) -> torch.Tensor:
    """log pi(y | x) of each response, nats, in micro-batches; 0 where there is no model."""
    if model is None:
        return torch.zeros(len(prompts), device="cpu")
    parts = []
    for rows in config.optimiser.split(torch.arange(len(prompts), device="cpu")):
        batch = encode(
            tokenizer,
            [prompts[i] for i in rows],
            [responses[i] for i in rows],
            max_response=config.max_response,
            append_eos=config.append_eos,
        )
        parts.append(sequence_logprobs(policy_logprobs(model, batch), batch.action_mask))
    return torch.cat(parts)


@torch.no_grad()
def _precomputed(
    reference: LanguageModel | None,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    batches: list[torch.Tensor],
    config: DPOConfig,
) -> torch.Tensor:
    """(2, rows of the dataset) log pi_ref of both responses; 0 in rows that no step uses."""
    seen = torch.cat(batches).unique()
    texts = (
        _texts(dataset[rows.tolist()], single=False)[:2] for rows in seen.split(config.batch_size)
    )
    found = torch.cat(
        [_summed(reference, tokenizer, *both, config).view(2, -1) for both in texts], 1
    )
    known = found.new_zeros(2, len(dataset))
    known[:, seen] = found
    return known
