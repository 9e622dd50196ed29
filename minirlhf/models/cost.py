"""Memory and floating-point operations (FLOP) of RLHF, computed from the shapes of the models.

    d width     f inner width of the MLP     k = d kv_heads / heads     V vocabulary     L layers
    B sequences of T = P + R tokens: P prompt, R response

A multiply-add counts as two FLOP. Not counted:
- the FLOP of softmax, norms and the optimiser;
- ids and masks that autograd keeps (whole numbers, about one byte in a thousand);
- tensors that are made and freed within one forward or backward pass. `measured` counts them.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from minirlhf.models.adapters import Policy
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import check


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder, from which its memory and FLOP are computed.

    There are two kinds of block. Llama's has RMSNorm, a gated MLP, rotary positions and no biases.
    GPT-2's has LayerNorm, a plain MLP, learned positions and biases in every layer.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int  # heads of keys and values; fewer than `heads` is grouped-query attention
    ffn: int
    vocab: int
    tied: bool = False  # the head shares the embedding's weights
    positions: int = 0  # learned positions of GPT-2's block; 0 means Llama's block

    def __post_init__(self) -> None:
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
    def of(cls, model: Policy | ScalarModel | PreTrainedConfig) -> "Shape":
        """The shape of a policy, a ScalarModel or a config, of the GPT-2 or Llama kind.

        SmolLM2 is of the Llama kind.

        Raises:
            ValueError: another model type, further biases, cross-attention, or heads that do not
                divide the width as usual (head_dim).
        """
        c: Any = getattr(getattr(model, "backbone", model), "config", model)
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
        """k, the width of a token's keys in one layer, and of its values."""
        return self.width * self.kv_heads // self.heads

    @property
    def matrices(self) -> int:
        """Weights of one block that each token is multiplied with.

        Queries and output have 2 d d weights, keys and values 2 d k, the MLP 2 d f, a gated MLP 3 d
        f.
        """
        return (
            2 * self.width * (self.width + self.keys)
            + (2 if self.positions else 3) * self.width * self.ffn
        )

    @property
    def read(self) -> int:
        """Weights that one decoding step reads: blocks, last norm and head.

        From the embedding it reads one row per sequence, which is not counted.
        """
        # LayerNorm has a bias
        d, norm = self.width, 2 * self.width if self.positions else self.width
        # d biases each: queries, attention output, MLP output
        biases = 3 * d + 2 * self.keys + self.ffn if self.positions else 0
        return self.layers * (self.matrices + biases + 2 * norm) + norm + self.vocab * d

    @property
    def parameters(self) -> int:
        """All weights of the policy. A tied head counts once."""
        return self.read + (self.positions + (0 if self.tied else self.vocab)) * self.width

    @property
    def trunk(self) -> int:
        """All weights except the head's. A reward model or a critic has these and d + 1 more."""
        return self.parameters - (0 if self.tied else self.vocab * self.width)

    def adapters(self, rank: int) -> int:
        """Weights of LoRA adapters on all matrices of all blocks: rank (in + out) per matrix.

        GPT-2's queries, keys and values are one matrix.
        """
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
    """One step of RLHF in numbers: its models, its tokens and its batch sizes."""

    prompts: int = 64
    group_size: int = 1  # G, responses per prompt
    prompt_tokens: int = 512  # P
    response_tokens: int = 1024  # R, the same for all responses
    epochs: int = 1
    decode_batch: int = 64  # sequences decoded together
    micro_batch: int = 1  # sequences per forward and backward pass
    critic: str = "separate"  # "shared": a head on the actor's trunk; "none": group methods
    reference: bool = True
    reward_model: bool = True  # False: the reward is a rule
    # rank of the adapters (the reference is then the actor without its adapter); 0: all weights
    lora: int = 0
    # 2 bytes per number; adapters, AdamW's m and v and its copy of the weights stay in float32
    bf16: bool = False
    recompute: bool = False  # each block keeps its input only

    def __post_init__(self) -> None:
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
        """Sequences of one step: prompts times responses per prompt."""
        return self.prompts * self.group_size

    @property
    def tokens(self) -> int:
        """T = P + R, tokens per sequence."""
        return self.prompt_tokens + self.response_tokens


def weights_bytes(parameters: int, *, bf16: bool = False) -> int:
    """Bytes of that many weights: 4 per weight, or 2 in bfloat16."""
    return parameters * (2 if bf16 else 4)


gradient_bytes = weights_bytes  # one gradient per trained weight, of the weight's type


def optimiser_bytes(trained: int, *, bf16: bool = False) -> int:
    """Bytes of AdamW's state for that many trained weights.

    The state is m and v in float32; for bfloat16 weights also a float32 copy of the weights.
    Together with weight and gradient this makes 16 bytes per weight in both types.
    """
    return trained * (12 if bf16 else 8)


def kv_cache_bytes(shape: Shape, batch: int, tokens: int, *, bf16: bool = False) -> int:
    """Bytes of the keys and values of all layers: 2 L k numbers per token.

    After R sampled tokens the cache holds P + R - 1 tokens, because the model never reads the last
    one.

    Args:
        batch: sequences in the cache.
        tokens: tokens per sequence in the cache.
    """
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
    """Bytes that autograd keeps from the forward pass for the backward pass.

    The model uses fused attention (sdpa) and fused gelu. Each block keeps, in numbers per token:

        part               GPT-2                          Llama
        two norms, each    input, output, mean, 1/sd      input, normalised, output, 1/rms
        attention          queries, keys, values and output, 2 d + 2 k; one log-sum-exp per head
        MLP                before and after gelu, 2 f     gate, silu(gate), up, their product, 4 f

    After the blocks come the last norm, rotary cos and sin, and the hidden states that the head
    reads. With padding each block also keeps a float mask of T numbers per token. Keys and values
    that several heads share are then copied to each of these heads; a single key-value head is not
    copied. With `recompute` each block keeps its input, and the block being recomputed keeps
    everything.

    The count is exact in float32 without adapters. Measurements differ from it elsewhere. Llama
    models in bfloat16 keep a tenth more, because norms are computed in float32. With adapters they
    keep about half as much again (whole models 1.34 to 1.56 times the count, a block alone 1.6),
    because adapters keep float32 copies of what they read. Adapters on float32 weights keep a tenth
    less, because frozen norms do not need their input.

    Args:
        batch: B sequences.
        tokens: T per sequence.
        response: R tokens whose log-probabilities are computed; each keeps V float32 numbers. 0
            means a scalar head, which reads all T positions.
        bf16, recompute: as in `Plan`.
        padded: whether the batch contains padding.

    Raises:
        ValueError: response is negative or not below tokens.
    """
    check(
        "response",
        response,
        0 <= response < tokens,
        f"from 0 to {tokens - 1}, less than the number of tokens",
    )
    d, k, f, gpt2 = shape.width, shape.keys, shape.ffn, shape.positions > 0
    block = (6 * d + 4 + 2 * f if gpt2 else 8 * d + 2 + 4 * f) + 2 * k + shape.heads
    block += padded * (tokens + 2 * (d - k) * (shape.kv_heads > 1))
    last = d + 2 if gpt2 else 2 * d + 1 + 2 * d // shape.heads
    kept = tokens * ((shape.layers * d + block if recompute else shape.layers * block) + last)
    hidden = (response + 1 if response else tokens) * d
    return batch * (weights_bytes(kept + hidden, bf16=bf16) + 4 * response * shape.vocab)


def four_models(plan: Plan, actor: Shape, reward: Shape | None = None) -> dict[str, dict[str, int]]:
    """Bytes of actor, reference, reward model and critic: one row per model.

    The columns are:
    - weights, gradients and optimiser;
    - activations: what autograd keeps for one micro-batch;
    - logits: two temporary copies of the micro-batch's logits (with a temperature, their
      gradients);
    - cache: keys and values during sampling.

    Args:
        plan: the step.
        actor: shape of the actor and of the reference.
        reward: shape of the reward model and of a separate critic; by default the actor's shape.
    """
    reward, bf16 = reward or actor, plan.bf16

    def kept(shape: Shape, response: int = 0) -> int:
        """Bytes that autograd keeps of a micro-batch."""
        return activation_bytes(
            shape,
            plan.micro_batch,
            plan.tokens,
            response=response,
            bf16=bf16,
            recompute=plan.recompute,
        )

    def row(
        base: int = 0,
        head: int = 0,
        adapters: int | None = None,
        activations: int = 0,
        logits: int = 0,
        cache: int = 0,
    ) -> dict:
        """Bytes of one model.

        `adapters` is None for a frozen model, 0 for a model whose weights are all trained, and else
        the number of adapter weights. A head is trained in both of the latter cases, in float32.
        """
        whole, beside = base * (adapters == 0), head + (adapters or 0)
        return {
            "weights": weights_bytes(base, bf16=bf16) + weights_bytes(beside),
            "gradients": gradient_bytes(whole, bf16=bf16) + gradient_bytes(beside),
            "optimiser": optimiser_bytes(whole, bf16=bf16) + optimiser_bytes(beside),
            "activations": activations,
            "logits": logits,
            "cache": cache,
        }

    # the hidden states that a shared value head reads
    value_head = weights_bytes(plan.micro_batch * plan.tokens * actor.width, bf16=bf16) * (
        plan.critic == "shared"
    )
    critics = {
        "none": row(),
        "shared": row(head=actor.width + 1),
        "separate": row(
            reward.trunk,
            reward.width + 1,
            reward.adapters(plan.lora),
            kept(reward),
        ),
    }
    return {
        "actor": row(
            actor.parameters,
            0,
            actor.adapters(plan.lora),
            kept(actor, plan.response_tokens) + value_head,
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
    """Bytes in use at the worst moment of a step, with all models on one machine.

        weights + optimiser + max(cache, gradients + activations + logits)

    The cache is in use during the rollout, the other three while the actor or the critic is
    trained. It is an upper bound: the last of several micro-batches starts when all gradients
    exist, but a single micro-batch starts when none does.

    Our loops score a rollout in one piece. They need no gradients for that, but three copies of all
    logits of the rollout, which may exceed this number.

    Args:
        table: what `four_models` returns.
    """
    total = {name: sum(row[name] for row in table.values()) for name in table["actor"]}
    learning = total["gradients"] + max(
        row["activations"] + row["logits"] for row in table.values()
    )
    return total["weights"] + total["optimiser"] + max(total["cache"], learning)


def forward_flop(shape: Shape, tokens: int, context: float, *, logits: int) -> float:
    """FLOP of a forward pass.

        tokens L (2 matrices + 4 d context) + 2 d V logits

    A weight costs 2 FLOP per token. Attention costs 4 d per layer and per position attended to.

    Args:
        tokens: tokens of the whole batch.
        context: positions that a token attends to. A sequence read in one pass has context T,
            because what the causal mask hides is computed too.
        logits: number of positions whose logits are computed.
    """
    return (
        tokens * shape.layers * (2 * shape.matrices + 4 * shape.width * context)
        + 2 * shape.width * shape.vocab * logits
    )


def decode_step(
    shape: Shape, batch: int, context: float, *, bf16: bool = False
) -> tuple[float, float]:
    """(FLOP, bytes) of sampling the next token of `batch` sequences.

    The weights are read once for all sequences. Each sequence reads its own cache.
    """
    cache = kv_cache_bytes(shape, batch, 1, bf16=bf16) * context
    return forward_flop(shape, batch, context, logits=batch), weights_bytes(
        shape.read, bf16=bf16
    ) + cache


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on and are still referred to."""

    now = peak = 0

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given, made = (
            {x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        for storage in made - given:  # views and in-place results use no new memory
            self.grow(storage.nbytes())
            weakref.finalize(storage, self.grow, -storage.nbytes())
        return result

    def grow(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def measured(function: Callable[[], object]) -> tuple[int, int]:
    """(kept, peak): bytes of the tensors that `function()` makes.

    `kept` are in use when it returns, its result and what autograd keeps included. `peak` is the
    most in use at any moment. Tensors are counted one by one, so each run gives the same numbers.
    Scratch memory inside a kernel is not seen.
    """
    with _Alive() as alive:
        result = function()
        kept, peak = alive.now, alive.peak
    del result
    return kept, peak
