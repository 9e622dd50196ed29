"""The columns that the token microscope knows: a plain label, a unit and one sentence for each."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """How a column of numbers is shown.

    Args:
        label: its name in plain words. unit: of its numbers, for example "nats".
        about: one or two sentences on what the numbers mean.
        group: the heading under which the panel lists it.
        factor: the number is a factor, such as a ratio. It is coloured by its logarithm: 1 is
            drawn white, and 1/2 is as far from white as 2.
    """

    label: str
    unit: str = ""
    about: str = ""
    group: str = "Other numbers"
    factor: bool = False

    def distance(self, value: float) -> float:
        """How far a value is from the number that is drawn white."""
        if not self.factor or math.isnan(value):
            return value
        return math.log(value) if value > 0 else -math.inf


REWARD, PROBABILITY, UPDATE = (
    "Rewards and values",
    "Probabilities (nats)",
    "The update",
)


KNOWN = {
    "prefix_reward": Column(
        "reward of each prefix + EOS",
        "reward units",
        "The reward model's score if the response ended after this token. The colour changes where "
        "a token makes the response better or worse.",
        REWARD,
    ),
    "one_pass_reward": Column(
        "reward read in one pass",
        "reward units",
        "What the reward model's head says at this token when it reads the whole response. The "
        "head was trained at the last token only.",
        REWARD,
    ),
    "process_reward": Column(
        "process reward",
        "reward units",
        "The score of a reward model that judges every step, not only the end.",
        REWARD,
    ),
    "implicit_reward": Column(
        "implicit reward",
        "reward units",
        "Beta times (log-probability under the policy minus log-probability under the reference). "
        "DPO trains it like a reward.",
        REWARD,
    ),
    "score": Column(
        "score of the whole response",
        "reward units",
        "What the reward model or a rule says of the whole response. Each of its tokens shows it.",
        REWARD,
    ),
    "reward": Column(
        "reward after the KL penalty",
        "reward units",
        "What the policy is paid for this token: minus the KL coefficient times the "
        "log-ratio to the reference. "
        "The last token also gets the score of the whole response.",
        REWARD,
    ),
    "value": Column(
        "value (the critic)",
        "reward units",
        "The sum of rewards that the critic expects from this token on. "
        "The critic has not seen the token yet.",
        REWARD,
    ),
    "td_error": Column(
        "TD error",
        "reward units",
        "The critic's surprise: the reward, plus the value after the token, minus the value "
        "before it.",
        REWARD,
    ),
    "advantage": Column(
        "advantage",
        "",
        "How much better the response went than expected. What was expected: by the critic at this "
        "token (PPO), or the mean of the group (GRPO). Blue: better, orange: worse.",
        REWARD,
    ),
    "return": Column(
        "critic's target",
        "reward units",
        "What the critic is trained to predict at this token: advantage plus value. Some libraries "
        "name it returns.",
        REWARD,
    ),
    "logprob": Column(
        "log-probability, policy",
        "nats",
        "How likely the current policy finds this token: 0 is certain, -2.3 is one in ten.",
        PROBABILITY,
    ),
    "old_logprob": Column(
        "log-probability when sampled",
        "nats",
        "How likely this token was under the policy that wrote the response.",
        PROBABILITY,
    ),
    "ref_logprob": Column(
        "log-probability, reference",
        "nats",
        "How likely the frozen reference finds this token: 0 is certain, -2.3 is one in ten.",
        PROBABILITY,
    ),
    "kl": Column(
        "log-ratio to the reference",
        "nats",
        "Log-probability when sampled minus log-probability under the reference. The KL is the "
        "mean of its sum over a response. Blue: more likely now. Orange: less likely.",
        PROBABILITY,
    ),
    "entropy": Column(
        "entropy",
        "nats",
        "How undecided the policy is at this token: 0 is certain, 0.69 is a fair coin.",
        PROBABILITY,
    ),
    "ratio": Column(
        "importance ratio",
        "",
        "Probability under the current policy, divided by the probability when sampled. "
        "It is 1 before the first update.",
        UPDATE,
        factor=True,
    ),
    "clipped": Column(
        "clipped",
        "",
        "Yes: the token has moved out of the clip range in the direction of its advantage, so "
        "it gives no gradient.",
        UPDATE,
    ),
}


def describe(name: str) -> Column:
    """The label, unit and meaning of a column; an unknown one is shown under its own name."""
    return KNOWN.get(name) or Column(name.replace("_", " "))
