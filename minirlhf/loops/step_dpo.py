"""Step-DPO: preferences between single steps of a written solution.

    prompt      8+5-2*3+1=     the problem
    prefix      8+5-6+1=       the right steps before the first wrong one; read, and not learned
    rejected    14-6+1=        the first wrong step, as the policy wrote it
    chosen      13-6+1=        a right step that the policy wrote when it tried again

1. The policy writes a response. Its steps are checked in order, up to the first wrong one.
2. From the same prefix the policy writes this step again, until a try is right.
3. One step of DPO on these pairs. The loss counts the tokens of the step and of its end.

A step is not the end of a response, so no EOS is added to it. Imitation of steps with an added EOS
makes the policy end its responses early (lab 15b). In DPO both steps of a pair would have it, so
there it hardly matters. The last step of a response ends with the EOS that was sampled.

One label is one step checked. Responses and prefixes stay the token ids that were sampled.

Source: Lai et al. 2024 (Step-DPO).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from transformers import PreTrainedTokenizerBase

from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.config import check_batch
from minirlhf.loops.losses import LOSSES, DPOFormulas
from minirlhf.loops.online import Rows, train_on_own
from minirlhf.loops.preference import DPOConfig
from minirlhf.loops.rows import also_reading
from minirlhf.models.adapters import LanguageModel, Policy, SomePolicy
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import encode_prompts, left_padded, text_of
from minirlhf.models.sampling import SamplingConfig
from minirlhf.models.steps import step_end_ids, steps_of
from minirlhf.runtime import History, OnStep, PromptError, Row, check, seed_all
from minirlhf.runtime.shared import settings_kept
from minirlhf.runtime.user_code import name_of, on_one_line, raised

# (prompt, steps before, step with its end) -> whether the step is right
StepJudge = Callable[[str, str, str], bool]


@dataclass(frozen=True)
class StepDPOConfig:
    """How pairs of steps are made. `dpo` holds the settings of the training on them."""

    step_end: str = "\n"  # text that ends a step; EOS always does
    tries: int = 8  # times that the policy writes a wrong step again, at most
    max_step: int = 32  # tokens of a step, its end included
    refresh: int = 1  # steps on the responses of one policy before new responses are sampled
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=96, temperature=1.0)
    dpo: DPOConfig = DPOConfig(append_eos=False, max_response=128)

    def __post_init__(self) -> None:
        for name in ("tries", "max_step", "refresh"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        check_batch("batch_size * tries", self.dpo.batch_size * self.tries)
        check("step_end", self.step_end, self.step_end != "", "the text that ends a step")
        single = LOSSES[self.dpo.loss].single
        check("loss", self.dpo.loss, not single, "a loss of pairs")
        allowed = "off: the responses are not known before the first step"
        check("precompute", self.dpo.precompute, not self.dpo.precompute, allowed)
        allowed = "off: a step is not the end of a response"
        check("append_eos", self.dpo.append_eos, not self.dpo.append_eos, allowed)
        needed = self.max_new_tokens
        allowed = f"at least max_new_tokens + max_step = {needed}"
        check("max_response", self.dpo.max_response, self.dpo.max_response >= needed, allowed)

    @property
    def max_new_tokens(self) -> int:
        """Most tokens after a prompt: a response and one step written again."""
        return self.sampling.max_new_tokens + self.max_step


def train_step_dpo(
    model: SomePolicy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Any],
    judge: StepJudge,
    config: StepDPOConfig = StepDPOConfig(),
    *,
    formulas: DPOFormulas = DPOFormulas(),
    reference: LanguageModel | None = None,
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[SomePolicy, History]:
    """Train `model` in place on pairs of its own steps.

    Random numbers: as in `train_online`. The generator draws the responses to each batch of prompts
    and then the tries of their first wrong steps.

    Args:
        prompts: texts or conversations, in any form that `tasks.prompt_texts` reads.
        judge: (prompt, steps before, step) -> True if the step is right. All three are texts; the
            steps before and the step include the text that ends a step. A step without it is the
            last one. It is empty if the policy ended the response right after the step before.
            What the judge sets in torch is set back.
        reference: the reference policy; by default a copy of the model.
        checkpoint: where the run is saved and resumed from.

    Returns:
        (model, history). Rows of the history as `preference_step` gives them, grad_norm, and pairs
        (their number). A step that samples new responses also logs: right (share of responses that
        are finished and have no wrong step), labels (steps checked, per batch of prompts) and
        mended (share of the first wrong steps for which a try was right; left out where no step
        was wrong).

    Raises:
        PromptError: the judge raised, or returned something else than True or False (1 or 0).
    """
    generator = seed_all(config.dpo.seed)
    ends = step_end_ids(model, tokenizer, config.step_end)

    def make(texts: list[str], index: torch.Tensor, step: int) -> tuple[Rows, Row]:
        some = [texts[i] for i in index]
        try:
            return step_pairs(model, tokenizer, some, judge, config, ends, generator, formulas)
        except PromptError as error:
            error.prompt = int(index[error.prompt])  # among all prompts
            raise

    return train_on_own(
        "step_dpo",
        model,
        tokenizer,
        prompts,
        make,
        config,
        max_new_tokens=config.max_new_tokens,
        generator=generator,
        others=also_reading(reference=reference if config.dpo.has_reference else None),
        formulas=formulas,
        judge=judge,
        reference=reference,
        history=history,
        on_step=on_step,
        checkpoint=checkpoint,
    )


@torch.no_grad()
def step_pairs(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    judge: StepJudge,
    config: StepDPOConfig,
    ends: tuple[int, ...],
    generator: torch.Generator | None = None,
    formulas: DPOFormulas = DPOFormulas(),
) -> tuple[Rows, Row]:
    """Pairs of a right and a wrong step after the same prefix, both written by the policy.

    Args:
        ends: the ids that end a step, see `step_end_ids`.

    Returns:
        (rows, metrics): columns prompt, chosen, rejected. A response is [(ids of the prefix,
        False), (ids of the step, True)], so that the prefix is read and has no loss. Metrics as
        `train_step_dpo` logs them.
    """
    ids, mask = encode_prompts(tokenizer, prompts)
    batch = formulas.sample(
        model,
        ids,
        mask,
        eos_id=end_ids(model, tokenizer),
        config=config.sampling,
        generator=generator,
    )
    checks = _Checks(tokenizer, judge, prompts)
    # 1. The first wrong step of each response.
    wrong: dict[int, tuple[list[int], list[int]]] = {}  # number of the prompt: (prefix, step)
    for row, steps in enumerate(steps_of(batch, ends)):
        before: list[int] = []
        for step in steps:
            if not checks.is_right(row, before, step):
                wrong[row] = (before, step)
                break
            before = before + step
    finished = batch.finished(end_ids(model, tokenizer)).tolist()
    right = sum(done and row not in wrong for row, done in enumerate(finished))
    # 2. The same steps once more, from the same prefixes: the first try that is right.
    rows: Rows = {"prompt": [], "chosen": [], "rejected": []}
    tries = _tries(model, tokenizer, batch, wrong, config, ends, generator, formulas)
    for (row, (before, rejected)), written in zip(wrong.items(), tries, strict=True):
        for step in written:
            if checks.is_right(row, before, step):
                rows["prompt"].append(prompts[row])
                rows["chosen"].append([(before, False)] * bool(before) + [(step, True)])
                rows["rejected"].append([(before, False)] * bool(before) + [(rejected, True)])
                break
    counts = {"right": right / len(prompts), "labels": float(checks.count)}
    if wrong:
        counts["mended"] = len(rows["prompt"]) / len(wrong)
    return rows, {name: torch.tensor(value, device="cpu") for name, value in counts.items()}


class _Checks:
    """Checks of steps. A step that is written again in the same place is not checked again."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, judge: StepJudge, prompts: list[str]
    ) -> None:
        self.tokenizer, self.judge, self.prompts, self.count = tokenizer, judge, prompts, 0
        self.known: dict[tuple, bool] = {}

    def is_right(self, row: int, before: list[int], step: list[int]) -> bool:
        """What the judge says of a step of the response to prompt `row`, which counts from 0."""
        key = (self.prompts[row], tuple(before), tuple(step))
        if key not in self.known:
            self.known[key] = self._asked(row, before, step)
            self.count += 1
        return self.known[key]

    def _asked(self, row: int, before: list[int], step: list[int]) -> bool:
        read = [text_of(self.tokenizer, x, skip_special_tokens=True) for x in (before, step)]
        prompt = self.prompts[row]
        named = f"The judge {name_of(self.judge)}"
        given = f"for the step {read[1][:60]!r} after {read[0][-60:]!r} of prompt {prompt[:60]!r}"
        try:
            with settings_kept():
                right = self.judge(prompt, *read)
        except KeyboardInterrupt:  # Ctrl-C
            raise
        except BaseException as error:
            raise PromptError(f"{named} {raised(error, self.judge)}, {given}.", row) from error
        # bool_ is the True of numpy
        if not (isinstance(right, bool | int | float | numpy.bool_) and right in (0, 1)):
            raise PromptError(
                f"{named} returned {on_one_line(right, 60, repr)}, of type {type(right).__name__}, "
                f"{given}; it must be True or False.",
                row,
            )
        return bool(right)


def _tries(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    batch: Rollout,
    wrong: dict[int, tuple[list[int], list[int]]],
    config: StepDPOConfig,
    ends: tuple[int, ...],
    generator: torch.Generator | None,
    formulas: DPOFormulas,
) -> list[list[list[int]]]:
    """For each wrong step: the ids of the finished steps that the policy writes in its place.

    After the end of a step, a further end is no step (`core.step_ends`), so such a try is left out.
    """
    if not wrong:
        return []
    prefixes = [
        batch.prompt_ids[row][batch.prompt_mask[row]].tolist() + before
        for row, (before, _) in wrong.items()
    ]
    drawn = formulas.sample(
        model,
        *left_padded(prefixes),
        eos_id=ends,
        config=replace(config.sampling, max_new_tokens=config.max_step),
        samples_per_prompt=config.tries,
        generator=generator,
    )
    written = [
        ids[real].tolist() if done else []
        for ids, real, done in zip(
            drawn.response_ids, drawn.response_mask, drawn.finished(ends), strict=True
        )
    ]
    further = set(ends) - set(end_ids(model, tokenizer))  # EOS is a step of its own
    groups = [written[i : i + config.tries] for i in range(0, len(written), config.tries)]
    return [
        [step for step in group if step and not (before and step[0] in further)]
        for group, (before, _) in zip(groups, wrong.values(), strict=True)
    ]
