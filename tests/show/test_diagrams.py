import math
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import matplotlib
import matplotlib.style
import pytest
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Line
from matplotlib.transforms import Bbox

from minirlhf import core, show
from minirlhf.core.rollout import Rollout

IMAGES = Path(__file__).parents[2] / "docs" / "images"
HOSTILE = "$x_1$ </text><script>alert(1)</script> \u202e\n\t\x1b[31m \\frac{1} $ \U0001f600 \u6f22"


def batch_of(rows=4, prompt=3, response=2, **changed):
    """A batch whose second row has one token; what stands at its padding is NaN.

    Of the tokens that count each column has an easy mean; see `COLUMNS`.
    """
    mask = torch.ones(rows, response, dtype=torch.bool)
    mask[1, 1:] = False

    def column(value):
        return torch.full((rows, response), value).where(mask, torch.tensor(torch.nan))

    columns = {
        "scores": torch.full((rows,), 0.75),
        "ref_logprobs": column(-2.5),
        "values": column(0.31),
        "rewards": column(0.11),
        "advantages": column(1.5),
        "returns": column(0.42),
    }
    columns["advantages"][0, 0] = -2.25
    return Rollout(
        torch.ones(rows, prompt, dtype=torch.long),
        torch.ones(rows, prompt, dtype=torch.bool),
        torch.ones(rows, response, dtype=torch.long),
        mask,
        torch.full((rows, response), -2.0).where(mask, torch.tensor(0.0)),
        columns={**columns, **changed},
    )


def without(batch, name):
    return replace(batch, columns={k: v for k, v in batch.columns.items() if k != name})


def group(scores=(0, 1, 1, 0), **given):
    return show.grpo_group("1+1=", [["=", "2"], ["~", "2", "EOS"], ["2"], ["3"]], scores, **given)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def boxes(figure) -> list[Bbox]:
    """The boxes of a figure in pixels; the line around a box is not counted."""
    kinds = (FancyBboxPatch, Rectangle)
    return [p.get_window_extent() for p in figure.axes[0].patches if isinstance(p, kinds)]


def faults_of_layout(figure) -> list[str]:
    """Texts that meet a text, an arrow or the edge of a box or figure; arrows that enter a box."""
    figure.draw_without_rendering()
    patches = figure.axes[0].patches
    written = {text: text.get_window_extent() for text in figure.axes[0].texts if text.get_text()}
    lines = [
        Line(piece)
        for p in patches
        if isinstance(p, FancyArrowPatch)
        for piece in p.get_path().transformed(p.get_transform()).to_polygons(closed_only=False)
    ]
    faults = [
        f"{a.get_text()!r} and {b.get_text()!r} overlap"
        for a, b in combinations(written, 2)
        if written[a].overlaps(written[b])
    ]
    edges = [*boxes(figure), figure.bbox]
    for text, place in written.items():
        for box in edges:
            if place.overlaps(box) and not inside(place, box):
                faults.append(f"{text.get_text()!r} crosses the edge of a box")
        faults += [f"an arrow crosses {text.get_text()!r}" for line in lines if meets(line, place)]
    filled = [
        p.get_window_extent().padded(-3)
        for p in patches
        if isinstance(p, FancyBboxPatch) and p.get_gid() != "area"
    ]
    faults += [f"an arrow enters {box}" for line in lines for box in filled if meets(line, box)]
    return faults


def inside(inner: Bbox, outer: Bbox) -> bool:
    return (
        outer.x0 <= inner.x0
        and inner.x1 <= outer.x1
        and outer.y0 <= inner.y0
        and inner.y1 <= outer.y1
    )


def meets(line, box: Bbox) -> bool:
    return line.intersects_bbox(box, filled=False)


ROW = {"clip_fraction": 0.03125, "value_loss": 0.16, "step": 3, "steps": 8}
LARGE = batch_of(1000, 1000, 1000)
LONG = [["a" * 100, "b"], ["c"] * 512, [HOSTILE], [" ", "", "\n"]]
DRAWN = {
    "pipeline": lambda: show.pipeline(),
    "pipeline with results": lambda: show.pipeline(
        {name: "gold score 1.34 KL 2.01 nats" for name in ("SFT", "PPO", "GRPO", "DPO")}
        | {"reward model": "accuracy 71 %"}
    ),
    "pipeline with hostile results": lambda: show.pipeline({"PPO": HOSTILE, "SFT": "w" * 300}),
    "four models": lambda: show.four_models(),
    "four models of a batch": lambda: show.four_models(batch_of()),
    "four models of a large batch": lambda: show.four_models(LARGE, kl_coef=1 / 3),
    "PPO step": lambda: show.ppo_step(),
    "PPO step of a batch": lambda: show.ppo_step(batch_of(), minibatch_size=2, row=ROW),
    "PPO step of a large batch": lambda: show.ppo_step(
        LARGE,
        minibatch_size=1000,
        epochs=20,
        row={"clip_fraction": 1.0, "value_loss": 1e12, "step": 99_998, "steps": 100_000},
    ),
    "PPO step of small minibatches": lambda: show.ppo_step(LARGE, minibatch_size=2),
    "group": group,
    "group without scale": lambda: group((0.5, -1e9, 1e-9, 0), scale_by_std=False),
    "group of equal scores": lambda: group((1, 1, 1, 1)),
    "group with a note": lambda: group(note="~ answers at once, without written steps"),
    "group of hostile note": lambda: group(note=HOSTILE * 9),
    "group of hostile text": lambda: show.grpo_group(HOSTILE * 20, LONG, [0.0, 0.1, 0.2, 0.3]),
    "large group": lambda: show.grpo_group("p", [["x"] * n for n in range(1, 65)], range(64)),
}


@cache
def drawn_once(name):
    return DRAWN[name]()


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_meets_another_text_an_arrow_or_an_edge(name):
    figure = drawn_once(name)
    assert not faults_of_layout(figure)
    assert min(text.get_fontsize() for text in figure.axes[0].texts) >= 9
    assert figure.get_figwidth() * figure.dpi == pytest.approx(902)


@pytest.mark.parametrize("name", ["pipeline", "four_models", "ppo_step", "grpo_group"])
def test_the_committed_images_are_there_and_small(name):
    for ending in ("svg", "png"):
        image = (IMAGES / f"{name}.{ending}").read_bytes()
        assert 10_000 < len(image) < 150_000
        assert image.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


@pytest.mark.parametrize("name", ["microscope", "microscope_group"])
def test_a_still_picture_of_the_microscope_is_there_and_small(name):
    image = (IMAGES / f"{name}.png").read_bytes()
    assert 10_000 < len(image) < 150_000 and image.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [n for n in DRAWN if "hostile" not in n])
def test_no_text_is_cut(name):
    assert not [text for text in texts(drawn_once(name)) if "\u2026" in text]


@pytest.mark.parametrize("name", DRAWN)
def test_a_diagram_is_saved_as_svg_and_png_on_opaque_white(name, tmp_path):
    figure = drawn_once(name)
    for ending in ("svg", "png"):
        figure.savefig(tmp_path / f"x.{ending}")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert svg.rstrip().endswith("</svg>") and "<script" not in svg
    assert figure.get_facecolor() == (1, 1, 1, 1)


def test_overlaps_are_found():
    figure = show.four_models()
    figure.axes[0].texts[3].set_position(figure.axes[0].texts[4].get_position())
    assert any("overlap" in fault for fault in faults_of_layout(figure))
    figure = show.pipeline()
    (text,) = [t for t in figure.axes[0].texts if t.get_text() == "prompts"]
    text.set_text("far too long for the box in which it stands")
    assert any("edge of a box" in fault for fault in faults_of_layout(figure))
    figure = show.pipeline()
    (word,) = [t for t in figure.axes[0].texts if t.get_text() == "pairs"]
    word.set_position((422, 344))
    assert any("an arrow crosses" in fault for fault in faults_of_layout(figure))


def test_without_a_batch_shapes_are_letters_and_there_are_no_numbers():
    drawn = texts(show.four_models())
    assert "one batch: sequences (B, T)" in drawn
    assert "(B, R) is B responses of at most R tokens" in drawn
    assert drawn.count("(B, R)") == 5 and drawn.count("(B,)") == 1
    assert not any("mean" in text for text in drawn + texts(show.ppo_step()))


def test_four_models_draws_shapes_and_means_of_the_batch():
    drawn = texts(show.four_models(batch_of()))
    assert "one batch: sequences (4, 5)" in drawn and "(4, 3)" in drawn  # T = 3 + 2
    assert "(4, 2) is 4 responses of at most 2 tokens" in drawn
    assert drawn.count("(4, 2)") == 5 and drawn.count("(4,)") == 1
    for column, mean in (
        ("old_logprobs", "mean -2.00 nats"),
        ("ref_logprobs", "mean -2.50 nats"),
        ("scores", "mean 0.75"),
        ("values", "mean 0.31"),  # NaN at the padding is not counted
    ):
        assert drawn[drawn.index(column) + 2] == mean
        assert drawn.count(column) == 2  # what a model gives stands at its arrow too


@pytest.mark.parametrize("kl_coef, factor", [(None, "KL coefficient"), (0.5, "0.5"), (0, "0")])
def test_four_models_draws_the_kl_coefficient(kl_coef, factor):
    drawn = texts(show.four_models(kl_coef=kl_coef))
    penalty = f"{factor} \u00d7 (old_logprobs - ref_logprobs)"
    assert f"each token: minus the KL penalty, {penalty}" in drawn


def test_means_are_over_the_tokens_that_the_policy_chose():
    batch = batch_of(values=torch.tensor([[1.0, 8.0]] * 4))
    mask = torch.tensor([[True, False]] * 4)  # the second token is a tool's
    drawn = texts(show.four_models(replace(batch, action_mask=mask)))
    assert "mean 1.00" in drawn


def test_two_models_are_trained_and_two_are_frozen():
    figure = show.four_models()
    drawn = texts(figure)
    state = {n: drawn[drawn.index(n) + 1] for n in ("Actor", "Reference", "Reward model", "Critic")}
    assert list(state.values()) == ["trained", "frozen", "frozen", "trained"]
    cards = [p for p in figure.axes[0].patches if p.get_gid() in ("trained", "frozen")][:4]
    assert [card.get_gid() for card in cards] == list(state.values())
    assert [card.get_linestyle() == "-" for card in cards] == [True, False, False, True]


def test_ppo_step_draws_the_numbers_of_the_batch():
    drawn = texts(show.ppo_step(batch_of(), minibatch_size=2, row=ROW))
    for text in (
        "old_logprobs (4, 2)",
        "responses:",
        "mean 1.8 tokens",  # 2 + 1 + 2 + 2 tokens in four responses
        "scores (4,)",
        "ref_logprobs (4, 2)",
        "values (4, 2)",
        "rewards (4, 2)",
        "KL 0.88 nats per response",  # -2 + 2.5 a token, times 1.75 tokens
        "-2.25 to 1.50",
        "mean 0.42",
        "4 updates of each network",  # two epochs of two minibatches
        "3.1 % of tokens clipped",
        "loss: \u00bd (value - target)\u00b2",
        "mean loss 0.16",
        "ratio: new / old probability",
        "This is step 4 of 8.",  # steps count from 0 in a history
    ):
        assert drawn.count(text) == 1, text
    assert drawn.count("2 rows") == 4


def arrows(figure, start, end) -> list:
    """The arrows from the box with the text `start` to the box with the text `end`, in pixels."""
    figure.draw_without_rendering()
    boxes_of = {
        text.get_text(): box
        for text in figure.axes[0].texts
        for box in boxes(figure)  # where boxes lie in each other, the inner one is drawn last
        if inside(text.get_window_extent(), box)
    }
    lines = [
        p.get_path().transformed(p.get_transform()).to_polygons(closed_only=False)[0]
        for p in figure.axes[0].patches
        if isinstance(p, FancyArrowPatch)
    ]
    return [
        line
        for line in lines
        if boxes_of[start].padded(3).contains(*line[0])
        and boxes_of[end].padded(9).contains(*line[-1])
    ]


def test_the_sample_gives_old_logprobs_to_the_rewards():
    figure = show.ppo_step()
    (line,) = arrows(figure, "1  Sample", "3  Rewards")
    (label,) = [t for t in figure.axes[0].texts if t.get_text() == "old_logprobs (B, R)"]
    assert 0 < label.get_window_extent().y0 - line[:, 1].max() < 10  # just above the arrow


def test_each_new_network_goes_back_to_its_own_box():
    figure = show.ppo_step()
    assert len(arrows(figure, "new actor", "1  Sample")) == 1
    assert len(arrows(figure, "new critic", "critic")) == 1
    assert not arrows(figure, "new critic", "1  Sample")
    assert not arrows(figure, "new actor", "critic")


def test_prompts_go_to_ppo_and_grpo_and_a_rule_only_to_grpo():
    figure = show.pipeline()
    for start, ends in (
        ("prompts", ["3  PPO", "GRPO"]),
        ("2  Reward model", ["3  PPO"]),  # from this arrow one branches off to GRPO
        ("or a rule, e.g.", ["GRPO"]),
        ("human judgements", ["2  Reward model", "DPO"]),
    ):
        for end in ("2  Reward model", "3  PPO", "GRPO", "DPO"):
            assert len(arrows(figure, start, end)) == (end in ends), (start, end)


def test_gold_score_and_kl_are_explained_where_they_stand():
    (gold,) = [t for t in texts(show.pipeline({"SFT": "gold score 0.38"})) if ":" in t[:12]]
    assert gold.startswith("gold score: the rating that people would give")
    (kl,) = [t for t in texts(show.pipeline({"PPO": "KL 2.0 nats"})) if ":" in t[:12]]
    assert kl == "KL: distance from the SFT policy, in nats per response."
    assert not [t for t in texts(show.pipeline({"PPO": "KLM"})) if ":" in t[:12]]


def test_many_minibatches_are_counted_and_not_all_drawn():
    drawn = texts(show.ppo_step(batch_of(64), minibatch_size=4, epochs=5))
    assert drawn.count("4 rows") == 3 * 4 and "in all 5 epochs of 16 minibatches" in drawn


def test_a_group_draws_scores_and_their_advantages():
    # mean 1/2, standard deviation sqrt(4/4 / 3) = 0.577: advantages -0.866 and +0.866
    drawn = texts(group())
    assert "the policy samples G = 4 responses" in drawn and "1+1=" in drawn
    assert "mean 0.50     standard deviation 0.58" in drawn
    assert "standard deviation\u00b2 = sum of (score - mean)\u00b2 / (G - 1)" in drawn
    assert "advantage = (score - mean) / standard deviation" in drawn
    rows = [text for text in drawn if text in ("0", "1", "-0.87", "+0.87")]
    assert rows == ["0", "-0.87", "1", "+0.87", "1", "+0.87", "0", "-0.87"]


def test_without_the_standard_deviation_an_advantage_is_score_minus_mean():
    drawn = texts(group((0.5, 1.5, 1.0, 1.0), scale_by_std=False))
    assert "advantage = score - mean" in drawn
    assert not [text for text in drawn if "standard deviation" in text]
    assert [t for t in drawn if t in ("-0.50", "+0.50", "0.00")] == [
        "-0.50",
        "+0.50",
        "0.00",
        "0.00",
    ]
    assert drawn.count("0.50") == 1 and drawn.count("1.00") == 2  # the scores


def test_all_tokens_of_a_response_have_one_colour():
    figure = group()
    cells = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    colours = [cell.get_facecolor() for cell in cells]
    # responses of 2, 3, 1 and 1 tokens, then the cells of the four advantages
    for tokens, advantage in zip(
        (colours[:2], colours[2:5], colours[5:6], colours[6:7]), colours[7:11], strict=True
    ):
        assert set(tokens) == {advantage}
    assert colours[0] == colours[6] != colours[2] == colours[5]
    dashed = [cell.get_linestyle() != "-" for cell in cells]  # for print in grey
    assert dashed[:7] == [True] * 2 + [False] * 4 + [True]


def test_equal_scores_have_white_tokens():
    figure = group((1, 1, 1, 1))
    cells = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert set(core.group_relative(torch.ones(1, 4))[0].tolist()) == {0}
    assert all(min(cell.get_facecolor()) > 0.99 for cell in cells[:-2])
    assert "All scores are 1." in texts(figure)


def test_tokens_and_responses_that_do_not_fit_are_counted():
    drawn = texts(show.grpo_group("p", [["x"] * 512] * 14, range(14)))
    (more,) = {text for text in drawn if "more" in text and "responses" not in text} - {
        "its tokens become more likely"
    }
    drawn_tokens = drawn.count("x") // 12
    assert more == f"and {512 - drawn_tokens} more" and drawn_tokens > 10
    assert "and 2 more responses" in drawn


@pytest.mark.parametrize("tokens, place", [(2, 440), (18, 469), (60, 650)])
def test_scores_stand_near_the_end_of_the_longest_response(tokens, place):
    figure = show.grpo_group("p", [["x"] * tokens, ["x"]], [0, 1], note="x is a letter")
    (score,) = [t for t in figure.axes[0].texts if t.get_text() == "score"]
    assert score.get_position()[0] == pytest.approx(place, abs=3)
    assert "x is a letter" in texts(figure)


def test_text_of_models_is_drawn_as_it_is_except_for_what_does_not_print():
    drawn = texts(show.grpo_group("cost: $3 and $4\n", [["$a$", "\x1b"], ["b\u202e"]], [0, 1]))
    assert "cost: $3 and $4\u23ce" in drawn and "$a$" in drawn
    assert not any("\x1b" in text or "\u202e" in text for text in drawn)
    figure = show.pipeline({"PPO": "$1$"})
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)


def test_results_stand_at_their_stage():
    drawn = texts(show.pipeline({"PPO": "gold score 1.34", "reward model": "accuracy 71 %"}))
    assert drawn[drawn.index("PPO policy") + 1] == "gold score 1.34"
    assert drawn[drawn.index("learns to score responses") + 1] == "accuracy 71 %"


def test_drawing_changes_neither_the_batch_nor_the_settings_of_matplotlib():
    before, batch = dict(matplotlib.rcParams), batch_of()
    kept = {name: column.clone() for name, column in batch.columns.items()}
    show.four_models(batch)
    show.ppo_step(batch, minibatch_size=4)
    assert dict(matplotlib.rcParams) == before
    for name, column in batch.columns.items():
        assert torch.equal(column.nan_to_num(), kept[name].nan_to_num())


def test_columns_with_a_gradient_or_few_bits_are_drawn():
    values = torch.full((4, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert "mean 0.50" in texts(show.four_models(batch_of(values=values)))


def test_the_readers_style_does_not_change_a_diagram():
    with matplotlib.style.context({"font.family": "serif", "font.size": 30}):
        figure = show.ppo_step(batch_of(), minibatch_size=4)
        assert not faults_of_layout(figure)


PAD = torch.tensor([[1.0, 1.0], [1.0, 1.0], [math.nan, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    "draw, sentence",
    [
        (lambda: show.pipeline({"ppo": "x"}), "no stage 'ppo'; the stages are 'SFT'"),
        (lambda: show.four_models(without(batch_of(), "values")), "no column 'values'; its"),
        (lambda: show.four_models(without(batch_of(), "scores")), r"with_columns\(scores="),
        (lambda: show.four_models({"scores": 1}), "batch is a dict; give a Rollout"),
        (lambda: show.four_models(kl_coef=-0.1), "kl_coef is -0.1; it must be 0 or more"),
        (
            lambda: show.four_models(batch_of(scores=torch.ones(4, 2))),
            r"'scores' has shape \(4, 2\); it must be \(4,\), B",
        ),
        (
            lambda: show.four_models(batch_of(values=torch.ones(4))),
            r"'values' has shape \(4,\); it must be \(4, 2\), BR",
        ),
        (lambda: show.four_models(batch_of(values=PAD)), "'values' has a value that is NaN"),
        (
            lambda: show.four_models(
                replace(batch_of(), action_mask=torch.zeros(4, 2, dtype=torch.bool))
            ),
            "no token that the policy chose",
        ),
        *(
            (lambda name=name: show.ppo_step(without(batch_of(), name), minibatch_size=4), name)
            for name in ("scores", "ref_logprobs", "values", "rewards", "advantages", "returns")
        ),
        (lambda: show.ppo_step(batch_of()), "is 32; it must be a divisor of the batch's 4 rows"),
        (lambda: show.ppo_step(epochs=0), "epochs is 0 and minibatch_size is 32; both"),
        (lambda: show.ppo_step(row={"clip_fraction": 0.1}), "row has no 'value_loss'"),
        (lambda: group((0, 1)), "4 responses and scores of shape"),
        (lambda: group((0, 1, 2, math.nan)), "scores has a value that is NaN"),
        (lambda: group(()), "scores has no values"),
        (lambda: group([[0, 1, 2, 3]]), "4 responses and scores of shape"),
        (lambda: show.grpo_group("p", [["a"]], [1]), "at least two responses"),
        (lambda: show.grpo_group("p", ["ab", ["c"]], [1, 2]), "Response 0 is 'ab'; give its"),
        (lambda: show.grpo_group("p", [["a"], []], [1, 2]), r"Response 1 is \[\]"),
    ],
)
def test_bad_input_is_refused(draw, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw()


def test_a_notebook_shows_a_diagram_by_itself():
    assert group()._repr_png_().startswith(b"\x89PNG")
