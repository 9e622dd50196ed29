"""What RLHF costs, counted: the bytes of four models, the floating-point operations of reading, training and decoding.

    d width     f inner width of the MLP     k = d kv_heads / heads     V vocabulary     L layers     B sequences of T = P + R tokens

FLOP: a multiply-add is two. Left out, by name: the FLOP of softmax, norms and the optimiser; of what autograd keeps, ids
and masks (whole numbers, one byte in a thousand); tensors that live and die inside a pass, which `measured` shows.
"""

import weakref
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minirlhf.runtime import check


@dataclass(frozen=True)
class Shape:
    """A decoder as arithmetic sees it. Two kinds of block: Llama's (RMSNorm, gated MLP, rotary positions, no biases) and GPT-2's
    (LayerNorm, plain MLP, learned positions, biases everywhere)."""

    layers: int
    width: int
    heads: int
    kv_heads: int  # heads of keys and values; fewer than `heads` is grouped-query attention
    ffn: int
    vocab: int
    tied: bool = False  # the head is the embedding once more
    positions: int = 0  # learned ones: GPT-2's block; 0: Llama's

    def __post_init__(self):
        for field in ("layers", "width", "heads", "kv_heads", "ffn", "vocab"):
            check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        check(
            "heads",
            self.heads,
            self.width % self.heads == 0,
            f"a divisor of the width {self.width}",
        )
        check(
            "kv_heads",
            self.kv_heads,
            self.heads % self.kv_heads == 0,
            f"a divisor of the {self.heads} heads",
        )

    @classmethod
    def of(cls, model) -> "Shape":
        """Of a policy, a ScalarModel or a config, of GPT-2's or Llama's kind (SmolLM2 is Llama's)."""
        c = getattr(getattr(model, "backbone", model), "config", model)
        kind = getattr(c, "model_type", type(model).__name__)
        check("model_type", kind, kind in ("gpt2", "llama"), "gpt2 or llama")
        d, heads, gpt2 = c.hidden_size, c.num_attention_heads, kind == "gpt2"
        odd = any(
            getattr(c, name, False)
            for name in ("attention_bias", "mlp_bias", "add_cross_attention")
        )
        odd |= getattr(c, "head_dim", d // heads) * heads != d
        check(
            "config",
            kind,
            not odd,
            "one without further biases, cross-attention or a head_dim of its own",
        )
        return cls(
            c.num_hidden_layers,
            d,
            heads,
            heads if gpt2 else c.num_key_value_heads,
            (c.n_inner or 4 * d) if gpt2 else c.intermediate_size,
            c.vocab_size,
            c.tie_word_embeddings,
            c.max_position_embeddings if gpt2 else 0,
        )

    @property
    def keys(self) -> int:
        """k, the width of a token's keys, and of its values, in one layer."""
        return self.width * self.kv_heads // self.heads

    @property
    def matrices(self) -> int:
        """Weights of a block that a token is multiplied with: queries and output d d, keys and values d k, MLP 2 d f, gated 3 d f."""
        return (
            2 * self.width * (self.width + self.keys)
            + (2 if self.positions else 3) * self.width * self.ffn
        )

    @property
    def read(self) -> int:
        """Weights that a decoding step reads: blocks, last norm, head. Of the embedding it looks up a row, which is not counted."""
        d, norm = (
            self.width,
            2 * self.width if self.positions else self.width,
        )  # LayerNorm has a bias
        biases = (
            3 * d + 2 * self.keys + self.ffn if self.positions else 0
        )  # d each: queries, output, output of the MLP
        return self.layers * (self.matrices + biases + 2 * norm) + norm + self.vocab * d

    @property
    def parameters(self) -> int:
        """All weights of the policy; a tied head counts once."""
        return self.read + (self.positions + (0 if self.tied else self.vocab)) * self.width

    @property
    def trunk(self) -> int:
        """All weights but the head's: a reward model and a critic have this, and d + 1 more."""
        return self.parameters - (0 if self.tied else self.vocab * self.width)

    def adapters(self, rank: int) -> int:
        """Weights of LoRA on all matrices of all blocks, rank (in + out) each; GPT-2's queries, keys and values are one matrix."""
        d, gpt2 = self.width, self.positions > 0
        return (
            self.layers
            * rank
            * ((4 if gpt2 else 6) * d + 2 * self.keys + (2 if gpt2 else 3) * (d + self.ffn))
        )


TINY_REVIEWS = Shape(4, 256, 4, 4, 1024, 4096, tied=True, positions=128)
SMOLLM2_135M = Shape(30, 576, 9, 3, 1536, 49152, tied=True)
LLAMA_7B = Shape(32, 4096, 32, 32, 11008, 32000)  # Llama 2
LLAMA_70B = Shape(80, 8192, 64, 8, 28672, 128256)  # Llama 3


@dataclass(frozen=True)
class Plan:
    """One step of RLHF as arithmetic sees it: who takes part, how much is written, in what portions."""

    prompts: int = 64
    group_size: int = 1  # G, responses a prompt
    prompt_tokens: int = 512  # P
    response_tokens: int = 1024  # R, the same for all
    epochs: int = 1
    decode_batch: int = 64  # sequences decoded together
    micro_batch: int = 1  # sequences a forward and backward pass
    critic: str = "separate"  # "shared": a head on the actor's trunk; "none": group methods
    reference: bool = True
    reward_model: bool = True  # False: a rule
    lora: int = 0  # rank, and the reference is the actor with its adapter off; 0 trains all weights
    bf16: bool = False  # 2 bytes a number; adapters, AdamW's m and v and its copy of the weights stay in float32
    recompute: bool = False  # a block keeps its input only

    def __post_init__(self):
        for field in (
            "prompts",
            "group_size",
            "prompt_tokens",
            "response_tokens",
            "epochs",
            "decode_batch",
            "micro_batch",
        ):
            check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        check(
            "critic",
            self.critic,
            self.critic in ("separate", "shared", "none"),
            "separate, shared or none",
        )
        check("lora", self.lora, self.lora >= 0, "0 (off) or more")

    @property
    def sequences(self) -> int:
        return self.prompts * self.group_size

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens


def weights_bytes(parameters: int, *, bf16: bool = False) -> int:
    """4 bytes a weight, 2 in bfloat16."""
    return parameters * (2 if bf16 else 4)


gradient_bytes = weights_bytes  # one for each weight that is trained, of its type


def optimiser_bytes(trained: int, *, bf16: bool = False) -> int:
    """AdamW's m and v in float32, and a float32 copy of bfloat16 weights. With weight and gradient: 16 bytes, in either type."""
    return trained * (12 if bf16 else 8)


def kv_cache_bytes(shape: Shape, batch: int, tokens: int, *, bf16: bool = False) -> int:
    """Keys and values of all layers, 2 L k numbers a token. After R sampled tokens it holds P + R - 1: the last one is never read."""
    return 2 * shape.layers * shape.keys * batch * tokens * (2 if bf16 else 4)


def activation_bytes(
    shape: Shape,
    batch: int,
    tokens: int,
    *,
    response: int = 0,
    bf16: bool = False,
    recompute: bool = False,
    padded: bool = False,
) -> int:
    """What autograd keeps from the forward to the backward pass, with fused attention (sdpa) and gelu.

        numbers a token and block      GPT-2                                   Llama
        two norms, each                input, output, mean, 1/sd               input, normalised, output, 1/rms
        attention                      queries, keys, values, output: 2 d + 2 k, and a log-sum-exp a head
        MLP                            before and after gelu: 2 f              gate, silu(gate), up, their product: 4 f

    After the blocks the last norm, rotary cos and sin, and the hidden states that the head reads. Padding adds to each block a float
    mask, T numbers a token, and copies keys and values that heads share for each of them (a single one is read in place). `recompute`:
    a block's input for each block, and all of the one block that is being computed again. Exact in float32. Seen beside it: bfloat16
    Llamas keep a tenth more (norms in float32), with adapters half as much again (float32 copies of what these read: 1.34 to 1.56);
    adapters in float32 a tenth less (frozen norms need no input).

    Args:
        response: R tokens whose log-probabilities are kept, V words each, in float32; 0 is a scalar head, which reads all T.
    """
    check(
        "response",
        response,
        0 <= response < tokens,
        f"from 0 to {tokens - 1}, less than all tokens",
    )
    d, k, f, gpt2 = shape.width, shape.keys, shape.ffn, shape.positions > 0
    block = (6 * d + 4 + 2 * f if gpt2 else 8 * d + 2 + 4 * f) + 2 * k + shape.heads
    block += padded * (tokens + 2 * (d - k) * (shape.kv_heads > 1))
    last = d + 2 if gpt2 else 2 * d + 1 + 2 * d // shape.heads
    kept = tokens * ((shape.layers * d + block if recompute else shape.layers * block) + last)
    hidden = (response + 1 if response else tokens) * d
    return batch * (weights_bytes(kept + hidden, bf16=bf16) + 4 * response * shape.vocab)


def four_models(plan: Plan, actor: Shape, reward: Shape | None = None) -> dict[str, dict[str, int]]:
    """Bytes of actor, reference, reward model and critic, a row each: weights, gradients, optimiser; for a micro-batch activations, and
    logits, two more copies of these (with temperature, their gradient) for a moment; cache.

    `reward` is the shape of the reward model and of a separate critic, the actor's by default.
    """
    reward, bf16 = reward or actor, plan.bf16
    states = dict(batch=plan.micro_batch, tokens=plan.tokens, bf16=bf16, recompute=plan.recompute)

    def row(
        base: int = 0,
        head: int = 0,
        adapters: int | None = None,
        activations: int = 0,
        logits: int = 0,
        cache: int = 0,
    ) -> dict:
        """`adapters`: None is a frozen model, 0 one whose every weight is trained; a head is trained with either, in float32."""
        whole, beside = base * (adapters == 0), head + (adapters or 0)
        return {
            "weights": weights_bytes(base, bf16=bf16) + weights_bytes(beside),
            "gradients": gradient_bytes(whole, bf16=bf16) + gradient_bytes(beside),
            "optimiser": optimiser_bytes(whole, bf16=bf16) + optimiser_bytes(beside),
            "activations": activations,
            "logits": logits,
            "cache": cache,
        }

    value_head = weights_bytes(plan.micro_batch * plan.tokens * actor.width, bf16=bf16) * (
        plan.critic == "shared"
    )  # what it reads
    critics = {
        "none": row(),
        "shared": row(head=actor.width + 1),
        "separate": row(
            reward.trunk,
            reward.width + 1,
            reward.adapters(plan.lora),
            activation_bytes(reward, **states),
        ),
    }
    return {
        "actor": row(
            actor.parameters,
            0,
            actor.adapters(plan.lora),
            activation_bytes(actor, response=plan.response_tokens, **states) + value_head,
            2 * weights_bytes(plan.micro_batch * plan.response_tokens * actor.vocab),
            kv_cache_bytes(
                actor, min(plan.decode_batch, plan.sequences), plan.tokens - 1, bf16=bf16
            ),
        ),
        "reference": row(actor.parameters * (plan.reference and not plan.lora)),
        "reward": row((reward.trunk + reward.width + 1) * plan.reward_model),
        "critic": critics[plan.critic],
    }


def peak_bytes(table: dict[str, dict[str, int]]) -> int:
    """All on one machine: weights and optimiser, and beside them the rollout's cache or, while one of the learners learns, gradients,
    activations and logits. An upper bound: the last micro-batch meets all gradients at its start, a single one meets none.

    Our loops score a rollout in one piece: without gradient, but with three copies of all its logits, which may exceed this.
    """
    total = {name: sum(row[name] for row in table.values()) for name in table["actor"]}
    learning = total["gradients"] + max(
        row["activations"] + row["logits"] for row in table.values()
    )
    return total["weights"] + total["optimiser"] + max(total["cache"], learning)


def forward_flop(shape: Shape, tokens: int, context: float, *, logits: int) -> float:
    """2 FLOP a weight and token and 4 d for each of the `context` positions attended to; 2 d V where logits are needed.

    A sequence that is read at once has context T: what the causal mask hides is computed too.
    """
    return (
        tokens * shape.layers * (2 * shape.matrices + 4 * shape.width * context)
        + 2 * shape.width * shape.vocab * logits
    )


def decode_step(
    shape: Shape, batch: int, context: float, *, bf16: bool = False
) -> tuple[float, float]:
    """(FLOP, bytes) of the next token of `batch` sequences: the weights are read once for all of them, a cache for its own only."""
    cache = kv_cache_bytes(shape, batch, 1, bf16=bf16) * context
    return forward_flop(shape, batch, context, logits=batch), weights_bytes(
        shape.read, bf16=bf16
    ) + cache


class _Alive(TorchDispatchMode):
    """Bytes of the tensors that were made while it is on and are still referred to."""

    now = peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given, made = (
            {x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        for storage in made - given:  # a view, or what was written in place, is no new memory
            self.grow(storage.nbytes())
            weakref.finalize(storage, self.grow, -storage.nbytes())
        return result

    def grow(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def measured(function) -> tuple[int, int]:
    """(kept, peak) bytes of the tensors that `function()` makes: alive beside its result, as what autograd keeps is; at most at a time.

    Counted tensor by tensor: the same in each run. Scratch memory inside a kernel is not seen.
    """
    with _Alive() as alive:
        result = function()
        kept, peak = alive.now, alive.peak
    del result
    return kept, peak
