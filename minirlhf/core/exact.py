"""The world small enough to solve: every sequence enumerated, so that J, its gradient, KL, V, Q and the optimum are numbers.

A response is a string over V tokens that ends in EOS or after max_length tokens. A *state* is a prefix that can still go on; there
are S of them. A tabular policy is a (S, V) tensor of logits, one row a state. N finished sequences carry one reward each.

    world = World.from_reward(("a", "b", "."), 2, lambda words: float(words.count("a")))
    world.labels                                  # aa ab a. ba bb b. .
    world.gradient(world.ref_logits, beta=0.5)    # dJ / dlogits, what every estimator is held against
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minirlhf.core.rollout import Rollout


@dataclass(frozen=True, eq=False)
class World:
    """Vocabulary, maximum length, a reward for every sequence, a reference policy.

    Args:
        vocab: V words; the last one is EOS.
        max_length: tokens, EOS included; a longer response is cut there.
        rewards: (N,) reward units, in the order of `labels`.
        ref_logits: (S, V), in the order of `states`; row 0 is the empty prefix.

    Raises:
        ValueError: fewer than two words, a length below 1, or tables without one number a sequence and one row a state.
    """

    vocab: tuple[str, ...]
    max_length: int
    rewards: Float[Tensor, "N"]
    ref_logits: Float[Tensor, "S V"]

    def __post_init__(self):
        if len(self.vocab) < 2 or self.max_length < 1:
            raise ValueError(
                f"A world needs a word, EOS and a length of 1 or more; got {self.vocab} and {self.max_length}."
            )
        wanted = {
            "rewards": (len(self.sequences),),
            "ref_logits": (len(self.states), len(self.vocab)),
        }
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} must be {shape} in this world; got {tuple(getattr(self, name).shape)}."
                )

    @classmethod
    def from_reward(
        cls, vocab: tuple[str, ...], max_length: int, reward: Callable[[list[str]], float]
    ) -> "World":
        """A world from a reward of the words written (EOS among them where there is one); uniform reference, float64."""
        states = sum((len(vocab) - 1) ** length for length in range(max_length))
        rewards = [reward([vocab[i] for i in s]) for s in _finished((), len(vocab) - 1, max_length)]
        ref_logits = torch.zeros(states, len(vocab), dtype=torch.float64)
        return cls(tuple(vocab), max_length, torch.tensor(rewards, dtype=torch.float64), ref_logits)

    @classmethod
    def random(
        cls, vocab_size: int = 3, max_length: int = 3, *, seed: int = 0, reward_scale: float = 1.0
    ) -> "World":
        """A world with Gaussian rewards and a Gaussian reference, float64."""
        generator = torch.Generator().manual_seed(seed)
        vocab = (*"abcdefghijklmnopqrstuvwxyz"[: vocab_size - 1], ".")
        states = sum((vocab_size - 1) ** k for k in range(max_length))
        count = (
            states + (vocab_size - 1) ** max_length
        )  # each state may end in EOS, and the full-length ones are cut
        rewards = reward_scale * torch.randn(count, generator=generator, dtype=torch.float64)
        return cls(
            vocab,
            max_length,
            rewards,
            torch.randn(states, vocab_size, generator=generator, dtype=torch.float64),
        )

    # ---- the tree of all texts
    @cached_property
    def states(self) -> list[tuple[int, ...]]:
        """The S prefixes that can go on: strings without EOS shorter than max_length; the empty one first."""
        words = range(len(self.vocab) - 1)
        return [
            prefix
            for length in range(self.max_length)
            for prefix in itertools.product(words, repeat=length)
        ]

    @cached_property
    def sequences(self) -> list[tuple[int, ...]]:
        """The N finished responses, depth first: an extension before the EOS that ends its prefix."""
        return _finished((), len(self.vocab) - 1, self.max_length)

    @cached_property
    def labels(self) -> list[str]:
        """The sequences as text."""
        return ["".join(self.vocab[i] for i in s) for s in self.sequences]

    @cached_property
    def response_mask(self) -> Bool[Tensor, "N R"]:
        return torch.tensor([[t < len(s) for t in range(self.max_length)] for s in self.sequences])

    @cached_property
    def response_ids(self) -> Int[Tensor, "N R"]:
        eos = len(self.vocab) - 1
        return torch.tensor([[*s, *[eos] * (self.max_length - len(s))] for s in self.sequences])

    @cached_property
    def visited(self) -> Int[Tensor, "N R"]:
        """visited[n, t]: the state in which token t of sequence n was chosen (0 where masked)."""
        index = {prefix: i for i, prefix in enumerate(self.states)}
        return torch.tensor(
            [
                [index[s[:t]] if t < len(s) else 0 for t in range(self.max_length)]
                for s in self.sequences
            ]
        )

    @cached_property
    def _arrivals(self) -> list[list[tuple[bool, int]]]:
        """_arrivals[s][a] = (finished?, number of the sequence or of the next state)."""
        ends = {s: i for i, s in enumerate(self.sequences)}
        goes = {s: i for i, s in enumerate(self.states)}
        words = range(len(self.vocab))
        return [
            [(True, ends[(*s, a)]) if (*s, a) in ends else (False, goes[(*s, a)]) for a in words]
            for s in self.states
        ]

    # ---- a policy in this world
    def logprobs(self, logits: Float[Tensor, "S V"]) -> Float[Tensor, "N R"]:
        """log pi(y_t | y_<t) of every token of every sequence, nats; 0 where masked."""
        chosen = logits.log_softmax(-1)[self.visited, self.response_ids]
        return torch.where(self.response_mask, chosen, torch.zeros_like(chosen))

    def sequence_logprobs(self, logits: Float[Tensor, "S V"]) -> Float[Tensor, "N"]:
        """log pi(y), nats."""
        return self.logprobs(logits).sum(1)

    def probs(self, logits: Float[Tensor, "S V"]) -> Float[Tensor, "N"]:
        """pi(y) of every sequence; they sum to 1."""
        return self.sequence_logprobs(logits).exp()

    def rollout(self, logits: Float[Tensor, "S V"]) -> Rollout:
        """All N sequences as one batch after a one-token prompt, as if each had been sampled once from `logits`."""
        prompt = torch.full((len(self.sequences), 1), len(self.vocab) - 1)
        return Rollout(
            prompt,
            prompt == prompt,
            self.response_ids,
            self.response_mask,
            self.logprobs(logits).detach(),
        )

    def by_token(self, table: Float[Tensor, "S ..."]) -> Float[Tensor, "N R ..."]:
        """A row a state -> a column a token: entry t is that of the prefix before token t (how V, or logits, enter a loss)."""
        columns = table[self.visited]
        columns[~self.response_mask] = 0
        return columns

    def tabulate(
        self,
        model: Callable[[Int[Tensor, "1 T"]], Tensor],
        prompt_ids: Int[Tensor, "P"] | None = None,
    ) -> Float[Tensor, "S V"]:
        """The (S, V) logits of any model that maps ids (1, T) to logits (1, T, V): a tiny GPT in this world.

        Args:
            prompt_ids: the text before every response; one EOS by default, as in `rollout`.

        Raises:
            ValueError: the model's vocabulary is not this world's.
        """
        prompt_ids = torch.tensor([len(self.vocab) - 1]) if prompt_ids is None else prompt_ids
        rows = [
            model(torch.cat([prompt_ids, prompt_ids.new_tensor(s)])[None])[0, -1]
            for s in self.states
        ]
        if len(rows[0]) != len(self.vocab):
            raise ValueError(f"The model knows {len(rows[0])} words, this world {len(self.vocab)}.")
        return torch.stack(rows)

    # ---- what is true of it
    def expectation(
        self, logits: Float[Tensor, "S V"], x: Float[Tensor, "N ..."]
    ) -> Float[Tensor, "..."]:
        """E_{y ~ pi}[x(y)] with pi's probabilities held fixed: the mean of an estimator over infinitely many samples."""
        return torch.tensordot(self.probs(logits).detach(), x, dims=1)

    def groups(
        self, logits: Float[Tensor, "S V"], group_size: int
    ) -> tuple[Int[Tensor, "M G"], Float[Tensor, "M"]]:
        """All M = N^G groups of G independent samples, as rows of sequence numbers, and the probability of each group."""
        index = torch.cartesian_prod(*[torch.arange(len(self.sequences))] * group_size).reshape(
            -1, group_size
        )
        return index, self.sequence_logprobs(logits).detach()[index].sum(1).exp()

    def kl(self, logits: Float[Tensor, "S V"], other: Float[Tensor, "S V"]) -> Float[Tensor, ""]:
        """KL(pi || other) = sum_y pi(y) [log pi(y) - log other(y)], nats a sequence."""
        log_p, log_q = self.sequence_logprobs(logits), self.sequence_logprobs(other)
        return (log_p.exp() * (log_p - log_q)).sum()

    def objective(self, logits: Float[Tensor, "S V"], *, beta: float = 0.0) -> Float[Tensor, ""]:
        """J = E_pi[r] - beta KL(pi || ref), reward units; differentiable."""
        return (self.probs(logits) * self.rewards).sum() - beta * self.kl(logits, self.ref_logits)

    def gradient(self, logits: Float[Tensor, "S V"], *, beta: float = 0.0) -> Float[Tensor, "S V"]:
        """dJ / dlogits, the truth that every estimator is held against."""
        logits = logits.detach().requires_grad_(True)
        return torch.autograd.grad(self.objective(logits, beta=beta), logits)[0]

    def values(
        self, logits: Float[Tensor, "S V"], *, beta: float = 0.0
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S V"]]:
        """V^pi (S,) and Q^pi (S, V) with the reward -beta log(pi/ref) at each token and r at the end, reward units.

        Q(s, a) = -beta log pi(a|s)/ref(a|s) + [r(y) or V(s')]        V(s) = sum_a pi(a|s) Q(s, a)
        """
        log_p = logits.log_softmax(-1)
        penalty = beta * (log_p - self.ref_logits.log_softmax(-1))
        return self._backward(
            lambda s, future: (log_p[s].exp() * (future - penalty[s])).sum(), penalty
        )

    def optimal_values(
        self, *, beta: float = 0.0
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S V"]]:
        """V* (S,) and Q* (S, V), reward units; hard for beta = 0, soft (from the reference) for beta > 0.

        Q*(s, a) = r(y) or V*(s')        V*(s) = max_a Q*        or        beta log sum_a ref(a|s) exp(Q*(s, a) / beta)
        """
        if beta < 0:
            raise ValueError(f"beta is {beta}; it must be 0 (hard) or more (soft).")
        log_ref = self.ref_logits.log_softmax(-1)
        if beta == 0:
            return self._backward(lambda s, future: future.max(), torch.zeros_like(log_ref))
        return self._backward(
            lambda s, future: beta * (log_ref[s] + future / beta).logsumexp(0),
            torch.zeros_like(log_ref),
        )

    def gibbs(self, *, beta: float) -> Float[Tensor, "N"]:
        """pi*(y) = ref(y) exp(r(y) / beta) / Z: the policy that maximises J. A posterior, with r / beta the log-likelihood."""
        if beta <= 0:
            raise ValueError(f"beta is {beta}; it must be above 0.")
        return (self.sequence_logprobs(self.ref_logits) + self.rewards / beta).softmax(0)

    def gibbs_logits(self, *, beta: float) -> Float[Tensor, "S V"]:
        """The same policy token by token: log pi*(a|s) = log ref(a|s) + [Q*(s, a) - V*(s)] / beta."""
        values, q = self.optimal_values(beta=beta)
        return self.ref_logits.log_softmax(-1) + (q - values[:, None]) / beta

    def _backward(self, backup: Callable[[int, Tensor], Tensor], penalty: Float[Tensor, "S V"]):
        """From the longest prefixes to the empty one: V(s) = backup(s, what each token leads to), Q = that minus the penalty."""
        values: list = [None] * len(self.states)
        futures: list = [None] * len(self.states)
        for s in reversed(range(len(self.states))):  # children stand behind their parent
            future = torch.stack(
                [self.rewards[i] if finished else values[i] for finished, i in self._arrivals[s]]
            )
            futures[s], values[s] = future, backup(s, future)
        return torch.stack(values), torch.stack(futures) - penalty


def _finished(prefix: tuple[int, ...], eos: int, max_length: int) -> list[tuple[int, ...]]:
    """Every finished response that begins with `prefix`; an extension stands before the EOS that ends it."""
    if len(prefix) == max_length:
        return [prefix]
    return [s for word in range(eos) for s in _finished((*prefix, word), eos, max_length)] + [
        (*prefix, eos)
    ]
