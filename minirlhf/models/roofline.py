"""Seconds of an RLHF step on a machine that is given: the roofline, from this CPU to 70B on GPUs.

    seconds = max(FLOP / (FLOP a second), bytes / (bytes a second))

Training reads a weight once for thousands of tokens and is bound by FLOP; decoding reads it once for each sequence's next token and is
bound by bytes, until the batch is large. Left out: communication, the optimiser's step, waiting for the longest response.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch.utils.benchmark import Timer
from transformers import GPT2Config, GPT2Model

from minirlhf.models.cost import Plan, Shape, decode_step, forward_flop, weights_bytes


@dataclass(frozen=True)
class Machine:
    """A machine as arithmetic sees it: work takes as long as the slower of its FLOP and its bytes (the roofline), and a start."""

    flop_per_second: float
    bytes_per_second: float
    memory_bytes: float = math.inf
    mfu: float = 1.0  # share of the FLOP/s that is reached
    mbu: float = 1.0  # share of the bandwidth
    block_seconds: float = 0.0  # to start a block's work, however little; a GPU hides it

    def seconds(self, flop: float, size: float, blocks: int = 0) -> float:
        return (
            max(flop / self.flop_per_second / self.mfu, size / self.bytes_per_second / self.mbu)
            + blocks * self.block_seconds
        )

    def times(self, n: int) -> "Machine":
        """n of them as one: tensor-parallel, with communication for free."""
        return replace(
            self,
            flop_per_second=n * self.flop_per_second,
            bytes_per_second=n * self.bytes_per_second,
            memory_bytes=n * self.memory_bytes,
        )


H100 = Machine(
    989e12, 3.35e12, 80 * 2**30, mfu=0.4, mbu=0.6
)  # SXM, bfloat16, dense; shares as large runs report them


def decode_seconds(machine: Machine, shape: Shape, plan: Plan) -> float:
    """The rollout: each prompt is read once, then R steps for every decode_batch, at the mean context P + R / 2."""
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
    """All sequences of a step through a model, or through `times` as much work."""
    passes, logits = (
        times * math.ceil(plan.sequences / plan.micro_batch),
        0 if scalar else plan.sequences * plan.response_tokens,
    )
    flop = times * forward_flop(shape, plan.sequences * plan.tokens, plan.tokens, logits=logits)
    return machine.seconds(
        flop, passes * weights_bytes(shape.read, bf16=plan.bf16), passes * shape.layers
    )


def train_seconds(machine: Machine, shape: Shape, plan: Plan, *, scalar: bool = False) -> float:
    """One epoch: forward, and as much again for the gradient of the inputs, and of the weights (next to nothing with adapters)."""
    return forward_seconds(
        machine, shape, plan, scalar=scalar, times=(2 if plan.lora else 3) + plan.recompute
    )


def step_seconds(
    machine: Machine, plan: Plan, actor: Shape, reward: Shape | None = None
) -> dict[str, float]:
    """One step: sampling; scoring, the forward passes of reference, reward model and critic; training. Actor and critic one by one."""
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
    """This CPU in float32, in about a second: a matrix product, a copy (read and written), a forward pass with next to nothing in it."""

    def median(code: str, **given) -> float:
        return (
            Timer(code, globals=given, num_threads=torch.get_num_threads())
            .blocked_autorange(min_run_time=0.3)
            .median
        )

    square, line = torch.rand(1024, 1024), torch.rand(2**24)
    with torch.random.fork_rng(), torch.no_grad():
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
