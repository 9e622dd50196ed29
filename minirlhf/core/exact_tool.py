"""A world with a tool that is small enough to solve exactly.

The policy writes an action, a tool answers, and the policy writes a second action. The whole
trajectory gets one reward at its end. The policy reads the tool's answer but does not choose it.
Every trajectory is listed, so the best policy, and what a loss does to a policy, are computed and
not estimated. `core.exact.World` has no tool: there the policy writes every token.

    A, O, C        numbers of first actions a, of answers o and of second actions c
    tool(o|a)      the probability with which the tool gives answer o to action a
    first, second  a policy, as two tables of logits: pi(a) of shape (A,), pi(c|a,o) of (A, O, C)
    log-ratio      log pi/ref (a) + log pi/ref (c|a,o), nats: the sum over the policy's two actions.
                   This is what a loss sees if the action mask leaves out the tool's answer.

With beta > 0 the objective is J = E[r] - beta KL, and KL is the expected log-ratio. The policy with
the largest J follows from backward induction:

    V(a,o)  = beta log(sum over c of ref(c|a,o) exp(r(a,o,c) / beta))
    Q(a)    = sum over o of tool(o|a) V(a,o)
    V_0     = beta log(sum over a of ref(a) exp(Q(a) / beta))

    log pi*/ref (a) = (Q(a) - V_0) / beta        log pi*/ref (c|a,o) = (r(a,o,c) - V(a,o)) / beta

The sum of the last two lines is the identity on which direct preference optimisation (DPO) rests:

    beta log-ratio* = r - V_0 - [V(a,o) - Q(a)]

DPO leaves out the bracket. It is the *transition term*: how much better the tool's answer is than
its answer on average. A deterministic tool makes it 0, and then DPO with the action mask is exact
(Xiong et al. 2024, section 3). A random tool makes it 0 on average only. With more calls of tools
there is one such term for each. Rewards and values are in reward units. Use float64.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from minirlhf.core.checks import Sizes, check_above_0, check_not_negative, check_tensor, checked
from minirlhf.core.preference import dpo

LARGEST_TOOL_WORLD = 1_000  # trajectories: the DPO loss compares each pair of them


@dataclass(frozen=True, eq=False)
class ToolWorld:
    """A tool, a reward for every trajectory, and a reference policy.

    Args:
        tool: (A, O), tool(o|a). Each row sums to 1. A deterministic tool has one 1 in each row.
        rewards: (A, O, C), reward units. Those after an answer that never occurs do not matter.
        ref_first: (A,), logits of the reference's first action.
        ref_second: (A, O, C), logits of its second action.

    Raises:
        ValueError: a table of the wrong kind or shape, more than 1,000 trajectories, a number that
            is not finite, or a row of the tool that is no distribution.
    """

    tool: Float[Tensor, "A O"]
    rewards: Float[Tensor, "A O C"]
    ref_first: Float[Tensor, "A"]
    ref_second: Float[Tensor, "A O C"]

    def __post_init__(self) -> None:
        check_tensor("rewards", self.rewards, Float[Tensor, "A O C"], {})
        for name, hint in (
            ("tool", Float[Tensor, "A O"]),
            ("ref_first", Float[Tensor, "A"]),
            ("ref_second", Float[Tensor, "A O C"]),
        ):
            check_tensor(name, getattr(self, name), hint, dict(self.axes))
        for name in ("rewards", "ref_first", "ref_second"):
            if not getattr(self, name).isfinite().all():
                raise ValueError(f"{name} has NaN or infinity; every entry must be finite.")
        _check_distribution("tool", self.tool)
        if self.rewards.numel() > LARGEST_TOOL_WORLD:
            raise ValueError(
                f"rewards has {self.rewards.numel():,} trajectories; a world may have at most "
                f"{LARGEST_TOOL_WORLD:,}."
            )

    @cached_property
    def axes(self) -> Sizes:
        """The sizes of the letters in the shapes of this class, for `checked`."""
        sizes = dict(zip("AOC", self.rewards.shape, strict=True))
        return {
            letter: (size, f"{letter} = {size} in this world") for letter, size in sizes.items()
        }

    @classmethod
    def two_tools(cls, *, right: float = 0.8, cost: float = 0.1) -> "ToolWorld":
        """A fast tool that may be wrong, and a slow one that is always right, in float64.

            first action     fast: right with probability `right`; slow: always right
            answer           right, wrong
            second action    pass the answer on: reward 1 if it is right, -1 if it is wrong;
                             say "I do not know": reward 0

        The slow tool costs `cost`, whatever follows. The reference is uniform. The policy sees
        whether the answer is right.

        Args:
            right: from 0 to 1.
            cost: reward units, 0 or more.

        Raises:
            ValueError: a number is out of range.
        """
        if not 0 <= right <= 1:
            raise ValueError(f"right is {right}; it must be a probability, from 0 to 1.")
        check_not_negative(cost=cost)

        def table(x: list) -> Tensor:
            return torch.tensor(x, dtype=torch.float64, device="cpu")

        rewards = table([[[1, 0], [-1, 0]]] * 2) - table([0, cost])[:, None, None]
        tool = table([[right, 1 - right], [1, 0]])
        return cls(tool, rewards, torch.zeros_like(rewards[:, 0, 0]), torch.zeros_like(rewards))

    # ---- a policy in this world
    @checked
    def probs(
        self, first: Float[Tensor, "A"], second: Float[Tensor, "A O C"]
    ) -> Float[Tensor, "A O C"]:
        """Probability of every trajectory: pi(a) tool(o|a) pi(c|a,o). They sum to 1."""
        return first.softmax(0)[:, None, None] * self.tool[..., None] * second.softmax(-1)

    @checked
    def log_ratio(
        self, first: Float[Tensor, "A"], second: Float[Tensor, "A O C"]
    ) -> Float[Tensor, "A O C"]:
        """log pi/ref (a) + log pi/ref (c|a,o) of every trajectory, nats; the tool has no part."""
        first = first.log_softmax(0) - self.ref_first.log_softmax(0)
        return first[:, None, None] + second.log_softmax(-1) - self.ref_second.log_softmax(-1)

    @checked
    def expected_reward(
        self, first: Float[Tensor, "A"], second: Float[Tensor, "A O C"]
    ) -> Float[Tensor, ""]:
        """E[r] over the trajectories of a policy and the tool, reward units."""
        return (self.probs(first, second) * self.rewards).sum()

    @checked
    def kl(self, first: Float[Tensor, "A"], second: Float[Tensor, "A O C"]) -> Float[Tensor, ""]:
        """KL(pi || ref) of whole trajectories, nats: the expected log-ratio under pi.

        Policy and reference use the same tool, so its probabilities cancel.
        """
        return (self.probs(first, second) * self.log_ratio(first, second)).sum()

    @checked
    def objective(
        self, first: Float[Tensor, "A"], second: Float[Tensor, "A O C"], *, beta: float
    ) -> Float[Tensor, ""]:
        """J = E[r] - beta KL(pi || ref), differentiable.

        Policy-gradient methods with an action mask follow the gradient of J. They need no
        deterministic tool: the tool's answers are sampled, and need not be explained.

        Args:
            first, second: the policy pi.
            beta: weight of the KL penalty, reward units per nat, 0 or more.
        """
        check_not_negative(beta=beta)
        return self.expected_reward(first, second) - beta * self.kl(first, second)

    # ---- the best policy
    @checked
    def optimal_values(
        self, *, beta: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "A"], Float[Tensor, "A O"]]:
        """V_0, Q(a) and V(a,o) of the policy with the largest J, by backward induction.

        The equations stand at the top of this file. V_0 is the largest J.

        Args:
            beta: weight of the KL penalty, reward units per nat, above 0.
        """
        check_above_0(beta=beta)
        values = beta * (self.ref_second.log_softmax(-1) + self.rewards / beta).logsumexp(-1)
        q = (self.tool * values).sum(1)
        return beta * (self.ref_first.log_softmax(0) + q / beta).logsumexp(0), q, values

    @checked
    def optimum(self, *, beta: float) -> tuple[Float[Tensor, "A"], Float[Tensor, "A O C"]]:
        """The policy pi* with the largest J, as (first, second), log-probabilities.

        Args:
            beta: weight of the KL penalty, reward units per nat, above 0.
        """
        start, q, values = self.optimal_values(beta=beta)
        first = self.ref_first.log_softmax(0) + (q - start) / beta
        second = self.ref_second.log_softmax(-1) + (self.rewards - values[..., None]) / beta
        return first, second

    @checked
    def transition_term(self, *, beta: float) -> Float[Tensor, "A O"]:
        """V(a,o) - Q(a): how much better each answer of the tool is than its expected answer.

        Its mean over the tool's answers is 0, for every a. Subtract it from the rewards, and DPO
        with the action mask is exact again: the new world has the same pi* and no transition term.

        Args:
            beta: weight of the KL penalty, reward units per nat, above 0.
        """
        _, q, values = self.optimal_values(beta=beta)
        return values - q[:, None]

    # ---- what DPO learns
    @checked
    def dpo_loss(self, log_ratios: Float[Tensor, "A O C"], *, beta: float) -> Float[Tensor, ""]:
        """Mean DPO loss over all pairs of trajectories.

        Both trajectories of a pair come from the reference and the tool, independently. The labels
        follow the Bradley-Terry model: a share sigmoid(r_i - r_j) prefers trajectory i to j. The
        loss is ln 2 at the reference.

        Args:
            log_ratios: what the loss takes for log pi/ref of each trajectory. `log_ratio` leaves
                out the tool's answer. Add log p(o|a) - log ref_p(o|a) of a model p of the tool for
                a loss without the action mask.
            beta: reward units per nat, above 0.
        """
        h, rewards = log_ratios.flatten(), self.rewards.flatten()
        weights = self.probs(self.ref_first, self.ref_second).flatten()
        i, j = torch.cartesian_prod(*[torch.arange(len(h), device=h.device)] * 2).unbind(1)
        # twice, because the pair (i, j) is also drawn as (j, i)
        share = 2 * weights[i] * weights[j] * torch.sigmoid(rewards[i] - rewards[j])
        none = torch.zeros_like(h[i])
        return (share * dpo(h[i], h[j], none, none, beta=beta)).sum()

    @checked
    def masked_optimum(self, *, beta: float) -> tuple[Float[Tensor, "A"], Float[Tensor, "A O C"]]:
        """Where DPO with the action mask ends, as (first, second), log-probabilities.

        It is a minimum of `dpo_loss(log_ratio(first, second))`. With a deterministic tool this is
        pi*. With a random tool no policy has the log-ratio r / beta + constant that the loss asks
        for, unless the transition term is 0, because pi(c|a,o) sums to 1 after every answer. The
        minimum is a compromise without a closed form. It depends on how often each pair occurs.

        It is found with L-BFGS (a second-order method on the whole loss) from the reference, where
        training starts too. The loss is not convex, and other starts may end in other minima.
        Second actions after an answer that never occurs stay at the reference.

        Args:
            beta: reward units per nat, above 0.
        """
        check_above_0(beta=beta)
        logits = [
            x.detach().clone().requires_grad_(True) for x in (self.ref_first, self.ref_second)
        ]
        optimizer = torch.optim.LBFGS(
            logits,
            max_iter=2000,
            tolerance_grad=1e-10,
            tolerance_change=0,
            history_size=30,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.dpo_loss(self.log_ratio(*logits), beta=beta)
            loss.backward()
            return loss

        optimizer.step(closure)
        first, second = (x.detach().log_softmax(-1) for x in logits)
        return first, second

    @checked
    def unmasked_optimum(
        self, *, beta: float, ref_tool: Float[Tensor, "A O"] | None = None
    ) -> tuple[Float[Tensor, "A"], Float[Tensor, "A O C"], Float[Tensor, "A O"]]:
        """Where DPO without an action mask ends, as (first, second, tool), log-probabilities.

        The tool's answer counts as if the policy had chosen it. Then the language model has three
        parts: two actions and a model of the tool. The minimum of the loss is the Gibbs policy over
        all trajectories, ref(a) ref_tool(o|a) ref(c|a,o) exp(r / beta) / Z. Its second actions are
        those of pi*. Its first action has a soft maximum over answers where Q(a) has a mean:

            log pi/ref (a) = log(sum over o of ref_tool(o|a) exp(V(a,o) / beta)) + constant
            log p(o|a)     = log ref_tool(o|a) + V(a,o) / beta + constant of a

        So this policy is an optimist. It learns a model of the tool that gives good answers more
        often than the tool does, and it chooses actions as if it could rely on that.

        Args:
            beta: reward units per nat, above 0.
            ref_tool: the reference's model of the tool, probabilities; None is the tool itself. An
                answer must be possible in both or in none. Otherwise the loss, which never sees the
                answer, would not determine the policy.

        Returns:
            The policy, and its model p of the tool; -inf for an answer that never occurs.

        Raises:
            ValueError: beta is not above 0, or ref_tool is no distribution or does not fit.
        """
        believed = self.tool if ref_tool is None else ref_tool
        _check_distribution("ref_tool", believed)
        if ((believed > 0) != (self.tool > 0)).any():
            raise ValueError(
                "ref_tool and tool differ in which answers are possible; an answer must be above 0 "
                "in both or in none."
            )
        _, second = self.optimum(beta=beta)
        _, _, values = self.optimal_values(beta=beta)
        joint = believed.log() + values / beta
        optimistic = joint.logsumexp(1)
        first = (self.ref_first.log_softmax(0) + optimistic).log_softmax(0)
        return first, second, joint - optimistic[:, None]


def _check_distribution(name: str, table: Tensor) -> None:
    """Raise a ValueError unless every row has probabilities that sum to 1."""
    sums = table.sum(-1)
    if not ((table >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-6)):
        raise ValueError(
            f"{name} must hold probabilities: 0 or more, and each row with a sum of 1; the sums "
            f"are {[round(x, 6) for x in sums.tolist()]}."
        )
