"""Preference optimisation: from pairs to a policy, no reward model and no sampling.

    loss = -log sigmoid(beta [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)])        (Rafailov et al. 2023)

and the other losses of its family: LOSSES. Pairs of the policy's own making: loops/online.py.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from datasets import Dataset

from minirlhf.core.kl import exact_kl
from minirlhf.core.logprobs import response_logprobs, sequence_logprobs
from minirlhf.core.preference import (
    cdpo,
    cpo,
    dpo,
    dpop,
    hinge,
    implicit_rewards,
    ipo,
    kto,
    kto_baseline,
    nca,
    orpo,
    robust_dpo,
    simpo,
    tdpo,
)
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.adapters import reference_of
from minirlhf.models.forward import encode, policy_logits, policy_logprobs
from minirlhf.runtime import History, check, seed_all
from minirlhf.tasks.formats import check_rows, unpaired


@dataclass(frozen=True)
class Answers:
    """What a loss may ask for of N responses; of B pairs N = 2B, the chosen ones first.

    logprobs, ref_logprobs: (N,) nats a response. lengths: (N,) tokens. chosen: (N,) bool. kl: (N,) KL(pi_ref || pi), summed over the
    places of a response, nats. kl_baseline: nats.
    """

    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    lengths: torch.Tensor
    chosen: torch.Tensor
    kl: torch.Tensor
    kl_baseline: torch.Tensor

    @property
    def four(self) -> tuple[torch.Tensor, ...]:
        return *self.logprobs.chunk(2), *self.ref_logprobs.chunk(2)

    @property
    def means(self) -> tuple[torch.Tensor, ...]:
        return (self.logprobs / self.lengths).chunk(2)


@dataclass(frozen=True)
class Loss:
    """A row of LOSSES. settings: its own, by name. reference: does it need one? kl: at every place? single: responses, not pairs.
    mean: over a response's tokens, in the place of sums.
    """

    of: Callable[..., torch.Tensor]
    settings: dict[str, float]
    reference: bool = True
    kl: bool = False
    single: bool = False
    mean: bool = False


LOSSES = {
    "dpo": Loss(lambda x, **s: dpo(*x.four, **s), {"beta": 0.1}),
    "cdpo": Loss(lambda x, **s: cdpo(*x.four, **s), {"beta": 0.1, "label_smoothing": 0.2}),
    "robust": Loss(lambda x, **s: robust_dpo(*x.four, **s), {"beta": 0.1, "label_smoothing": 0.2}),
    "ipo": Loss(lambda x, **s: ipo(*x.four, **s), {"beta": 0.1}),
    "ipo-mean": Loss(
        lambda x, **s: ipo(
            *x.four,
            **s,
            chosen_lengths=x.lengths.chunk(2)[0],
            rejected_lengths=x.lengths.chunk(2)[1],
        ),
        {"beta": 1.0},
        mean=True,
    ),
    "hinge": Loss(lambda x, **s: hinge(*x.four, **s), {"beta": 0.1}),
    "dpop": Loss(lambda x, **s: dpop(*x.four, **s), {"beta": 0.1, "penalty": 5.0}),
    "nca": Loss(lambda x, **s: nca(*x.four, **s), {"beta": 0.1}),
    "tdpo": Loss(
        lambda x, **s: tdpo(*x.four, *x.kl.chunk(2), **s), {"beta": 0.1, "alpha": 0.5}, kl=True
    ),
    "kto": Loss(
        lambda x, **s: kto(x.logprobs, x.ref_logprobs, x.chosen, x.kl_baseline, **s),
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        single=True,
    ),
    "cpo": Loss(
        lambda x, **s: cpo(*x.four[:2], **s), {"beta": 0.1, "nll_coef": 1.0}, reference=False
    ),
    "simpo": Loss(
        lambda x, **s: simpo(*x.means, **s),
        {"beta": 2.0, "margin": 1.0},
        reference=False,
        mean=True,
    ),
    "orpo": Loss(lambda x, **s: orpo(*x.means, **s), {"beta": 0.1}, reference=False, mean=True),
}


@dataclass(frozen=True)
class DPOConfig:
    """Settings of DPO and its family."""

    loss: str = "dpo"  # a row of LOSSES
    beta: float | None = (
        None  # reward units per nat, 0.01 .. 0.5 for sums, 1 .. 10 for means; None: the row's own
    )
    settings: dict[str, float | None] = field(
        default_factory=dict
    )  # of the loss, in the place of the row's own: {"penalty": 50.0}
    batch_size: int = 32  # pairs a step
    steps: int = 100
    max_response: int = 32  # tokens, EOS included
    reference_free: bool = False  # log pi_ref = 0, as if every text had been as likely
    sync_every: int = 0  # steps after which the reference moves to the policy (TR-DPO, Gorbatovski et al. 2024); 0: it is kept
    mixup: float = 1.0  # how far it moves: 1 all the way (a hard update), 0.6 a part of it (soft)
    precompute: bool = False  # the reference's log-probabilities, once before the first step
    optimiser: OptimiserConfig = OptimiserConfig(lr=5e-5)
    seed: int = 0

    def __post_init__(self):
        check("loss", self.loss, self.loss in LOSSES, f"one of {', '.join(LOSSES)}")
        row = LOSSES[self.loss]
        check("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check("steps", self.steps, self.steps >= 1, "at least 1")
        check(
            "beta",
            self.beta,
            self.beta is None or 0 < self.beta < float("inf"),
            "above 0 and finite",
        )
        check(
            "beta",
            self.beta,
            self.beta is None or "beta" not in self.settings,
            "given once, alone or among the settings",
        )
        check(
            "settings",
            sorted(self.settings),
            set(self.settings) <= set(row.settings),
            f"some of {', '.join(row.settings)}",
        )
        for name, value in self.settings.items():
            told = (
                value is not None
                and abs(value) < float("inf")
                or (value is None and name == "alpha")
            )
            check(name, value, told, "a finite number" + (", or none" if name == "alpha" else ""))
        check("sync_every", self.sync_every, self.sync_every >= 0, "0 (off) or more")
        check(
            "mixup",
            self.mixup,
            0 < self.mixup <= 1 if self.sync_every else self.mixup == 1,
            "above 0, at most 1; 1 without sync_every",
        )
        check(
            "sync_every",
            self.sync_every,
            self.has_reference or not self.sync_every,
            "0 without a reference",
        )
        fixed = self.has_reference and not (self.sync_every or row.kl or row.single)
        check(
            "precompute",
            self.precompute,
            fixed or not self.precompute,
            "off unless one number a response of a kept reference is needed",
        )
        check(
            "reference_free",
            self.reference_free,
            not (row.kl and self.reference_free),
            f"off with {self.loss}: it needs every logit",
        )
        check(
            "reference_free",
            self.reference_free,
            row.reference or not self.reference_free,
            f"off with {self.loss}: it has no reference",
        )
        one = -torch.ones(
            2
        )  # the loss itself says what it does not take, before anything is trained
        row.of(
            Answers(one, one, torch.tensor([1, 1]), one > 0, -one, torch.tensor(0.0)),
            **self.of_loss,
        )

    @property
    def of_loss(self) -> dict[str, float]:
        """All settings of the loss: the row's own, and what was given in their place."""
        return (
            LOSSES[self.loss].settings
            | self.settings
            | ({} if self.beta is None else {"beta": self.beta})
        )

    @property
    def has_reference(self) -> bool:
        return LOSSES[self.loss].reference and not self.reference_free


def train_dpo(
    model,
    tokenizer,
    dataset: Dataset,
    config: DPOConfig = DPOConfig(),
    *,
    reference=None,
    history: History | None = None,
    on_step=lambda row: None,
    checkpoint: Checkpoint | None = None,
):
    """Train `model` in place on columns `prompt`, `chosen`, `rejected`; kto takes `prompt`, `completion`, `label` as well.

    Returns:
        (model, history). Rows as `preference_step` makes them, and grad_norm.
    """
    single = LOSSES[config.loss].single
    if single and "label" not in dataset.column_names:
        dataset = unpaired(dataset)
    check_rows(dataset, "prompt", *(("completion", "label") if single else ("chosen", "rejected")))
    history = History() if history is None else history
    seed_all(config.seed)
    reference = reference_for(model, config, reference)  # under no_grad, never trained
    optimizer = make_optimizer(model, config.optimiser)
    model.eval()  # dropout off: the loss must be ln 2 at step 0
    batches = list(
        shuffled_batches(len(dataset), config.batch_size * (1 + single), config.steps, config.seed)
    )
    known = (
        _precomputed(reference, tokenizer, dataset, batches, config) if config.precompute else None
    )
    run = (checkpoint or Checkpoint()).attach(
        "dpo",
        config,
        dataset,
        [model, reference] if config.sync_every else [model],
        [optimizer],
        history,
    )
    for step, index in run.steps(batches):
        linear_decay(optimizer, config.optimiser.lr, step, config.steps)
        # 1. log-probabilities, the loss of each pair, its gradient
        given = None if known is None else known[:, index]
        log = preference_step(
            model, reference, tokenizer, dataset[index.tolist()], config, ref_logprobs=given
        )
        # 2. update the policy and, now and then, the reference
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        if config.sync_every and (step + 1) % config.sync_every == 0:
            sync(reference, model, config.mixup)
        # 3. log
        on_step(history.log("dpo", step, steps=config.steps, **log, grad_norm=grad_norm))
    return model, history


def preference_step(
    model,
    reference,
    tokenizer,
    rows: dict[str, list],
    config: DPOConfig,
    *,
    ref_logprobs: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Add the gradient of the mean loss of these pairs (or of single responses) to the model's.

    Args:
        rows: columns of text. ref_logprobs: (2, B), chosen and rejected, where they are known.

    Returns:
        TRL's names: loss (DPO: ln 2 where model and reference agree); rewards/chosen, rewards/rejected, rewards/margins (implicit
        rewards, beta log pi/pi_ref, a token's mean where the loss has means; without a reference beta log pi), rewards/accuracies
        (strict >; pairs only); logps/chosen, logps/rejected (nats a response; both may fall), and displaced: the share of chosen
        responses that are less likely than in the reference.
    """
    row, settings = LOSSES[config.loss], config.of_loss
    prompts, responses, chosen = _texts(rows, row.single)
    width, baseline = config.max_response, torch.tensor(0.0)
    if (
        row.single
    ):  # KTO: how much likelier is any text by now? asked of responses under the prompts of others
        with torch.no_grad():
            pairs = [
                _summed(m, tokenizer, prompts[-1:] + prompts[:-1], responses, config)
                for m in (model, reference)
            ]
        baseline = kto_baseline(*pairs)
    count, done = len(chosen) if row.single else len(chosen) // 2, []
    for micro in config.optimiser.split(torch.arange(count)):
        part = micro if row.single else torch.cat([micro, micro + count])
        batch = encode(
            tokenizer, [prompts[i] for i in part], [responses[i] for i in part], max_response=width
        )
        mask, kl = batch.response_mask, torch.zeros(len(part))
        if row.kl:
            logits = policy_logits(model, batch)
            with torch.no_grad():
                ref_logits = policy_logits(reference, batch)
            logprobs, ref = (
                sequence_logprobs(response_logprobs(x, batch.response_ids, mask), mask)
                for x in (logits, ref_logits)
            )
            kl = exact_kl(ref_logits, logits, mask).sum(1)
        else:
            logprobs = sequence_logprobs(policy_logprobs(model, batch), mask)
            ref = (
                torch.zeros_like(logprobs)
                if ref_logprobs is None
                else ref_logprobs[:, micro].flatten()
            )
            if config.has_reference and ref_logprobs is None:
                with torch.no_grad():
                    ref = sequence_logprobs(policy_logprobs(reference, batch), mask)
        losses = row.of(Answers(logprobs, ref, mask.sum(1), chosen[part], kl, baseline), **settings)
        (losses.sum() / count).backward()  # a micro-batch adds its share of their mean
        unit = mask.sum(1) if row.mean else 1
        each = torch.stack(
            [
                implicit_rewards(logprobs / unit, ref / unit, beta=settings["beta"]),
                logprobs.detach(),
            ]
        )
        done.append((losses.detach(), each, part))
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


def reference_for(model, config: DPOConfig, given=None):
    """The one given, or the policy as it is now; a copy of its own where it is to move; None where the loss asks for none."""
    if not config.has_reference:
        return None
    if config.sync_every:
        return (
            copy.deepcopy(model if given is None else given).eval().requires_grad_(True)
        )  # what moves is in the checkpoint
    return reference_of(model) if given is None else given.eval()


@torch.no_grad()
def sync(reference, model, mixup: float) -> None:
    """reference <- mixup policy + (1 - mixup) reference, weight by weight."""
    for old, new in zip(reference.parameters(), model.parameters(), strict=True):
        old.lerp_(new.detach(), mixup)


def _texts(rows: dict[str, list], single: bool) -> tuple[list[str], list[str], torch.Tensor]:
    """(prompts, responses, which are chosen): of pairs the chosen ones first."""
    if single:
        return rows["prompt"], rows["completion"], torch.tensor(rows["label"])
    half = len(rows["prompt"])
    return rows["prompt"] * 2, rows["chosen"] + rows["rejected"], torch.arange(2 * half) < half


def _summed(
    model, tokenizer, prompts: list[str], responses: list[str], config: DPOConfig
) -> torch.Tensor:
    """log pi(y | x) of each response, nats, in micro-batches; 0 of no model."""
    if model is None:
        return torch.zeros(len(prompts))
    parts = []
    for rows in config.optimiser.split(torch.arange(len(prompts))):
        batch = encode(
            tokenizer,
            [prompts[i] for i in rows],
            [responses[i] for i in rows],
            max_response=config.max_response,
        )
        parts.append(sequence_logprobs(policy_logprobs(model, batch), batch.response_mask))
    return torch.cat(parts)


@torch.no_grad()
def _precomputed(
    reference, tokenizer, dataset: Dataset, batches: list[torch.Tensor], config: DPOConfig
) -> torch.Tensor:
    """(2, rows of the dataset) log pi_ref of both responses; 0 in rows that no step will see."""
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
