"""Predicted seconds of one RLHF step on a given machine: the roofline model.

    seconds = max(FLOP / (FLOP per second), bytes / (bytes per second))

It covers machines from this CPU to GPUs that train 70B models. Training reads a weight once for
thousands of tokens, so it is limited by FLOP. Decoding reads a weight once per step, for one token
of each sequence, so it is limited by bytes until the batch is large. Not counted: communication,
the optimiser's step, and waiting for the longest response.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch.utils.benchmark import Timer
from transformers import GPT2Config, GPT2Model

from minirlhf.models.cost import Plan, Shape, decode_step, forward_flop, weights_bytes


@dataclass(frozen=True)
class Machine:
    """The speed and the memory of a machine.

    Work takes as long as the slower of its FLOP and its bytes (the roofline). Each block adds a
    fixed time to start it.
    """

    flop_per_second: float
    bytes_per_second: float
    memory_bytes: float = math.inf
    mfu: float = 1.0  # share of flop_per_second that is reached (model FLOP utilisation)
    mbu: float = 1.0  # share of bytes_per_second that is reached (memory-bandwidth utilisation)
    block_seconds: float = 0.0  # to start the work of one block; a GPU hides this time

    def seconds(self, flop: float, size: float, blocks: int = 0) -> float:
        """Seconds for `flop` operations on `size` bytes, in `blocks` blocks."""
        return (
            max(flop / self.flop_per_second / self.mfu, size / self.bytes_per_second / self.mbu)
            + blocks * self.block_seconds
        )

    def times(self, n: int) -> "Machine":
        """n such machines as one: tensor parallelism with free communication."""
        return replace(
            self,
            flop_per_second=n * self.flop_per_second,
            bytes_per_second=n * self.bytes_per_second,
            memory_bytes=n * self.memory_bytes,
        )


# SXM, bfloat16, dense; mfu and mbu as large runs report them
H100 = Machine(989e12, 3.35e12, 80 * 2**30, mfu=0.4, mbu=0.6)


def decode_seconds(machine: Machine, shape: Shape, plan: Plan) -> float:
    """Seconds of a rollout.

    Each prompt is read once. Then every batch of decode_batch sequences takes R steps, computed at
    their mean context P + R / 2.
    """
    rounds, batch = (
        math.ceil(plan.sequences / plan.decode_batch),
        min(plan.sequences, plan.decode_batch),
    )
    flop = forward_flop(
        shape, plan.prompts * plan.prompt_tokens, plan.prompt_tokens, logits=plan.prompts
    )
    read = machine.seconds(
        flop, rounds * weights_bytes(shape.read, bf16=plan.bf16), rounds * shape.layers
    )
    step = decode_step(shape, batch, plan.prompt_tokens + plan.response_tokens / 2, bf16=plan.bf16)
    return read + rounds * plan.response_tokens * machine.seconds(*step, shape.layers)


def forward_seconds(
    machine: Machine, shape: Shape, plan: Plan, *, scalar: bool = False, times: int = 1
) -> float:
    """Seconds of a forward pass of one model over all sequences of a step.

    Args:
        scalar: the model has a scalar head, so no logits are computed.
        times: multiplies the work.
    """
    passes, logits = (
        times * math.ceil(plan.sequences / plan.micro_batch),
        0 if scalar else plan.sequences * plan.response_tokens,
    )
    flop = times * forward_flop(shape, plan.sequences * plan.tokens, plan.tokens, logits=logits)
    return machine.seconds(
        flop, passes * weights_bytes(shape.read, bf16=plan.bf16), passes * shape.layers
    )


def train_seconds(machine: Machine, shape: Shape, plan: Plan, *, scalar: bool = False) -> float:
    """Seconds of one epoch of training.

    The gradient of the inputs costs as much as the forward pass, and so does the gradient of the
    weights. With adapters the latter costs next to nothing. `recompute` adds one more forward pass.
    """
    return forward_seconds(
        machine, shape, plan, scalar=scalar, times=(2 if plan.lora else 3) + plan.recompute
    )


def step_seconds(
    machine: Machine, plan: Plan, actor: Shape, reward: Shape | None = None
) -> dict[str, float]:
    """Seconds of one step, by part: sampling, scoring and training.

    Scoring means the forward passes of reference, reward model and critic. Actor and critic are
    trained one after the other.
    """
    reward, separate = reward or actor, plan.critic == "separate"
    score, value = (
        forward_seconds(machine, shape, plan, scalar=True)
        for shape in (reward, reward if separate else actor)
    )
    reference, critic = (
        forward_seconds(machine, actor, plan),
        train_seconds(machine, reward, plan, scalar=True),
    )
    return {
        "sampling": decode_seconds(machine, actor, plan),
        "scoring": plan.reference * reference
        + plan.reward_model * score
        + (plan.critic != "none") * value,
        "training": plan.epochs * (train_seconds(machine, actor, plan) + separate * critic),
    }


def measure_machine() -> Machine:
    """Measure this CPU in float32, in about a second.

    A matrix product gives FLOP per second, a copy bytes per second (read and written). A forward
    pass of a tiny model gives the seconds per block.
    """

    def median(code: str, **given: object) -> float:
        return (
            Timer(code, globals=given, num_threads=torch.get_num_threads())
            .blocked_autorange(min_run_time=0.3)
            .median
        )

    square, line = (torch.rand(size, device="cpu") for size in ((1024, 1024), 2**24))
    with torch.device("cpu"), torch.random.fork_rng(), torch.no_grad():
        small = GPT2Model(
            GPT2Config(
                n_layer=8,
                n_embd=8,
                n_head=1,
                vocab_size=2,
                n_positions=2,
                bos_token_id=0,
                eos_token_id=0,
            )
        ).eval()
        blocks = median("model(ids)", model=small, ids=torch.zeros(1, 1, dtype=torch.long)) / 8
    return Machine(
        2 * 1024**3 / median("x @ x", x=square),
        2 * line.nbytes / median("y.copy_(x)", x=line, y=line.clone()),
        block_seconds=blocks,
    )
