"""A world small enough to solve exactly.

Every sequence is listed. So the objective J, its gradient, the KL, the value functions and the
optimal policy are computed, not estimated. The tests compare every estimator of the package with
these numbers.

A response is a string over a vocabulary of V words. It ends with EOS (the end-of-sequence word), or
after max_length tokens. A *state* is a prefix that can still be continued; there are S of them. A
tabular policy is an (S, V) tensor of logits with one row per state. There are N finished sequences,
and each has one reward. R is max_length. V in a shape is the number of words; V(s), with its
argument, is the value of state s. Log-probabilities and KL are in nats, the unit of natural
logarithms.

    world = World.from_reward(("a", "b", "."), 2, lambda words: float(words.count("a")))
    world.labels                                  # aa ab a. ba bb b. .
    world.gradient(world.ref_logits, beta=0.5)    # dJ / dlogits, exact
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minirlhf.core.checks import (
    Sizes,
    check_above_0,
    check_finite,
    check_not_negative,
    check_tensor,
    checked,
)
from minirlhf.core.rollout import Rollout

LARGEST_WORLD = 1_000_000  # sequences: more would fill the memory


@dataclass(frozen=True, eq=False)
class World:
    """A vocabulary, a maximum length, a reward for every sequence, and a reference policy.

    Args:
        vocab: V words; the last one is EOS.
        max_length: tokens, EOS included; a longer response is cut off there.
        rewards: (N,), reward units, in the order of `labels`.
        ref_logits: (S, V), logits of the reference, in the order of `states`; row 0 is the empty
            prefix.

    Raises:
        ValueError: fewer than two words, a max_length below 1, more than a million sequences, or a
            table of the wrong kind or shape.
    """

    vocab: tuple[str, ...]
    max_length: int
    rewards: Float[Tensor, "N"]
    ref_logits: Float[Tensor, "S V"]

    def __post_init__(self) -> None:
        _counts(len(self.vocab), self.max_length)
        for name, hint in (("rewards", Float[Tensor, "N"]), ("ref_logits", Float[Tensor, "S V"])):
            check_tensor(name, getattr(self, name), hint, dict(self.axes))
        if not self.rewards.isfinite().all():
            raise ValueError("rewards has NaN or infinity; every reward must be finite.")

    @cached_property
    def axes(self) -> Sizes:
        """The sizes of the letters in the shapes of this class, for `checked`."""
        states, sequences = _counts(len(self.vocab), self.max_length)
        sizes = {"S": states, "V": len(self.vocab), "N": sequences, "R": self.max_length}
        return {
            letter: (size, f"{letter} = {size} in this world") for letter, size in sizes.items()
        }

    @classmethod
    def from_reward(
        cls, vocab: tuple[str, ...], max_length: int, reward: Callable[[list[str]], float]
    ) -> "World":
        """A world from a reward function, with a uniform reference, in float64.

        Args:
            vocab: V words; the last one is EOS.
            max_length: tokens, EOS included.
            reward: maps the list of words of a sequence to its reward. EOS is in the list if the
                sequence ends with it.

        Raises:
            ValueError: a reward is not a finite number, or the world is too large.
        """
        states, _ = _counts(len(vocab), max_length)
        texts = [[vocab[i] for i in s] for s in _finished((), len(vocab) - 1, max_length)]
        values = [reward(words) for words in texts]
        for words, value in zip(texts, values, strict=True):
            if not hasattr(value, "__float__"):
                raise ValueError(f"The reward of {words} is {value!r}; it must be a number.")
        ref_logits = torch.zeros(states, len(vocab), dtype=torch.float64, device="cpu")
        rewards = torch.tensor(values, dtype=torch.float64, device="cpu")
        return cls(tuple(vocab), max_length, rewards, ref_logits)

    @classmethod
    def random(
        cls, vocab_size: int = 3, max_length: int = 3, *, seed: int = 0, reward_scale: float = 1.0
    ) -> "World":
        """A world with random rewards and a random reference, in float64.

        Args:
            vocab_size: number of words, EOS included.
            max_length: tokens, EOS included.
            seed: seed of the generator that draws the rewards and the logits.
            reward_scale: standard deviation of the Gaussian rewards, reward units. The logits of
                the reference are standard Gaussian.

        Raises:
            ValueError: more than 26 words and EOS, a seed that is not from 0 to 2^32 - 1, a
                reward_scale that is not finite, or a world that is too large.
        """
        if not (isinstance(vocab_size, int) and vocab_size <= 27):
            raise ValueError(
                f"vocab_size is {vocab_size}; it must be from 2 to 27: EOS and a to z."
            )
        if not (isinstance(seed, int) and 0 <= seed < 2**32):
            raise ValueError(f"seed is {seed}; it must be a whole number from 0 to 2^32 - 1.")
        check_finite(reward_scale=reward_scale)
        states, count = _counts(vocab_size, max_length)
        generator = torch.Generator().manual_seed(seed)
        vocab = (*"abcdefghijklmnopqrstuvwxyz"[: vocab_size - 1], ".")
        rewards = reward_scale * torch.randn(
            count, generator=generator, dtype=torch.float64, device="cpu"
        )
        return cls(
            vocab,
            max_length,
            rewards,
            torch.randn(states, vocab_size, generator=generator, dtype=torch.float64, device="cpu"),
        )

    # ---- the tree of all sequences
    @cached_property
    def states(self) -> list[tuple[int, ...]]:
        """The S prefixes that can be continued, the empty one first.

        They are the strings without EOS that are shorter than max_length.
        """
        words = range(len(self.vocab) - 1)
        return [
            prefix
            for length in range(self.max_length)
            for prefix in itertools.product(words, repeat=length)
        ]

    @cached_property
    def sequences(self) -> list[tuple[int, ...]]:
        """The N finished responses, as word numbers, depth first.

        The continuations of a prefix come before the response that ends it with EOS.
        """
        return _finished((), len(self.vocab) - 1, self.max_length)

    @cached_property
    def labels(self) -> list[str]:
        """The sequences as strings."""
        return ["".join(self.vocab[i] for i in s) for s in self.sequences]

    @cached_property
    def response_mask(self) -> Bool[Tensor, "N R"]:
        """True at the tokens of each sequence, EOS included."""
        mask = [[t < len(s) for t in range(self.max_length)] for s in self.sequences]
        return torch.tensor(mask, device="cpu")

    @cached_property
    def response_ids(self) -> Int[Tensor, "N R"]:
        """The word numbers of each sequence, padded on the right with EOS."""
        eos = len(self.vocab) - 1
        padded = [[*s, *[eos] * (self.max_length - len(s))] for s in self.sequences]
        return torch.tensor(padded, device="cpu")

    @cached_property
    def visited(self) -> Int[Tensor, "N R"]:
        """The number of the state in which each token was chosen; 0 where masked.

        visited[n, t] is the prefix of sequence n before token t.
        """
        index = {prefix: i for i, prefix in enumerate(self.states)}
        return torch.tensor(
            [
                [index[s[:t]] if t < len(s) else 0 for t in range(self.max_length)]
                for s in self.sequences
            ],
            device="cpu",
        )

    @cached_property
    def _arrivals(self) -> list[list[tuple[bool, int]]]:
        """Where each word leads from each state.

        _arrivals[s][a] is (True, number of the finished sequence) or (False, number of the next
        state).
        """
        ends = {s: i for i, s in enumerate(self.sequences)}
        goes = {s: i for i, s in enumerate(self.states)}
        words = range(len(self.vocab))
        return [
            [(True, ends[(*s, a)]) if (*s, a) in ends else (False, goes[(*s, a)]) for a in words]
            for s in self.states
        ]

    # ---- a policy in this world
    @checked
    def logprobs(self, logits: Float[Tensor, "S V"]) -> Float[Tensor, "N R"]:
        """log pi(y_t | y_<t) of every token of every sequence, nats; 0 where masked."""
        chosen = logits.log_softmax(-1)[self.visited, self.response_ids]
        return torch.where(self.response_mask, chosen, torch.zeros_like(chosen))

    @checked
    def sequence_logprobs(self, logits: Float[Tensor, "S V"]) -> Float[Tensor, "N"]:
        """log pi(y) of every sequence, nats."""
        return self.logprobs(logits).sum(1)

    @checked
    def probs(self, logits: Float[Tensor, "S V"]) -> Float[Tensor, "N"]:
        """pi(y) of every sequence. The probabilities sum to 1."""
        return self.sequence_logprobs(logits).exp()

    @checked
    def rollout(self, logits: Float[Tensor, "S V"]) -> Rollout:
        """All N sequences as one batch after a one-token prompt.

        Each sequence appears once, with the log-probabilities of the policy `logits` as
        old_logprobs.
        """
        prompt = torch.full((len(self.sequences), 1), len(self.vocab) - 1, device="cpu")
        return Rollout(
            prompt,
            prompt == prompt,
            self.response_ids,
            self.response_mask,
            self.logprobs(logits).detach(),
        )

    @checked
    def by_token(self, table: Float[Tensor, "S ..."]) -> Float[Tensor, "N R ..."]:
        """The row of a table that belongs to the state before each token; 0 where masked.

        Entry [n, t] is the row of the state in which token t of sequence n was chosen. A loss needs
        its inputs in this form, for example values or logits.
        """
        columns = table[self.visited]
        columns[~self.response_mask] = 0
        return columns

    def tabulate(
        self,
        model: Callable[[Int[Tensor, "1 T"]], Tensor],
        prompt_ids: Int[Tensor, "P"] | None = None,
    ) -> Float[Tensor, "S V"]:
        """The logits of a model in every state, as a tabular policy.

        Args:
            model: maps ids of shape (1, T) to logits of shape (1, T, V), for example a tiny GPT.
            prompt_ids: the prompt before every response; one EOS if None, as in `rollout`.

        Raises:
            ValueError: the model's vocabulary has another size than that of the world.
        """
        if prompt_ids is None:
            prompt_ids = torch.tensor([len(self.vocab) - 1], device="cpu")
        rows = [
            model(torch.cat([prompt_ids, prompt_ids.new_tensor(s)])[None])[0, -1]
            for s in self.states
        ]
        if len(rows[0]) != len(self.vocab):
            raise ValueError(
                f"The model's vocabulary has {len(rows[0])} words and that of this world has "
                f"{len(self.vocab)}; they must be equal."
            )
        return torch.stack(rows)

    # ---- exact quantities
    @checked
    def expectation(
        self, logits: Float[Tensor, "S V"], x: Float[Tensor, "N ..."]
    ) -> Float[Tensor, "..."]:
        """Expected value of x under the policy, E[x(y)] for y ~ pi.

        It is the mean of an estimator over infinitely many samples. The probabilities carry no
        gradient.

        Args:
            logits: the policy that samples.
            x: one value, or one tensor, per sequence.
        """
        return torch.tensordot(self.probs(logits).detach(), x, dims=1)

    @checked
    def groups(
        self, logits: Float[Tensor, "S V"], group_size: int
    ) -> tuple[Int[Tensor, "M G"], Float[Tensor, "M"]]:
        """All groups of G independent samples, and the probability of each group.

        Args:
            logits: the policy that samples.
            group_size: G.

        Returns:
            (index, probability) of all M groups, where M is N to the power G. index[m] holds the G
            sequence numbers of group m.
        """
        count = len(self.sequences)
        if not 1 <= group_size <= LARGEST_WORLD or count**group_size > LARGEST_WORLD:
            raise ValueError(
                f"group_size is {group_size}; it must be 1 or more, and so small that "
                f"{count} sequences have at most {LARGEST_WORLD:,} groups."
            )
        every = torch.arange(count, device="cpu")
        index = torch.cartesian_prod(*[every] * group_size).reshape(-1, group_size)
        return index, self.sequence_logprobs(logits).detach()[index].sum(1).exp()

    @checked
    def bias_and_spread(
        self, logits: Float[Tensor, "S V"], advantages: Float[Tensor, "M G #R"]
    ) -> tuple[float, float]:
        """Bias and spread of the policy gradient that a batch of G responses gives.

        The estimate of one batch has these advantages in front of the log-probabilities:

            estimate = 1/G  sum over its responses and tokens of A_t grad log pi(y_t | s_t)

        The bias is the distance between the mean of all estimates and dJ / dlogits. The spread is
        the standard deviation of the estimate: the root of the mean squared distance between one
        estimate and their mean. A batch counts with its probability.

        Args:
            logits: the policy that samples, and whose gradient is estimated.
            advantages: one number for each token of each batch, in the order of `groups`; or one
                for each response, of shape (M, G, 1). Numbers at padding do not count.

        Returns:
            (bias, spread), both divided by the norm of dJ / dlogits.
        """
        index, probability = self.groups(logits, advantages.shape[1])
        slopes = torch.autograd.functional.jacobian(self.logprobs, logits.detach())[index]
        advantages = torch.where(self.response_mask[index], advantages, 0.0)
        estimates = torch.einsum("mgr,mgrsv->msv", advantages, slopes) / advantages.shape[1]
        mean = torch.tensordot(probability, estimates, dims=1)
        variance = probability @ (estimates - mean).square().sum((1, 2))
        truth = self.gradient(logits)
        bias, spread = (mean - truth).norm(), variance.sqrt()
        return (bias / truth.norm()).item(), (spread / truth.norm()).item()

    @checked
    def kl(self, logits: Float[Tensor, "S V"], other: Float[Tensor, "S V"]) -> Float[Tensor, ""]:
        """KL(pi || other) of whole sequences, nats.

            sum over y of pi(y) (log pi(y) - log other(y))

        Args:
            logits: the policy pi, over whose sequences the mean is taken.
            other: the other policy.
        """
        log_p, log_q = self.sequence_logprobs(logits), self.sequence_logprobs(other)
        return (log_p.exp() * (log_p - log_q)).sum()

    @checked
    def objective(self, logits: Float[Tensor, "S V"], *, beta: float = 0.0) -> Float[Tensor, ""]:
        """The objective J of RLHF, differentiable.

            J = E_pi[r] - beta KL(pi || ref)

        Args:
            logits: the policy pi.
            beta: weight of the KL penalty, reward units per nat.

        Returns:
            J, reward units.
        """
        check_finite(beta=beta)
        return (self.probs(logits) * self.rewards).sum() - beta * self.kl(logits, self.ref_logits)

    @checked
    def gradient(self, logits: Float[Tensor, "S V"], *, beta: float = 0.0) -> Float[Tensor, "S V"]:
        """Exact gradient dJ / dlogits, with which the tests compare every estimator.

        Args:
            logits: the policy pi.
            beta: weight of the KL penalty, reward units per nat.
        """
        logits = logits.detach().requires_grad_(True)
        return torch.autograd.grad(self.objective(logits, beta=beta), logits)[0]

    @checked
    def values(
        self, logits: Float[Tensor, "S V"], *, beta: float = 0.0
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S V"]]:
        """V and Q of a policy, reward units.

            Q(s, a) = -beta log(pi(a|s) / ref(a|s)) + [r(y) if a ends the response, else V(s')]
            V(s)    = sum over a of pi(a|s) Q(s, a)

        s' is the next state. The reward of a token is its KL penalty, and the last token also gets
        the reward of the sequence.

        Args:
            logits: the policy pi.
            beta: weight of the KL penalty, reward units per nat.

        Returns:
            (V, Q) of shapes (S,) and (S, V).
        """
        check_finite(beta=beta)
        log_p = logits.log_softmax(-1)
        penalty = beta * (log_p - self.ref_logits.log_softmax(-1))
        return self._backward(
            lambda s, future: (log_p[s].exp() * (future - penalty[s])).sum(), penalty
        )

    @checked
    def optimal_values(
        self, *, beta: float = 0.0
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S V"]]:
        """V* and Q* of the best policy, reward units.

            Q*(s, a) = r(y) if a ends the response, else V*(s')
            V*(s)    = max over a of Q*(s, a)                                   if beta = 0 (hard)
            V*(s)    = beta log(sum over a of ref(a|s) exp(Q*(s, a) / beta))    if beta > 0 (soft)

        Q*(s, a) does not contain the KL penalty of word a itself. Q(s, a) as given by `values`
        contains it.

        Args:
            beta: weight of the KL penalty to the reference, reward units per nat, 0 or more.

        Returns:
            (V*, Q*) of shapes (S,) and (S, V).

        Raises:
            ValueError: beta is negative.
        """
        check_not_negative(beta=beta)
        log_ref = self.ref_logits.log_softmax(-1)
        if beta == 0:
            return self._backward(lambda s, future: future.max(), torch.zeros_like(log_ref))
        return self._backward(
            lambda s, future: beta * (log_ref[s] + future / beta).logsumexp(0),
            torch.zeros_like(log_ref),
        )

    @checked
    def gibbs(self, *, beta: float) -> Float[Tensor, "N"]:
        """Probabilities of the Gibbs policy, which maximises J.

            pi*(y) = ref(y) exp(r(y) / beta) / Z

        It is also a posterior: the reference is the prior, and r / beta is the log-likelihood.

        Args:
            beta: weight of the KL penalty, reward units per nat, above 0.

        Returns:
            pi*(y) of every sequence.

        Raises:
            ValueError: beta is not above 0.
        """
        check_above_0(beta=beta)
        return (self.sequence_logprobs(self.ref_logits) + self.rewards / beta).softmax(0)

    @checked
    def gibbs_logits(self, *, beta: float) -> Float[Tensor, "S V"]:
        """The Gibbs policy as a tabular policy.

            log pi*(a|s) = log ref(a|s) + (Q*(s, a) - V*(s)) / beta

        Args:
            beta: weight of the KL penalty, reward units per nat, above 0.
        """
        check_above_0(beta=beta)
        values, q = self.optimal_values(beta=beta)
        return self.ref_logits.log_softmax(-1) + (q - values[:, None]) / beta

    def _backward(
        self, backup: Callable[[int, Tensor], Tensor], penalty: Float[Tensor, "S V"]
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S V"]]:
        """V and Q by backward induction, from the longest prefixes to the empty one.

            V(s) = backup(s, future)    Q(s, .) = future - penalty(s, .)

        future holds one number per word: the reward of the sequence that it finishes, or V of the
        next state.
        """
        values: dict[int, Tensor] = {}
        futures: dict[int, Tensor] = {}
        states = range(len(self.states))
        for s in reversed(states):  # a state comes before its continuations
            future = torch.stack(
                [self.rewards[i] if finished else values[i] for finished, i in self._arrivals[s]]
            )
            futures[s], values[s] = future, backup(s, future)
        q = torch.stack([futures[s] for s in states]) - penalty
        return torch.stack([values[s] for s in states]), q


def _counts(words: int, max_length: int) -> tuple[int, int]:
    """The number of states and of finished responses of a world.

    Raises:
        ValueError: fewer than two words, no length, or more responses than can be listed.
    """
    if not (isinstance(max_length, int) and words >= 2 and max_length >= 1):
        raise ValueError(
            "A world needs two or more words, the last one EOS, and a max_length of 1 or more; "
            f"got {words} words and {max_length}."
        )
    # One response per state ends with EOS; the others are cut off at max_length.
    states, cut_off = 0, 1
    for _ in range(max_length):
        states, cut_off = states + cut_off, cut_off * (words - 1)
        if states + cut_off > LARGEST_WORLD:
            raise ValueError(
                f"A world of {words} words and a max_length of {max_length} has more than "
                f"{LARGEST_WORLD:,} sequences; give fewer words or a shorter length."
            )
    return states, states + cut_off


def _finished(prefix: tuple[int, ...], eos: int, max_length: int) -> list[tuple[int, ...]]:
    """All finished responses that begin with `prefix`, depth first.

    The continuations of a prefix come before the response that ends it with EOS.
    """
    if len(prefix) == max_length:
        return [prefix]
    return [s for word in range(eos) for s in _finished((*prefix, word), eos, max_length)] + [
        (*prefix, eos)
    ]
