import math

import pytest
import torch

from minirlhf import show
from minirlhf.core.exact import World


def hand_world():
    """The reference writes "a" with probability 3/4, everywhere."""
    logits = torch.tensor([3.0, 1.0], dtype=torch.float64).log().expand(2, 2)
    return World(("a", "."), 2, torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), logits)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_tree_has_every_tokens_probability_and_the_bars_every_sequences():
    # sequences aa, a. and . : 3/4 * 3/4, 3/4 * 1/4, 1/4
    figure = show.world(hand_world())
    figure.draw_without_rendering()
    tree, bars = figure.axes
    assert texts(tree).count("a  0.75") == 2 and texts(tree).count(".  0.25") == 2
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([9 / 16, 3 / 16, 1 / 4])
    assert [t.get_text() for t in bars.get_yticklabels()] == ["aa", "a.", "."]
    assert texts(bars) == ["+2.00", "-1.00", "+0.50", "r"]
    # the width of a branch grows with the probability of coming there
    widths = [line.get_linewidth() for line in tree.lines if len(line.get_xdata()) == 3]
    assert widths == pytest.approx([0.6 + 5 * p for p in (3 / 4, 1 / 4, 9 / 16, 3 / 16)])
    # the branches stand in the rows of their sequences
    ends = {(x[-1], y[-1]) for x, y in (line.get_data() for line in tree.lines) if len(x) == 3}
    assert {(2, 0), (2, 1), (1, 2)} <= ends


def test_a_policy_and_the_optimum_stand_beside_the_reference():
    world = hand_world()
    policy = torch.zeros(2, 2)
    figure = show.world(
        world, {"reference": world.ref_logits, "policy": policy}, beta=2.0, tree="policy"
    )
    figure.draw_without_rendering()
    tree, bars = figure.axes
    assert texts(tree).count("a  0.50") == 2
    found = [bar.get_width() for bar in bars.patches]
    expected = [world.probs(world.ref_logits), world.probs(policy.double()), world.gibbs(beta=2.0)]
    assert found == pytest.approx(torch.cat(expected).tolist(), abs=1e-6)
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["reference", "policy", "optimum, beta = 2"]


@pytest.mark.parametrize("size", [(3, 4), (6, 2)])
def test_texts_do_not_overlap(size):
    figure = show.world(World.random(*size), beta=1.0)
    figure.draw_without_rendering()
    tree, bars = figure.axes
    boxes = [t.get_window_extent() for t in (*tree.texts, *bars.get_yticklabels())]
    for i, a in enumerate(boxes):
        assert not any(a.overlaps(b) for b in boxes[:i])


@pytest.mark.parametrize(
    "world, settings, sentence",
    [
        (World.random(5, 4), {}, "has 341 sequences; at most 40"),
        (hand_world(), {"policies": {"p": torch.zeros(3, 2)}}, "shape \\(3, 2\\); this world has"),
        (hand_world(), {"policies": {"p": torch.full((2, 2), math.nan)}}, "logits of 'p'"),
        (hand_world(), {"tree": "PPO"}, "no policy 'PPO'; there are 'reference'"),
        (hand_world(), {"beta": 0.0}, "beta is 0.0"),
    ],
)
def test_bad_input_to_world(world, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.world(world, **settings)


def test_policy_bars_are_the_probabilities():
    world = World.random(3, 2)
    probs = world.probs(world.ref_logits)
    figure = show.policy_bars(world.labels, {"reference": probs}, rewards=world.rewards)
    figure.draw_without_rendering()
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(probs.tolist())
    assert texts(figure.axes[0])[-1] == "r"
    with pytest.raises(ValueError, match="'p' has 2 numbers for 7 sequences"):
        show.policy_bars(world.labels, {"p": [0.5, 0.5]})
    with pytest.raises(ValueError, match="at least one policy"):
        show.policy_bars(world.labels, {})


def test_distances_below_the_smallest_number_stand_at_it():
    figure = show.distance_to_optimum({"PPO": [1.0, 0.1, 0.0]})
    figure.draw_without_rendering()
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 0.1, 1e-16]
    assert figure.axes[0].get_yscale() == "log"
