"""The concept test: twelve questions on common misconceptions about RLHF.

Students answer it in lesson 00 and again in lesson 09.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question of the concept test.

    Args:
        lesson: the lesson that answers it, two digits.
        text: the question.
        right: the right option.
        wrong: each wrong option, with the reason why it is wrong.
    """

    lesson: str
    text: str
    right: str
    wrong: dict[str, str]

    def options(self, number: int) -> dict[str, str]:
        """Letter -> option, shuffled with the question's number as the seed."""
        options = [self.right, *self.wrong]
        random.Random(number).shuffle(options)
        return dict(zip("abcd", options, strict=True))


QUESTIONS = (
    Question(
        "02",
        "A reward model agrees with one random rater on 78 % of the held-out pairs. "
        "The mean of all other raters predicts that rater on 81 % of these pairs. "
        "What does the 78 % say about the reward model?",
        "It is near the ceiling.",
        {
            "It is wrong on 22 % of the pairs.": (
                "each label is one person's judgement. "
                "Another person would have chosen differently in about a fifth of the cases."
            ),
            "With enough parameters it would reach 100 %.": (
                "the label depends on which person was asked, and nothing predicts that."
            ),
            "It has learned little: a coin has 50 %.": "compare with 81 %, not with 100 %.",
        },
    ),
    Question(
        "03",
        "Padding has the id of the EOS token, and the mask of the loss is `ids != pad_id`. "
        "What happens?",
        "Stopping is not trained.",
        {
            "Nothing: padding should not be trained anyway.": (
                "the first EOS is not padding. It is the policy's choice to stop."
            ),
            "The prompt is trained as well.": "this mask does not decide about the prompt.",
            "The loss is a constant factor too small.": (
                "one particular token is missing, not a share of all tokens."
            ),
        },
    ),
    Question(
        "04",
        "A number that depends only on the prompt is subtracted from each reward. "
        "What happens to the estimated policy gradient?",
        "Its mean stays the same; its variance changes.",
        {
            "It becomes biased, because the rewards have changed.": (
                "given the prompt, the expected grad log pi is zero. "
                "So the number times grad log pi is zero on average too."
            ),
            "Its mean stays only if the number is the true value.": (
                "any number that does not depend on the response leaves the mean as it is."
            ),
            "The best policy changes.": (
                "every response to a prompt loses the same amount, so their order stays."
            ),
        },
    ),
    Question(
        "05",
        "GAE is computed with lambda = 1 and gamma = 1, and the critic is wrong. "
        "What holds for the policy gradient?",
        "The gradient is unbiased, and noisy.",
        {
            "The gradient is biased by the critic's errors.": (
                "at lambda = 1 the critic's values cancel, except for -V(s_t). This is a baseline. "
                "At lambda = 0 the errors stay."
            ),
            "The gradient is unbiased, and has the least variance of all lambdas.": (
                "it is unbiased, but it contains all the noise of the sampled tokens."
            ),
            "Its advantages are the TD errors.": "that is lambda = 0.",
        },
    ),
    Question(
        "06",
        "A token has advantage -1 and ratio 1.5; the clip is 0.2. What is its gradient?",
        "Not zero: it is pulled back.",
        {
            "Zero: the ratio is outside of [0.8, 1.2].": (
                "the minimum takes the clipped term only where that is the smaller objective. "
                "Here the unclipped term is smaller."
            ),
            "Zero: the clipped term is the smaller one.": (
                "the unclipped term, -1.5, is smaller than the clipped one, -1.2, and it has a "
                "gradient."
            ),
            "It pushes the token further up.": (
                "the advantage is negative, so the token is pushed down."
            ),
        },
    ),
    Question(
        "06",
        "PPO's policy loss fell from 0.01 to -0.04. What follows?",
        "Nothing by itself.",
        {
            "The policy improves.": (
                "only the gradient of this loss has a meaning, not its value. "
                "With each new rollout the loss starts near 0 again."
            ),
            "The learning rate is too high.": (
                "the loss is minus a mean of whitened advantages times ratios near 1. "
                "Such a mean varies around 0."
            ),
            "The critic has converged.": "the critic has a loss of its own.",
        },
    ),
    Question(
        "07",
        "log pi(y) - log pi_ref(y) of one response that pi sampled is -3 nats. What follows?",
        "One response may be negative; the expectation cannot be.",
        {
            "The sign is wrong somewhere.": (
                "a single response can well be more likely under the reference."
            ),
            "It must be clamped at 0.": "then its mean is no longer the KL.",
            "The policy has become better than the reference.": (
                "a log-ratio does not say which policy is better."
            ),
        },
    ),
    Question(
        "07",
        "The mean of k3 over the policy's samples is an unbiased estimate of KL(pi || ref). "
        "k3 is added to the *loss* and differentiated at the samples. "
        "What is its expected gradient?",
        "The gradient of another divergence.",
        {
            "The gradient of KL(pi || ref), since k3 is unbiased.": (
                "the samples depend on the policy too, and automatic differentiation does not "
                "see that."
            ),
            "Zero.": "that is the expected gradient of k1, not of k3.",
            "The same gradient as that of k1.": (
                "the gradient of k1 is 0 on average, that of k3 is not."
            ),
        },
    ),
    Question(
        "07",
        "`kl_coef` is set to 0 and the reward comes from a learned reward model. What happens?",
        "The score keeps rising; the responses become alike.",
        {
            "PPO's clip keeps the policy near the reference anyway.": (
                "the clip only keeps it near the policy of the last rollout, and that policy moves."
            ),
            "The score and what people like rise together, to the end.": (
                "training maximises the reward model's score, also where the reward model is wrong."
            ),
            "Entropy grows, since nothing holds the policy.": (
                "the policy with the highest score writes a single response, so entropy falls."
            ),
        },
    ),
    Question(
        "08",
        "5 is added to every score of a reward model. What happens to its Bradley-Terry loss?",
        "It stays the same.",
        {
            "It falls, since the chosen responses score higher.": (
                "the rejected responses score higher by the same amount."
            ),
            "It rises, since the scores are too far from zero.": (
                "zero has no special meaning in this loss."
            ),
            "That depends on the prompts.": (
                "both responses of a pair get the same 5, whatever the prompt."
            ),
        },
    ),
    Question(
        "09",
        "What does the critic's number in the column of a token estimate?",
        "The value of the prefix before that token.",
        {
            "Q, the value of choosing that token.": (
                "Q depends on the token, which the critic has not read yet. "
                "Q is the reward plus V in the next column."
            ),
            "The reward model's score of the sequence so far.": (
                "the critic may start as a copy of the reward model, but it predicts the reward "
                "of the finished response."
            ),
            "The advantage of that token.": (
                "an advantage is computed from values and rewards. The simplest one, the TD error, "
                "uses one reward and two neighbouring values."
            ),
        },
    ),
    Question(
        "09",
        "Which is the best evidence that PPO made the policy better?",
        "A judge not used in training, on held-out prompts, with paired differences, the KL, "
        "diversity, and samples that somebody has read.",
        {
            "A higher reward model score on held-out prompts, with its confidence interval.": (
                "the policy was trained on this score. "
                "The score rises even when the responses get worse."
            ),
            "A lower loss on held-out prompts.": "PPO's loss does not measure quality.",
            "A lower KL to the reference.": "the reference itself has the lowest KL.",
        },
    ),
)


class Questions:
    """The concept test, shown by a notebook as a numbered list with lettered options."""

    def _repr_markdown_(self) -> str:
        blocks = []
        for number, question in enumerate(QUESTIONS, 1):
            options = "".join(
                f"\n   - **{letter}** {option}"
                for letter, option in question.options(number).items()
            )
            blocks.append(f"{number}. {question.text}{options}")
        return "\n".join(blocks)

    __str__ = _repr_markdown_

    def __repr__(self) -> str:
        return f"The concept test: {len(QUESTIONS)} questions. `print(Questions())` shows them."


def graded(answers: str, *, explain: bool = False) -> str:
    """Grade the concept test.

    Args:
        answers: twelve letters a, b, c or d, or - for "I do not know". Blanks are ignored.
        explain: also say why a chosen option is wrong.

    Returns:
        The number of right answers, and the lesson of each question that is not answered rightly.

    Raises:
        ValueError: the number of answers is not twelve, or another letter was given.
    """
    given = "".join(answers.split()).lower()
    if len(given) != len(QUESTIONS) or set(given) - set("abcd-"):
        raise ValueError(
            f"The answers are '{answers}'; they must be {len(QUESTIONS)} letters: a, b, c or d, "
            "or - for 'I do not know'."
        )
    lines = []
    for number, (letter, question) in enumerate(zip(given, QUESTIONS, strict=True), 1):
        chosen = question.options(number).get(letter)
        if chosen != question.right:
            why = f": {question.wrong.get(chosen or '', 'you gave no answer')}" if explain else ""
            lines.append(f"  {number}, lesson {question.lesson}{why}")
    right = len(QUESTIONS) - len(lines)
    return f"{right} of {len(QUESTIONS)}." + ("" if not lines else " Not yet:\n" + "\n".join(lines))
