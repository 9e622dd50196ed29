import math

import pytest
import torch

from minirlhf import evaluate
from minirlhf.core.best_of_n import best_of_n_kl
from minirlhf.evaluate import Samples
from minirlhf.models.forward import decode, encode
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.bag_of_words import lexicon_judge, ridge_judge
from minirlhf.rewards.model import prefix_scores, rollout_judge, rollout_score, text_judge
from minirlhf.search.selection import best_index, best_of_n
from minirlhf.tasks.reviews import load_reviews
from tests.tiny import tiny_policy, tiny_tokenizer


def test_best_of_n_by_hand():
    # two prompts, three samples each
    assert best_index(torch.tensor([1.0, 5.0, 2.0, 7.0, 0.0, 7.0]), 3).tolist() == [1, 3]
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(0.636, abs=1e-3) and best_of_n_kl(16) == pytest.approx(
        1.835, abs=1e-3
    )


def test_best_of_n_picks_the_sample_with_the_highest_score():
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    few = lambda r: -((r.response_ids < 129) & r.response_mask).float().sum(1)
    settings = {"config": SamplingConfig(max_new_tokens=8), "seed": 3}
    rollouts = sample_text(model, tokenizer, ["p"] * 8 + ["q"] * 8, **settings)
    scores = torch.cat([few(r) for r in rollouts])
    texts = [t for r in rollouts for t in decode(tokenizer, r)]
    kept = best_of_n(model, tokenizer, ["p", "q"], few, 8, **settings)
    assert (
        kept == [texts[:8][scores[:8].argmax()], texts[8:][scores[8:].argmax()]]
        and scores.std() > 0
    )


def test_distinct_n_and_most_common_opening_by_hand():
    # bigrams: (a b) (b c) | (a b) (b d): 3 distinct of 4
    assert evaluate.distinct_n(["a b c", "a b d"], 2) == 0.75
    assert evaluate.distinct_n([""], 2) == 0.0
    assert (
        evaluate.distinct_n(["a b c a b c a b"], 2, budget=3)
        == 1
        > evaluate.distinct_n(["a b c a b c a b"], 2)
    )
    assert evaluate.most_common_opening(["The film is a hit", "the film, is a miss", "no"]) == (
        "the film is a",
        2 / 3,
    )


def test_bootstrap_intervals_have_their_nominal_coverage():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(200):
        low, high = evaluate.bootstrap(torch.randn(60, generator=generator), draws=400, seed=seed)
        covered += low <= 0 <= high
    assert 0.89 < covered / 200 <= 0.99  # 95 % nominal; 200 draws have a standard error of 1.5 %


def test_paired_difference_and_win_rate_by_hand():
    prompt = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 10
    a, b = (prompt + 0.5).tolist(), prompt.tolist()
    mean, low, high = evaluate.paired_difference(a, b)
    assert mean == pytest.approx(0.5, abs=1e-5) and high - low < 1e-4
    assert (
        evaluate.win_rate(a, b) == 1
        and evaluate.win_rate(b, a) == 0
        and evaluate.win_rate(a, a) == 0.5
    )


def test_summary_averages_by_prompt():
    samples = Samples(
        ["p", "p", "q", "q"],
        ["1", "3", "5", "7"],
        torch.tensor([0.0, 1.0, 2.0, 3.0]),
        torch.tensor([1, 1, 2, 2]),
        torch.tensor([True, True, True, False]),
        0.5,
    )
    row = evaluate.summary(
        samples, {"gold": lambda prompts, texts: torch.tensor([float(t) for t in texts])}
    )
    assert (
        row["gold"] == 4
        and row["gold_by_prompt"] == [2.0, 6.0]
        and row["gold_low"] <= 4 <= row["gold_high"]
    )
    assert row["kl"] == 1.5 and row["missing_eos"] == 0.25 and row["length"] == 1.5
    picked = samples.select(torch.tensor([1, 2]), kl=0.1)
    assert picked.texts == ["3", "5"] and picked.prompts == ["p", "q"]


def test_the_kl_of_a_policy_to_itself_is_zero():
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    config = SamplingConfig(max_new_tokens=5)
    samples = evaluate.draw(
        model, tokenizer, ["a", "b"], samples_per_prompt=3, reference=model, config=config
    )
    assert samples.prompts == ["a"] * 3 + ["b"] * 3 and samples.kl.abs().max() < 1e-4
    other = evaluate.draw(
        tiny_policy(1), tokenizer, ["a"], samples_per_prompt=64, reference=model, config=config
    )
    assert other.kl.mean() > 0 and 0 < other.entropy <= math.log(257)


def test_bag_of_words_judges_prefer_a_good_review():
    good, bad = "A brilliant, moving and funny film.", "A boring, dull and pointless mess."
    for judge in (ridge_judge(), lexicon_judge()):
        a, b = judge(["t\n"] * 2, [good, bad])
        assert a > 0 > b
    a, b = lexicon_judge()(["t\n"] * 2, ["It is good.", "It is not good."])
    assert a > 0 > b
    held = [r for r in load_reviews() if r.split == "val" and r.ratings]
    predicted = ridge_judge()([r.prompt for r in held], [r.text for r in held])
    r = torch.corrcoef(torch.stack([predicted, torch.tensor([r.mean for r in held])]))[0, 1]
    assert r > 0.6  # 0.64 on the 25 validation films


def test_text_rollout_and_prefix_scores_agree():
    tokenizer, model = tiny_tokenizer(), ScalarModel(tiny_policy().base_model).eval()
    prompts, texts = ["a\n", "bb\n"], ["good", "worse yet"]
    batch = encode(tokenizer, prompts, texts)
    direct = rollout_score(model, 0)(batch)
    cut = encode(
        tokenizer, prompts, texts, max_response=4
    )  # "good" loses its EOS, "worse yet" all but four letters
    assert not cut.finished(0).any()
    torch.testing.assert_close(
        rollout_score(model, 0)(cut)[0], direct[0], rtol=0, atol=1e-5
    )  # a truncated response is still scored at EOS
    torch.testing.assert_close(
        text_judge([model], tokenizer)(prompts, texts), direct, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        rollout_judge(text_judge([model, model], tokenizer), tokenizer)(batch),
        direct,
        rtol=0,
        atol=1e-5,
    )
    tokens, with_eos, one_pass = prefix_scores(model, tokenizer, "a\n", "good")
    assert tokens == list("good") and len(with_eos) == len(one_pass) == 4
    torch.testing.assert_close(
        with_eos[-1], direct[0], rtol=0, atol=1e-5
    )  # the last prefix is the whole text
    alone = prefix_scores(model, tokenizer, "a\n", "go")
    torch.testing.assert_close(
        alone[2], one_pass[:2], rtol=0, atol=1e-5
    )  # scores of one pass do not depend on later tokens
    with pytest.raises(ValueError, match="empty"):
        prefix_scores(model, tokenizer, "a\n", "")
