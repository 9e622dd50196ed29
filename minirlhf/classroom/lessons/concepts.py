"""The concept test: twelve questions on what people get wrong about RLHF, asked in lesson 00 and again in lesson 09."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question; each wrong option says what its belief overlooks."""

    lesson: str
    text: str
    right: str
    wrong: dict[str, str]  # option -> why not

    def options(self, number: int) -> dict[str, str]:
        """Letter -> option, shuffled by the question's number: the same on every machine."""
        options = [self.right, *self.wrong]
        random.Random(number).shuffle(options)
        return dict(zip("abcd", options, strict=True))


QUESTIONS = (
    Question(
        "02",
        "A reward model ranks 78 % of held-out pairs as one random rater did. "
        "What all other raters say predicts that one rater on 81 % of such pairs.",
        "It is near the ceiling.",
        {
            "It is wrong on 22 % of the pairs.": "the label is one person's word; another would have said otherwise in a fifth of the cases.",
            "With enough parameters it would reach 100 %.": "nothing predicts which of two people was asked.",
            "It has learned little: a coin has 50 %.": "compare with 81 %, not with 100 %.",
        },
    ),
    Question(
        "03",
        "Padding is the EOS token and the loss's mask is `ids != pad_id`. What happens?",
        "Stopping is not trained.",
        {
            "Nothing: padding should not be trained anyway.": "the first EOS is no padding; it is the policy's choice to stop.",
            "The prompt is trained as well.": "this mask says nothing of the prompt.",
            "The loss is a constant factor too small.": "what is missing is one particular token, not a share of all.",
        },
    ),
    Question(
        "04",
        "A number that depends on the prompt only is subtracted from each reward. What does the policy gradient do?",
        "Its mean stays; its variance changes.",
        {
            "It becomes biased, since the rewards are no longer those given.": "given the prompt, the mean of grad log pi is zero, so is the product.",
            "Its mean stays only if the number is the true value.": "any number that does not look at the response will do.",
            "The best policy changes.": "every response of a prompt loses the same; their order stays.",
        },
    ),
    Question(
        "05",
        "GAE with lambda = 1 and gamma = 1, and a critic that is wrong.",
        "The gradient is unbiased, and noisy.",
        {
            "The gradient is biased by the critic's errors.": "they cancel but for -V(s_t), a baseline; they stay at lambda 0.",
            "The gradient is unbiased, and has the least variance of all lambdas.": "unbiased it is; but all the noise of what was drawn is in it.",
            "It is the TD error.": "that is lambda = 0.",
        },
    ),
    Question(
        "06",
        "A token with advantage -1 has the ratio 1.5; the clip is 0.2. What is its gradient?",
        "Not zero: it is pulled back.",
        {
            "Zero: the ratio is outside of [0.8, 1.2].": "the min takes the clipped branch only where that is the worse promise; here the other one is.",
            "Zero: the clipped branch is the smaller one.": "-1.5 is smaller than -1.2, and it has a gradient.",
            "It pushes the token further up.": "the advantage is negative: down.",
        },
    ),
    Question(
        "06",
        "PPO's policy loss fell from 0.01 to -0.04. What follows?",
        "Nothing by itself.",
        {
            "The policy improves.": "the loss is a device for its gradient: at each rollout it starts near 0 anew.",
            "The learning rate is too high.": "an average of whitened advantages times ratios near 1 moves about 0.",
            "The critic has converged.": "the critic has a loss of its own.",
        },
    ),
    Question(
        "07",
        "log pi(y) - log pi_ref(y) of one text that pi sampled is -3 nats.",
        "That can be; its expectation cannot be negative.",
        {
            "The sign is wrong somewhere.": "a single text may well be likelier under the reference.",
            "It must be clamped at 0.": "then its mean is no longer the KL.",
            "The policy has become better than the reference.": "a log-ratio says nothing of good and bad.",
        },
    ),
    Question(
        "07",
        "k3's mean over the policy's samples is KL(pi || ref). Added to the *loss* and differentiated at the samples, "
        "it pulls ...",
        "by the gradient of another divergence.",
        {
            "by the gradient of KL(pi || ref), since k3 is unbiased.": "the samples depend on the policy too, and automatic differentiation does not see that.",
            "not at all: its gradient is 0 on average.": "that is k1.",
            "by the same gradient as k1.": "k1's is 0 on average, k3's is not.",
        },
    ),
    Question(
        "07",
        "`kl_coef` is set to 0 and the reward is a learned model's.",
        "The score climbs on; the texts become alike.",
        {
            "PPO's clip keeps the policy near the reference anyway.": "the clip ties it to the last rollout's policy, which moves along.",
            "The score and what people like rise together, to the end.": "maximised is the model's opinion, also where it is wrong.",
            "Entropy grows, since nothing holds the policy.": "the best answer to a fixed score is one text; entropy falls.",
        },
    ),
    Question(
        "08",
        "5 is added to every score of a reward model. Its Bradley-Terry loss ...",
        "stays as it is.",
        {
            "falls, since the chosen texts score higher.": "so do the rejected ones.",
            "rises, since the scores are too far from zero.": "zero means nothing to it.",
            "depends on the prompts.": "both texts of a pair get the same 5, whatever the prompt.",
        },
    ),
    Question(
        "09",
        "The critic's number in a token's column is ...",
        "the value of the text before that token.",
        {
            "Q, the value of choosing that token.": "Q would have to know the token; it is reward plus the next column's V.",
            "the reward model's score of the text so far.": "it may begin as a copy of that model, but it predicts what the finished text will get.",
            "the advantage of that token.": "that is made of two neighbouring values and a reward.",
        },
    ),
    Question(
        "09",
        "Which is the best evidence that PPO made the policy better?",
        "A judge that no training saw, on held-out prompts, paired, with KL and variety beside it, and samples that were read.",
        {
            "A higher score of the reward model on held-out prompts, with its interval.": "that is what it was paid for: it rises also when the samples get worse.",
            "A lower loss on held-out prompts.": "PPO's loss measures no quality.",
            "A lower KL to the reference.": "the reference itself has the lowest.",
        },
    ),
)


class Questions:
    """The test as a notebook shows it."""

    def _repr_markdown_(self) -> str:
        blocks = []
        for number, question in enumerate(QUESTIONS, 1):
            options = "".join(
                f"\n   - **{letter}** {option}"
                for letter, option in question.options(number).items()
            )
            blocks.append(f"{number}. {question.text}{options}")
        return "\n".join(blocks)

    __repr__ = _repr_markdown_


def graded(answers: str, *, explain: bool = False) -> str:
    """How many of the twelve are right, and the lesson of each that is not; with `explain` also why not.

    Args:
        answers: twelve of a, b, c, d, or - for what you do not know; blanks are ignored.
    """
    given = "".join(answers.split()).lower()
    if len(given) != len(QUESTIONS) or set(given) - set("abcd-"):
        raise ValueError(
            f"The answers are '{answers}'; they must be {len(QUESTIONS)} of the letters a, b, c, d, or - for 'I do not know'."
        )
    lines = []
    for number, (letter, question) in enumerate(zip(given, QUESTIONS, strict=True), 1):
        chosen = question.options(number).get(letter)
        if chosen != question.right:
            why = f": {question.wrong.get(chosen, 'you gave no answer')}" if explain else ""
            lines.append(f"  {number}, lesson {question.lesson}{why}")
    right = len(QUESTIONS) - len(lines)
    return f"{right} of {len(QUESTIONS)}." + ("" if not lines else " Not yet:\n" + "\n".join(lines))
