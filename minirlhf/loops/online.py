"""Preference optimisation on pairs of the policy's own making: a scorer looks at its responses and decides.

online       two responses to each prompt, the better one is chosen, one step                  (Guo et al. 2024)
iterative    k responses, the best against the worst, some steps on these pairs, again         (Xiong et al. 2023)
rso          k responses of the start, two kept by rejection sampling, all steps on them       (Liu et al. 2023)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange

from minirlhf.core.masking import masked_mean
from minirlhf.core.rejection import rejection_sample
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import KLConfig
from minirlhf.loops.preference import LOSSES, DPOConfig, preference_step, reference_for, sync
from minirlhf.models.forward import decode, encode_prompts
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.runtime import History, check, seed_all

PICKS = ("best and worst", "rejection")


@dataclass(frozen=True)
class OnlineConfig:
    """Where the pairs come from; `dpo` says what is done with them."""

    samples: int = 2  # k responses a prompt, 2 .. 16
    refresh: int = 1  # steps that are made on the responses of one policy; then it writes new ones
    pick: str = "best and worst"  # or rejection: two kept by rejection sampling
    missing_eos_penalty: float = (
        1.0  # reward units, taken off a truncated response before a pair is chosen
    )
    accept_beta: float = 0.5  # reward units per nat of the policy that rejection sampling imitates
    sampling: SamplingConfig = SamplingConfig()
    dpo: DPOConfig = DPOConfig()

    def __post_init__(self):
        check("samples", self.samples, self.samples >= 2, "at least 2: a pair")
        check("refresh", self.refresh, self.refresh >= 1, "at least 1")
        check("pick", self.pick, self.pick in PICKS, f"one of {', '.join(PICKS)}")
        check(
            "accept_beta",
            self.accept_beta,
            0 < self.accept_beta < float("inf"),
            "above 0 and finite",
        )
        check(
            "missing_eos_penalty",
            self.missing_eos_penalty,
            0 <= self.missing_eos_penalty < float("inf"),
            "0 or more, and finite",
        )
        check("loss", self.dpo.loss, not LOSSES[self.dpo.loss].single, "a loss of pairs")
        check(
            "precompute",
            self.dpo.precompute,
            not self.dpo.precompute,
            "off: the texts are not known before",
        )

    def with_steps(self, steps: int) -> "OnlineConfig":
        """As many steps; what was written once for all of them still is."""
        refresh = steps if self.refresh == self.dpo.steps else min(self.refresh, steps)
        return replace(self, refresh=refresh, dpo=replace(self.dpo, steps=steps))


LEASH = DPOConfig(
    beta=KLConfig.kl_coef
)  # the number of PPO's price; not the same leash: labels that are always sure go farther
ONLINE = {  # by name, as the command line knows them
    "online-dpo": OnlineConfig(dpo=LEASH),
    "iterative-dpo": OnlineConfig(samples=4, refresh=25, dpo=LEASH),
    "rso": OnlineConfig(
        samples=4,
        refresh=DPOConfig.steps,
        pick="rejection",
        accept_beta=LEASH.beta,
        dpo=replace(LEASH, loss="hinge"),
    ),
}


def train_online(
    model,
    tokenizer,
    prompts: list[str],
    score: Callable,
    config: OnlineConfig = OnlineConfig(),
    *,
    reference=None,
    monitors: dict[str, Callable] | None = None,
    history: History | None = None,
    on_step=lambda row: None,
    checkpoint: Checkpoint | None = None,
):
    """Train `model` in place.

    Args:
        score: Rollout -> (B,) reward units. monitors: the same, only logged.

    Returns:
        (model, history). Rows as `preference_step` makes them, and grad_norm, pairs (of the step; two equal texts or scores make none).
        Of the responses, in the steps before which they were written: score, length, entropy (nats a token, estimated), monitors.
    """
    history, own = History() if history is None else history, config.dpo
    generator, sampling = seed_all(own.seed), config.sampling.for_training()
    reference = reference_for(model, own, reference)  # under no_grad, never trained
    optimizer = make_optimizer(model, own.optimiser)
    state = {"pool": []}  # rows of text for the steps to come; they are in the checkpoint too
    model.eval()
    run = (checkpoint or Checkpoint()).attach(
        "online",
        config,
        prompts,
        [model, reference] if own.sync_every else [model],
        [optimizer],
        history,
        generators=[generator],
        state=state,
    )
    batches = list(shuffled_batches(len(prompts), own.batch_size, own.steps, own.seed))
    for step, _ in run.steps(batches):
        log = {}
        # 1. responses to the prompts of the next steps, and what the scorer thinks of them
        if step % config.refresh == 0:
            state["pool"], said = [], []
            for index in batches[step : step + config.refresh]:
                asked = [prompts[i] for i in index]
                rollout = sample(
                    model,
                    *encode_prompts(tokenizer, asked),
                    eos_id=tokenizer.eos_token_id,
                    config=sampling,
                    samples_per_prompt=config.samples,
                    generator=generator,
                )
                with torch.no_grad():
                    scores = score(rollout)
                worth = scores - config.missing_eos_penalty * ~rollout.finished(
                    tokenizer.eos_token_id
                )
                state["pool"].append(
                    pairs_of(asked, decode(tokenizer, rollout), worth, config, generator)
                )
                said.append(
                    {
                        "score": scores.mean(),
                        "length": rollout.response_mask.sum(1).float().mean(),
                        "entropy": -masked_mean(rollout.old_logprobs, rollout.response_mask),
                    }
                    | {name: monitor(rollout).mean() for name, monitor in (monitors or {}).items()}
                )
            log = {name: torch.stack([row[name] for row in said]).mean() for name in said[0]}
        # 2. one step on the pairs of this step's prompts
        rows = state["pool"].pop(0)
        linear_decay(optimizer, own.optimiser.lr, step, own.steps)
        if rows["prompt"]:
            log |= preference_step(model, reference, tokenizer, rows, own)
            log["grad_norm"] = clipped_step(model, optimizer, own.optimiser.max_grad_norm)
        if own.sync_every and (step + 1) % own.sync_every == 0:
            sync(reference, model, own.mixup)
        # 3. log
        on_step(history.log("online", step, steps=own.steps, pairs=len(rows["prompt"]), **log))
    return model, history


def pairs_of(
    prompts: list[str],
    texts: list[str],
    scores: torch.Tensor,
    config: OnlineConfig,
    generator: torch.Generator | None = None,
) -> dict[str, list[str]]:
    """One pair a prompt from its k responses, side by side in `texts`: columns prompt, chosen, rejected.

    No pair where both texts, or both scores, are the same: nobody could say which is better.
    """
    grouped = rearrange(scores, "(n k) -> n k", k=config.samples)
    if config.pick == "rejection":
        two = rejection_sample(grouped, beta=config.accept_beta, count=2, generator=generator)
        two = two.gather(1, grouped.gather(1, two).argsort(1, descending=True))
    else:
        two = torch.stack([grouped.argmax(1), grouped.argmin(1)], 1)
    rows = []
    for n, (best, worst) in enumerate(two.tolist()):
        chosen, rejected = texts[n * config.samples + best], texts[n * config.samples + worst]
        if grouped[n, best] > grouped[n, worst] and chosen != rejected:
            rows.append((prompts[n], chosen, rejected))
    return {
        name: [row[i] for row in rows] for i, name in enumerate(("prompt", "chosen", "rejected"))
    }
