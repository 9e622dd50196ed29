"""An exercise of lesson 14b: the lead at equal KL in one draw of seeds and films."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.classroom.lessons.lesson_14 import gold_above_curve

POINTS, SEEDS, FILMS = 4, 3, 6


def _draw_case(g):
    ends = 2.0 ** torch.arange(POINTS)  # KL of the points: far apart, so that their order stays
    curve_kl = ends[:, None] * (0.8 + 0.4 * torch.rand(POINTS, SEEDS, generator=g))
    rise = 0.5 * torch.arange(POINTS)[:, None, None]
    return (
        torch.randint(SEEDS, (SEEDS,), generator=g),
        torch.randint(FILMS, (FILMS,), generator=g),
        1.5 + 4 * torch.rand(SEEDS, generator=g),
        1 + torch.rand(SEEDS, FILMS, generator=g),
        curve_kl,
        rise + torch.rand(POINTS, SEEDS, FILMS, generator=g),
    )


def _lead(kl, gold, curve_kl, curve_gold, *, above=gold_above_curve.reference):
    """The lead of the means."""
    return above(kl.mean()[None], gold.mean()[None], curve_kl.mean(1), curve_gold.mean((1, 2)))[0]


def _draw(s, f, kl, gold, curve_kl, curve_gold):
    """The drawn seeds and films of everything."""
    return kl[s], gold[s][:, f], curve_kl[:, s], curve_gold[:, s][:, :, f]


def _lead_in_draw(*given):
    return _lead(*_draw(*given))


def _lead_of_each_seed(*given):
    kl, gold, curve_kl, curve_gold = _draw(*given)
    every = [
        _lead(kl[[i]], gold[[i]], curve_kl[:, [i]], curve_gold[:, [i]]) for i in range(len(kl))
    ]
    return torch.stack(every).mean()


def _mean_of_logs(*given):
    kl, gold, curve_kl, curve_gold = _draw(*given)
    kl, curve_kl = kl.log().mean(-1, keepdim=True).exp(), curve_kl.log().mean(1, keepdim=True).exp()
    return _lead(kl, gold, curve_kl, curve_gold)


def _log_of_run_first(*given):
    kl, gold, curve_kl, curve_gold = _draw(*given)
    return _lead(kl.log().mean(-1, keepdim=True).exp(), gold, curve_kl, curve_gold)


def _log_of_curve_first(*given):
    kl, gold, curve_kl, curve_gold = _draw(*given)
    return _lead(kl, gold, curve_kl.log().mean(1, keepdim=True).exp(), curve_gold)


def _lead_of_each_seed_to_mean_curve(*given):
    kl, gold, curve_kl, curve_gold = _draw(*given)
    every = [_lead(kl[[i]], gold[[i]], curve_kl, curve_gold) for i in range(len(kl))]
    return torch.stack(every).mean()


def _straight_in_kl(kl, gold, curve_kl, curve_gold):
    return gold_above_curve.reference(kl.exp(), gold, curve_kl.exp(), curve_gold)


lead_in_draw = Exercise(
    "lead_in_draw",
    ("seeds", "films", "kl", "gold", "curve_kl", "curve_gold"),
    _draw_case,
    _lead_in_draw,
    {
        "nothing is drawn: this is the lead over all seeds and films.": lambda s, f, k, g, x, y: (
            _lead(k, g, x, y)
        ),
        "the curve has all its seeds and films. Its points are luck, too: "
        "take the drawn seeds and films of each of them.": lambda s, f, k, g, x, y: _lead(
            k[s], g[s][:, f], x, y
        ),
        "the curve has the drawn films, but all its seeds. "
        "The drawn seeds serve the run and every point of the curve.": lambda s, f, k, g, x, y: (
            _lead(k[s], g[s][:, f], x, y[:, :, f])
        ),
        "the curve has the drawn seeds, but all its films. "
        "The drawn films serve the run and every point of the curve.": lambda s, f, k, g, x, y: (
            _lead(k[s], g[s][:, f], x[:, s], y[:, s])
        ),
        "the run has all its seeds and films; only the curve is drawn.": lambda s, f, k, g, x, y: (
            _lead(k, g, x[:, s], y[:, s][:, :, f])
        ),
        "the gold is drawn, the KL is not. A seed has a KL as well as a gold: "
        "take the KL of the drawn seeds, of run and curve.": lambda s, f, k, g, x, y: _lead(
            k, g[s][:, f], x, y[:, s][:, :, f]
        ),
        "the KL of the run is not drawn.": lambda s, f, k, g, x, y: _lead(
            k, g[s][:, f], x[:, s], y[:, s][:, :, f]
        ),
        "the KL of the curve is not drawn.": lambda s, f, k, g, x, y: _lead(
            k[s], g[s][:, f], x, y[:, s][:, :, f]
        ),
        "the films are not drawn. With other films the gold would be another, too.": (
            lambda s, f, k, g, x, y: _lead(k[s], g[s], x[:, s], y[:, s])
        ),
        "the seeds are not drawn. With other seeds KL and gold would be others, too.": (
            lambda s, f, k, g, x, y: _lead(k, g[:, f], x, y[:, :, f])
        ),
        "a seed or a film that is drawn twice counts once here. It must count twice.": (
            lambda s, f, *more: _lead_in_draw(s.unique(), f.unique(), *more)
        ),
        "you took the lead of each drawn seed, and then the mean of the leads. "
        "First take the means over seeds and films, then one lead.": _lead_of_each_seed,
        "you took the logarithm of the KL of each seed, and then the mean. "
        "First take the mean of the KL, then its logarithm.": _mean_of_logs,
        "for the run you took the logarithm of the KL of each seed, and then the mean. "
        "First take the mean of the KL, then its logarithm.": _log_of_run_first,
        "for the curve you took the logarithm of the KL of each seed, and then the mean. "
        "First take the mean of the KL, then its logarithm.": _log_of_curve_first,
        "you took the lead of each drawn seed over the mean curve, and then the mean of the leads. "
        "First take the means of the run, too, then one lead.": _lead_of_each_seed_to_mean_curve,
        "the lines are straight in the KL itself. They are straight in its logarithm: "
        "`gold_above_curve` of exercise 1 does it.": lambda *given: _lead(
            *_draw(*given), above=_straight_in_kl
        ),
        "the sign is wrong: a run above the curve has a positive lead.": lambda *given: (
            -_lead_in_draw(*given)
        ),
    },
    edges=(
        (
            torch.tensor([1, 1]),  # the second seed twice, the first film twice
            torch.tensor([0, 0]),
            torch.tensor([1.0, 2.0]),
            torch.tensor([[0.0, 1.0], [3.0, 2.0]]),
            torch.tensor([[1.0, 1.0], [2.0, 4.0]]),
            torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[1.0, 3.0], [2.0, 1.0]]]),
        ),
    ),
    sizes=(
        "gold[seeds, films] would pair the two: use gold[seeds][:, films]. "
        "In curve_kl and curve_gold the seeds are the second axis."
    ),
)
