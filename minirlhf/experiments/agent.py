"""tiny-agent, a policy that can call a calculator: how it is trained, and how it is judged."""

from collections import Counter
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minirlhf import evaluate
from minirlhf.core.masking import aggregate
from minirlhf.core.policy_gradient import sft_loss
from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import shuffled_batches
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.pretrain import PretrainConfig, make_optimizers, new_gpt2, schedule
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import Policy, fused_gelu
from minirlhf.models.agent import Tool
from minirlhf.models.forward import decode, encode, policy_logprobs, text_of
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.rules import right_with_calculator
from minirlhf.runtime import History, OnStep, seed_all
from minirlhf.tasks import calculator
from minirlhf.tasks.conversations import in_parts

ASKED = 400  # held-out problems
TRIES = 16  # samples of each
SAMPLING = SamplingConfig(max_new_tokens=32, temperature=1.0)
DEMONSTRATIONS, STEPS, MORE_STEPS = 100_000, 3000, 200
# shares of right calls, wrong calls and answers in the head
FIRST, SHARES = (0.85, 0.05, 0.1), (0.3, 0.1, 0.6)


def train_tiny_agent(
    seed: int = 0, steps: int = STEPS, *, history: History | None = None, **on: Any
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, History]:
    """Train tiny-agent: a new GPT-2 of 0.8 M parameters, on 100,000 solved problems.

    In the first part most demonstrations call the calculator, so that the model learns to copy the
    product into a call and to go on from the result. In the second part six in ten answer in the
    head, which the model cannot do. So it starts with a habit that training on rewards can change.

    Args:
        steps: of the first part. on: on_step and checkpoint, as of `train_sft`; only the first part
            has a checkpoint, so a resumed run repeats the second, which takes a minute.

    Returns:
        (model, tokenizer, history).
    """
    tokenizer, history = calculator.agent_tokenizer(), History() if history is None else history
    found = calculator.problems("train", DEMONSTRATIONS)
    seed_all(seed)
    model = fused_gelu(new_gpt2(tokenizer, layers=4, width=128, positions=128))
    rows = calculator.demonstrations(found, FIRST)
    config = PretrainConfig(steps=steps, batch_size=64, lr=2e-3, seed=seed)
    imitate(model, tokenizer, rows, config, history=history, **on)
    on.pop("checkpoint", None)
    rows = calculator.demonstrations(found, SHARES)
    last = SFTConfig(
        batch_size=64,
        epochs=64 * MORE_STEPS / len(rows),
        optimiser=OptimiserConfig(lr=2e-4),
        seed=seed,
    )
    model, history = train_sft(model, tokenizer, rows, last, history=history, **on)
    return model, tokenizer, history


def imitate(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    config: PretrainConfig,
    *,
    history: History,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """SFT with the optimisers and the schedule of pre-training, in place.

    In one run each, the loss after about 1,400 steps was 0.54 nats per token with AdamW alone, and
    0.20 with Muon.

    Args:
        rows: columns prompt, completion and completion_spans.
        config: its steps, batch_size, learning rates, warm-up and seed.
    """
    optimizers = make_optimizers(model, config)
    run = (checkpoint or Checkpoint()).attach("imitate", config, rows, [model], optimizers, history)
    model.eval()
    batches = shuffled_batches(len(rows), config.batch_size, config.steps, config.seed)
    for step, index in run.steps(batches):
        # 1. Text to tokens.
        some = rows[index.tolist()]
        batch = encode(tokenizer, some["prompt"], in_parts(some, "completion"))
        # 2. The mean loss of the tokens that the policy writes, and its gradient.
        losses = sft_loss(policy_logprobs(model, batch), batch.action_mask)
        loss = aggregate(losses, batch.action_mask)
        loss.backward()
        # 3. Update and log.
        for optimizer, peak in zip(optimizers, (config.lr, config.matrix_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(step, config)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        on_step(history.log("imitate", step, steps=config.steps, loss=loss, grad_norm=grad_norm))


def judged_agent(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, *, seed: int, tool: Tool | None = None
) -> dict:
    """Evaluate an agent on held-out problems.

    Args:
        tool: of the numbers of `evaluate.pass_summary`; by default a calculator without errors.

    Returns:
        The numbers of `evaluate.pass_summary`. in_the_head: share of right answers if the response
        must begin with ~, that is, without the calculator. And the share of each of
        `calculator.OUTCOMES` among single samples. These are drawn with a calculator without errors
        whatever `tool` is: the shares say how the policy calls.
    """
    prompts = [p.prompt for p in calculator.problems("test", ASKED)]
    row = evaluate.pass_summary(
        policy,
        tokenizer,
        prompts,
        right_with_calculator,
        samples=TRIES,
        seed=1000 + seed,
        config=SAMPLING,
        tool=calculator.Calculator(tokenizer) if tool is None else tool,
    )
    return row | {
        "in_the_head": right_in_the_head(policy, tokenizer, prompts, seed=seed),
        **outcome_shares(policy, tokenizer, prompts, seed=seed),
    }


def right_in_the_head(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, seed: int
) -> float:
    """Share of right answers, one sample for each prompt, if the response begins with ~."""
    drawn = sample_text(
        policy, tokenizer, [p + "~" for p in prompts], config=SAMPLING, seed=2000 + seed
    )
    texts = [text for batch in drawn for text in decode(tokenizer, batch)]
    return sum(right_with_calculator(prompts, texts)) / len(prompts)


def outcome_shares(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, seed: int
) -> dict[str, float]:
    """The share of each of `calculator.OUTCOMES`, one sample for each prompt."""
    tool = calculator.Calculator(tokenizer)
    drawn = sample_text(policy, tokenizer, prompts, config=SAMPLING, seed=3000 + seed, tool=tool)
    written = [text for batch in drawn for text in written_by_policy(batch, tokenizer)]
    named = Counter(
        calculator.outcome(prompt.removesuffix("="), text)
        for prompt, text in zip(prompts, written, strict=True)
    )
    return {name: named[name] / len(prompts) for name in calculator.OUTCOMES}


def asked_once(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    tool: Tool,
    *,
    seed: int,
    asked: int = ASKED,
    config: SamplingConfig = SAMPLING,
) -> dict[str, float]:
    """One sample for each of so many held-out problems, with this tool.

    Returns:
        right: share of right answers. low, high: its 95 % interval over problems. And the share of
        each of `calculator.OUTCOMES`.
    """
    prompts = [p.prompt for p in calculator.problems("test", asked)]
    drawn = sample_text(
        policy, tokenizer, prompts, config=config, seed=3000 + seed, batch_size=asked, tool=tool
    )[0]
    right = torch.tensor(right_with_calculator(prompts, decode(tokenizer, drawn)), device="cpu")
    low, high = evaluate.bootstrap(right)
    named = Counter(
        calculator.outcome(prompt.removesuffix("="), text)
        for prompt, text in zip(prompts, written_by_policy(drawn, tokenizer), strict=True)
    )
    shares = {name: named[name] / asked for name in calculator.OUTCOMES}
    return {"right": right.mean().item(), "low": low, "high": high, **shares}


def written_by_policy(batch: Rollout, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens of each response that the policy chose, as text, without EOS."""
    return [
        text_of(tokenizer, ids[mask], skip_special_tokens=True)
        for ids, mask in zip(batch.response_ids, batch.action_mask, strict=True)
    ]
