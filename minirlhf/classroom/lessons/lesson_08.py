"""Exercises of lesson 08: the Bradley-Terry loss, a choice among K, scores in units of the SFT
samples, accuracy and calibration, and a score read at the wrong position."""

import torch
from torch.nn.functional import logsigmoid

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.bradley_terry import last_token_scores


def _pair_case(g):
    chosen, rejected = 2 * torch.randn(2, 5, generator=g)
    chosen[0], rejected[0] = -100.0, 100.0  # far apart, in the wrong order
    return chosen, rejected


def _loss(chosen, rejected):
    return -logsigmoid(chosen - rejected).mean()


bradley_terry_loss = Exercise(
    "bradley_terry_loss",
    ("chosen_scores", "rejected_scores"),
    _pair_case,
    _loss,
    {
        "log(sigmoid(x)) is minus infinity at x = -200. Use logsigmoid.": lambda c, r: (
            -torch.sigmoid(c - r).log().mean()
        ),
        "chosen and rejected are exchanged: this "
        "makes the rejected responses score higher.": lambda c, r: _loss(r, c),
        "the sign is wrong. A loss is minus the log-probability.": lambda c, r: -_loss(c, r),
        "this is the sum over pairs. Take the mean, because with a sum "
        "the step grows with the batch.": lambda c, r: _loss(c, r) * len(c),
        "this is a hinge loss, not minus the log-probability of a choice.": lambda c, r: torch.relu(
            1 - (c - r)
        ).mean(),
        "this is the probability of the wrong choice. The loss is minus the "
        "log-probability of the right choice.": lambda c, r: torch.sigmoid(r - c).mean(),
        "this is minus the probability of the choice. The logarithm is missing.": lambda c, r: (
            -torch.sigmoid(c - r).mean()
        ),
        "this is minus the difference of the scores. It has no sigmoid and no logarithm, "
        "so it can be made as small as you like.": lambda c, r: (r - c).mean(),
        "a small number inside the logarithm limits the loss and takes the gradient from "
        "pairs that are far apart. Use logsigmoid instead.": lambda c, r: (
            -(torch.sigmoid(c - r) + 1e-8).log().mean()
        ),
        "this applies the sigmoid to each score alone. "
        "Only the difference of the two scores counts.": lambda c, r: (
            logsigmoid(r) - logsigmoid(c)
        ).mean(),
    },
    differentiate=("chosen_scores", "rejected_scores"),
)


def _best_case(g):
    scores, chosen = 2 * torch.randn(4, 3, generator=g), torch.randint(3, (4,), generator=g)
    scores[:2] = torch.tensor([200.0, 1.0, -200.0])  # far apart: exp overflows
    chosen[:2] = torch.tensor([0, 1])
    return scores, chosen


def _best(scores, chosen):
    return -scores.log_softmax(1).gather(1, chosen[:, None]).mean()


def _others(scores, chosen):
    return torch.ones_like(scores, dtype=torch.bool).scatter(1, chosen[:, None], False)


def _against_each(scores, chosen):
    won = scores.gather(1, chosen[:, None])
    return -torch.where(_others(scores, chosen), logsigmoid(won - scores), 0.0).sum(1).mean()


def _against_the_mean(scores, chosen):
    others = torch.where(_others(scores, chosen), scores, 0.0).sum(1) / (scores.shape[1] - 1)
    return -logsigmoid(scores.gather(1, chosen[:, None])[:, 0] - others).mean()


def _against_the_best(scores, chosen):
    others = scores.masked_fill(~_others(scores, chosen), -torch.inf).amax(1)
    return -logsigmoid(scores.gather(1, chosen[:, None])[:, 0] - others).mean()


def _exp_and_divide(scores, chosen):
    strength = scores.exp()
    return -(strength.gather(1, chosen[:, None])[:, 0] / strength.sum(1)).log().mean()


def _without_the_chosen(scores, chosen):
    others = scores.masked_fill(~_others(scores, chosen), -torch.inf).logsumexp(1)
    return (others - scores.gather(1, chosen[:, None])[:, 0]).mean()


best_of_k_loss = Exercise(
    "best_of_k_loss",
    ("scores", "chosen"),
    _best_case,
    _best,
    {
        "this counts one choice as K - 1 independent comparisons. "
        "Choosing the best of K is one event: use a softmax.": _against_each,
        "this is the mean over K - 1 comparisons of two. "
        "Choosing the best of K is one event: use a softmax.": lambda s, c: (
            _against_each(s, c) / (s.shape[1] - 1)
        ),
        "this is a mean over K comparisons of two, and in one of them the chosen response meets "
        "itself. Choosing the best of K is one event: use a softmax.": lambda s, c: (
            -logsigmoid(s.gather(1, c[:, None]) - s).mean()
        ),
        "this is a sum over K comparisons of two, and in one of them the chosen response meets "
        "itself. Choosing the best of K is one event: use a softmax.": lambda s, c: (
            -logsigmoid(s.gather(1, c[:, None]) - s).sum(1).mean()
        ),
        "this compares the chosen response with the mean score of the others. "
        "Put all K strengths into the denominator.": _against_the_mean,
        "this compares the chosen response with the best of the others only. "
        "Put all K strengths into the denominator.": _against_the_best,
        "the denominator leaves out the chosen response. "
        "It is the sum of all K strengths.": _without_the_chosen,
        "exp(200) is infinite, and infinity / infinity is NaN. "
        "Subtract logarithms instead: log_softmax or logsumexp.": _exp_and_divide,
        "softmax gives 0 where scores are far apart, and log(0) is minus infinity. "
        "Use log_softmax.": lambda s, c: -s.softmax(1).gather(1, c[:, None]).log().mean(),
        "this is the sum over the batch. Take the mean.": lambda s, c: _best(s, c) * len(s),
        "this is minus the score of the chosen response. The other responses are missing: "
        "use a softmax over all K.": lambda s, c: -s.gather(1, c[:, None]).mean(),
        "the softmax runs over the batch. "
        "The responses that were compared are on the last axis.": lambda s, c: (
            -s.log_softmax(0).gather(1, c[:, None]).mean()
        ),
        "the sign is wrong. A loss is minus the log-probability.": lambda s, c: -_best(s, c),
        "this is a probability, not its logarithm.": lambda s, c: (
            -s.softmax(1).gather(1, c[:, None]).mean()
        ),
        "this is the loss of the response that the *model* scores highest. "
        "Use the response that people chose.": lambda s, c: -s.log_softmax(1).amax(1).mean(),
    },
    differentiate=("scores",),
)

in_sft_units = Exercise(
    "in_sft_units",
    ("scores", "sft_scores"),
    lambda g: (torch.randn(4, generator=g), 2 + 3 * torch.randn(6, generator=g)),
    lambda s, b: (s - b.mean()) / b.std(),
    {
        "the mean and standard deviation are those of the scores themselves. "
        "Then every policy has mean 0. "
        "Take both from the SFT samples.": lambda s, b: (s - s.mean()) / s.std(),
        "the unit is missing. Divide by the standard deviation of the SFT samples.": lambda s, b: (
            s - b.mean()
        ),
        "the mean of the SFT samples is not subtracted.": lambda s, b: s / b.std(),
        "you divided before you subtracted the mean. Subtract first.": lambda s, b: (
            s / b.std() - b.mean()
        ),
        "this divides by the variance. Divide by the standard deviation.": lambda s, b: (
            (s - b.mean()) / b.var()
        ),
        "this divides the squares by M. The standard deviation here divides by M - 1, "
        "as torch.std does.": lambda s, b: (s - b.mean()) / b.std(correction=0),
        "the mean is that of the SFT samples, but the standard deviation is that of the scores. "
        "Take both from the SFT samples.": lambda s, b: (s - b.mean()) / s.std(),
        "the standard deviation is that of the SFT samples, but the mean is that of the scores. "
        "Take both from the SFT samples.": lambda s, b: (s - s.mean()) / b.std(),
        "this mixes scores and SFT samples. Take mean and standard deviation from the SFT samples "
        "alone.": lambda s, b: (s - torch.cat([s, b]).mean()) / torch.cat([s, b]).std(),
        "this multiplies by the standard deviation. Divide by it.": lambda s, b: (
            (s - b.mean()) * b.std()
        ),
        "the sign is wrong: a response above the mean must get a positive score.": lambda s, b: (
            (b.mean() - s) / b.std()
        ),
    },
)


CANDIDATES = torch.tensor([0.1, 0.25, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 9.0])


def _calibration_case(g):
    differences = 3 * torch.randn(9, generator=g)
    labels = torch.rand(9, generator=g) < torch.sigmoid(differences / 2)
    # wrong where it is surest, so that the smallest temperature is not the best
    surest = differences.abs().argmax()
    labels[surest] = differences[surest] < 0
    return differences, labels, CANDIDATES


def _towards_label(differences, labels):
    return torch.where(labels, differences, -differences)


def _mean_losses(margins, temperatures):
    return -logsigmoid(margins / temperatures[:, None]).mean(1)


def _answers(d, y, t, **instead):
    """The four numbers, some of them replaced."""
    margins = _towards_label(d, y)
    numbers = {
        "accuracy": (margins > 0).float().mean(),
        "own": torch.sigmoid(d.abs()).mean(),
        "loss": -logsigmoid(margins).mean(),
        "best": t[_mean_losses(margins, t).argmin()],
    }
    return torch.stack([*(numbers | instead).values()])


def _equal_means(d, y, t):
    """The temperature at which the mean own probability is nearest to the accuracy."""
    accuracy = (_towards_label(d, y) > 0).float().mean()
    own = torch.sigmoid(d.abs() / t[:, None]).mean(1)
    return t[(own - accuracy).abs().argmin()]


calibrate = Exercise(
    "calibrate",
    ("differences", "labels", "temperatures"),
    _calibration_case,
    _answers,
    {
        "number 1 is the share of pairs in which the model prefers a. "
        "It is right where it prefers the same response as the label.": lambda d, y, t: _answers(
            d, y, t, accuracy=(d > 0).float().mean()
        ),
        "number 1 is the share of pairs in which the label prefers a. "
        "Compare the label with the model's choice.": lambda d, y, t: _answers(
            d, y, t, accuracy=y.float().mean()
        ),
        "number 1 is the share of pairs in which the model is wrong.": lambda d, y, t: _answers(
            d, y, t, accuracy=(_towards_label(d, y) < 0).float().mean()
        ),
        "number 2 is the mean probability of a. "
        "The model's own choice is a only where the difference is positive.": lambda d, y, t: (
            _answers(d, y, t, own=torch.sigmoid(d).mean())
        ),
        "number 2 is the mean probability of the person's choice. "
        "The model's own choice does not depend on the label.": lambda d, y, t: _answers(
            d, y, t, own=torch.sigmoid(_towards_label(d, y)).mean()
        ),
        "number 2 is the probability of the mean difference. Take the sigmoid of each difference "
        "first, and then the mean.": lambda d, y, t: _answers(
            d, y, t, own=torch.sigmoid(d.abs().mean())
        ),
        "the loss does not look at the labels. It is that of a person who always prefers a, in "
        "numbers 3 and 4.": lambda d, y, t: _answers(
            d, y, t, loss=-logsigmoid(d).mean(), best=t[_mean_losses(d, t).argmin()]
        ),
        "the loss is that of the model's own choices, so it is small where the model is sure, also "
        "where it is wrong. Use the person's choice, in numbers 3 and 4.": lambda d, y, t: _answers(
            d, y, t, loss=-logsigmoid(d.abs()).mean(), best=t[_mean_losses(d.abs(), t).argmin()]
        ),
        "the labels are exchanged in the loss: "
        "it is that of the response that people did not prefer.": lambda d, y, t: _answers(
            d,
            y,
            t,
            loss=-logsigmoid(-_towards_label(d, y)).mean(),
            best=t[_mean_losses(-_towards_label(d, y), t).argmin()],
        ),
        "number 3 is the loss of the model's own choices, so it is small where the model is sure, "
        "also where it is wrong. Use the person's choice.": lambda d, y, t: _answers(
            d, y, t, loss=-logsigmoid(d.abs()).mean()
        ),
        "number 3 does not look at the labels. It is the loss of a person who always prefers a. "
        "Use the person's choice.": lambda d, y, t: _answers(d, y, t, loss=-logsigmoid(d).mean()),
        "number 3 is the sum over pairs. Take the mean.": lambda d, y, t: _answers(
            d, y, t, loss=-logsigmoid(_towards_label(d, y)).sum()
        ),
        "number 3 is the loss at the best temperature. "
        "It uses the differences as they are.": lambda d, y, t: _answers(
            d, y, t, loss=_mean_losses(_towards_label(d, y), t).min()
        ),
        "number 4 multiplies the differences by the temperature. Divide.": lambda d, y, t: _answers(
            d, y, t, best=t[_mean_losses(_towards_label(d, y), 1 / t).argmin()]
        ),
        "number 4 is the place of the best candidate in the list. "
        "Return the candidate.": lambda d, y, t: _answers(
            d, y, t, best=_mean_losses(_towards_label(d, y), t).argmin().float()
        ),
        "number 4 is a place in the list of candidates, and the differences are multiplied by the "
        "temperature. Divide, and return the candidate.": lambda d, y, t: _answers(
            d, y, t, best=_mean_losses(_towards_label(d, y), 1 / t).argmin().float()
        ),
        "number 4 is the smallest loss. Return the candidate that has this loss.": lambda d, y, t: (
            _answers(d, y, t, best=_mean_losses(_towards_label(d, y), t).min())
        ),
        "number 4 is the candidate with the largest loss.": lambda d, y, t: _answers(
            d, y, t, best=t[_mean_losses(_towards_label(d, y), t).argmax()]
        ),
        "number 4 looks for the loss of the model's own choices. There the smallest temperature "
        "always wins. Use the person's choice.": lambda d, y, t: _answers(
            d, y, t, best=t[_mean_losses(d.abs(), t).argmin()]
        ),
        "number 4 ignores the labels: it takes the loss of a person who always prefers "
        "a.": lambda d, y, t: _answers(d, y, t, best=t[_mean_losses(d, t).argmin()]),
        "number 4 makes the mean of the model's own probability equal to the accuracy. That is "
        "near, but the task is the candidate with the smallest mean loss.": lambda d, y, t: (
            _answers(d, y, t, best=_equal_means(d, y, t))
        ),
        "numbers 1, 3 and 4 do not look at the labels. Only number 2 needs the differences "
        "alone.": lambda d, y, t: _answers(d, torch.ones_like(y), t),
    },
    edges=((torch.tensor([2.0, 1.0, -1.0]), torch.tensor([True, True, False]), CANDIDATES),),
)


def _read_case(g):
    left, right = torch.randint(0, 3, (2, 3, 1), generator=g)
    left[0], right[0] = 1, 1
    places = torch.arange(6)
    return torch.randn(3, 6, generator=g), (places >= left) & (places < 6 - right)


def _last(mask):
    return torch.where(mask, torch.arange(mask.shape[1]), -1).argmax(1, keepdim=True)


read_score = Exercise(
    "read_score",
    ("token_scores", "attention_mask"),
    _read_case,
    last_token_scores,
    {
        "the bug is still there. On paper, take a row of two padding tokens and then three real "
        "ones. At which index does its last token stand, and which index is read?": lambda s, m: (
            s.gather(1, m.long().sum(1)[:, None].clamp(max=5))[:, 0]
        ),
        "the number of real tokens minus 1 is the right "
        "position only without padding on the left.": lambda s, m: s.gather(
            1, m.long().sum(1)[:, None] - 1
        )[:, 0],
        "this reads the last column, which is padding where the response is short.": lambda s, m: s[
            :, -1
        ],
        "this is the first real token. "
        "Read the score where the whole sequence has been read, at the last one.": lambda s, m: (
            s.gather(1, m.long().argmax(1, keepdim=True))[:, 0]
        ),
        "this is the token before the last one. "
        "The last real token (EOS) is read, too.": lambda s, m: s.gather(
            1, (_last(m) - 1).clamp(min=0)
        )[:, 0],
        "this is the sum over the sequence. "
        "The score is read at its last real token.": lambda s, m: torch.where(m, s, 0.0).sum(1),
        "this is the highest number of the sequence. "
        "The score is read at its last real token.": lambda s, m: s.masked_fill(
            ~m, -torch.inf
        ).amax(1),
        "this is the mean over the sequence. "
        "The score is read at its last real token.": lambda s, m: (
            torch.where(m, s, 0.0).sum(1) / m.sum(1)
        ),
    },
)
