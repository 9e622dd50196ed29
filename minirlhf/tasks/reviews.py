"""Movie-review snippets with all human ratings: splits, preference pairs, pretraining text.

Ratings (Hutto and Gilbert 2014): at least 15 people rated how positive a snippet is, from -4 to 4.
**We** define "preferred" as "rated more positive", as Ziegler et al. 2019 did. Nobody compared two
snippets directly. The film's name comes from another corpus of the same reviews that keeps it. The
two are joined on the normalised text, and the snippet is spelled as in that corpus. The prompt is
the title and a newline. The response is the snippet and EOS.
"""

import csv
import functools
import hashlib
import html
import io
import json
import random
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from urllib.parse import unquote

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check
from minirlhf.tasks import sources

SPLITS = {
    "test": 0.15,
    "val": 0.05,
    "gold": 0.40,
    "reward": 0.40,
}  # shares of the rated films; never changed
SAME_FILM = {"the_crime_of_padre_amaro": "el_crimen_del_padre_amaro"}  # one film with two names
ARTICLES = frozenset("the a an el la le les los las il der die das".split())
GAP_BANDS = (
    (0.0, 0.5),
    (0.5, 1.0),
    (1.0, 2.0),
    (2.0, 3.5),
    (3.5, 8.0),
)  # rating gap (difference of the other raters' means, absolute), rating units


@dataclass(frozen=True)
class Review:
    """One snippet.

    `ratings` is empty if nobody rated it. `fresh` is the critic's own verdict, never used in
    training.
    """

    text: str
    movie: str
    split: str  # test, val, gold, reward, or "unrated" for films without ratings
    ratings: tuple[int, ...]
    fresh: bool = False

    @functools.cached_property
    def mean(self) -> float:
        """The mean rating, -4 to 4."""
        return sum(self.ratings) / len(self.ratings)

    @property
    def prompt(self) -> str:
        """The prompt of the snippet's film."""
        return prompt_of(self.movie)


def prompt_of(movie: str) -> str:
    """The prompt of a film: its name with spaces and decoded escapes (%e9), and a newline."""
    return unquote(movie, encoding="latin-1").replace("_", " ") + "\n"


def normalise(text: str) -> str:
    """The letters and digits of a text, in lower case and without accents.

    Two copies of a snippet are matched by this key.
    """
    decomposed = unicodedata.normalize("NFKD", text).lower()
    return "".join(c for c in decomposed if c.isascii() and c.isalnum())


def rated_snippets(name: str = "movieReviewSnippets") -> list[tuple[str, str, tuple[int, ...]]]:
    """(row id, text, ratings) of one of Hutto and Gilbert's sets.

    The rows are sorted by polarity in the source.
    """
    ratings = {}
    for line in sources.read_hutto(f"{name}_anonDataRatings.txt").splitlines():
        key, _, _, values = line.split("\t")
        ratings[key] = tuple(json.loads(values))
    rows = [
        line.split("\t", 2) for line in sources.read_hutto(f"{name}_GroundTruth.txt").splitlines()
    ]
    return [(key, text.strip(), ratings[key]) for key, _, text in rows]


@functools.lru_cache(maxsize=1)
def load_reviews() -> tuple[Review, ...]:
    """Every review snippet with a film's name and its split, rated or not.

    There are about 12,750 snippets; 10,448 of them are rated.
    """
    corpus = [r for r in _corpus() if r["category"] != "plot"]
    films: dict[str, set[str]] = defaultdict(set)
    first: dict[str, dict] = {}
    for row in corpus:
        key = normalise(row["text"])
        films[key].add(row["movie"])
        first.setdefault(key, row)
    ratings: dict[str, tuple[int, ...]] = {}
    for _, text, values in rated_snippets():
        # dropped if it appears with several films
        if len(films.get(normalise(text), ())) == 1:
            ratings.setdefault(normalise(text), values)
    split = split_films({first[key]["movie"] for key in ratings})
    return tuple(
        Review(
            row["text"],
            row["movie"],
            split.get(row["movie"], "unrated"),
            ratings.get(key, ()),
            row["category"] == "fresh",
        )
        for key, row in first.items()
        if len(films[key]) == 1
    )


def split_films(movies: set[str]) -> dict[str, str]:
    """Assign rated films to splits, in the order of the SHA-256 of their names.

    The result is the same on every machine.
    """
    order = sorted(movies, key=lambda movie: hashlib.sha256(movie.encode()).hexdigest())
    result: dict[str, str] = {}
    start, share = 0, 0.0
    for split, part in SPLITS.items():
        share += part
        end = round(share * len(order))
        result |= dict.fromkeys(order[start:end], split)
        start = end
    return result


def pretraining_texts() -> list[str]:
    """Text for pretraining, without titles and ratings.

    It holds all reviews and plots except those of val and test films, and the texts of the other
    rated sources. Rated film snippets that could not be matched with a film are left out too,
    because they may belong to a val or test film.
    """
    held_out = {r.movie for r in load_reviews() if r.split in ("val", "test")}
    rows = _corpus()
    banned = {normalise(r["text"]) for r in rows if r["movie"] in held_out}
    texts = [r["text"] for r in rows]
    for name in ("amazonReviewSnippets", "nytEditorialSnippets", "tweets"):
        texts += [
            clean_tweet(text) if name == "tweets" else text for _, text, _ in rated_snippets(name)
        ]
    unique = {normalise(text): text for text in texts}
    return [text for key, text in unique.items() if key and key not in banned]


def clean_tweet(text: str) -> str:
    """A tweet with HTML entities decoded, and without handles and links."""
    text = re.sub(r"@\w+|https?://\S+", "", html.unescape(text))
    return re.sub(r"\s+", " ", text).strip()


def pairs_within_films(
    split: str, min_gap: float = 0.0, max_gap: float = 8.0
) -> list[tuple[Review, Review]]:
    """All pairs of rated snippets of one film with a mean difference in [min_gap, max_gap).

    The difference is that of the two mean ratings, absolute, in rating units.
    """
    check("split", split, split in SPLITS, f"one of {', '.join(SPLITS)}")
    return [pair for pair, gap in _pairs_and_gaps(split) if min_gap <= gap < max_gap]


@functools.cache
def _pairs_and_gaps(split: str) -> tuple[tuple[tuple[Review, Review], float], ...]:
    """All pairs of rated snippets of one film of a split, and their gaps."""
    films = defaultdict(list)
    for review in load_reviews():
        if review.split == split and review.ratings:
            films[review.movie].append(review)
    return tuple(
        ((a, b), abs(a.mean - b.mean))
        for group in films.values()
        for i, a in enumerate(group)
        for b in group[i + 1 :]
    )


def preference_pairs(
    split: str,
    n: int,
    *,
    seed: int,
    min_gap: float = 0.0,
    max_gap: float = 8.0,
    max_tokens: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Dataset:
    """Draw n preference pairs of snippets of the same film.

    The label of a pair comes from ONE random rating of each snippet: what a single person would
    have said. If the two ratings are equal, the pair is dropped. The share of such ties is in
    `dataset.info.description`.

    The rows have TRL's preference format with a prompt. For evaluation only there are three more
    columns. chosen_mean and rejected_mean are the mean ratings. `gap` is the absolute difference of
    the means of the *other* raters, in rating units. Results are grouped by `gap`, because a mean
    that contains the label's own rating already knows part of the label.

    Args:
        split: whose films.
        n: number of pairs.
        seed: of the draw.
        min_gap, max_gap: band of the absolute difference of the mean ratings, half open.
        max_tokens: leave out snippets with more tokens than this, EOS included; needs `tokenizer`.

    Raises:
        ValueError: the split is unknown, n is below 1, or no pair fits.
    """
    check("n", n, n >= 1, "at least 1 pair")
    rng = random.Random(seed)
    candidates = pairs_within_films(split, min_gap, max_gap)
    if max_tokens is not None:
        if tokenizer is None:
            raise ValueError("max_tokens needs a tokenizer, to count the tokens; give one.")
        # a snippet is in many pairs; tokenise it once
        texts = list(dict.fromkeys(r.text for pair in candidates for r in pair))
        short = {
            text
            for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True)
            if len(ids) < max_tokens
        }
        candidates = [(a, b) for a, b in candidates if a.text in short and b.text in short]
    if not candidates:
        limit = "" if max_tokens is None else f" and fewer than {max_tokens} tokens"
        raise ValueError(
            f"No pairs within a film in split '{split}' with a gap in [{min_gap}, "
            f"{max_gap}){limit}; widen the gap band or the token limit."
        )
    rows: list[dict] = []
    ties = 0
    while len(rows) < n:
        a, b = rng.choice(candidates)
        said_a, said_b = rng.choice(a.ratings), rng.choice(b.ratings)
        if said_a == said_b:
            ties += 1
            continue
        chosen, rejected = (a, b) if said_a > said_b else (b, a)
        others = (
            (sum(r.ratings) - said) / (len(r.ratings) - 1) for r, said in ((a, said_a), (b, said_b))
        )
        rows.append(
            {
                "prompt": a.prompt,
                "chosen": chosen.text,
                "rejected": rejected.text,
                "chosen_mean": chosen.mean,
                "rejected_mean": rejected.mean,
                "gap": abs(next(others) - next(others)),
            }
        )
    dataset = Dataset.from_list(rows)
    dataset.info.description = (
        f"{n} pairs drawn from {len(candidates)} within films; {ties / (n + ties):.3f} ties dropped"
    )
    return dataset


@functools.lru_cache(maxsize=1)
def _corpus() -> list[dict]:
    """Rows of the corpus with film names: category, movie and trimmed text.

    Rows without text are left out. Plots are filed as `ring_the`, reviews as `the_ring`. Names that
    differ only in articles and underscores are one film, spelled as its reviews spell it.
    """
    rows = [
        r for r in csv.DictReader(io.StringIO(sources.read_rotten_tomatoes())) if r["text"].strip()
    ]
    spelled: dict[str, str] = {}
    for row in sorted(rows, key=lambda r: r["category"] == "plot"):
        spelled.setdefault(
            film_key(row["movie_name"]),
            article_first(SAME_FILM.get(row["movie_name"], row["movie_name"])),
        )
    return [
        {
            "category": r["category"],
            "movie": spelled[film_key(r["movie_name"])],
            "text": r["text"].strip(),
        }
        for r in rows
    ]


def film_key(name: str) -> str:
    """The letters of a film's name without articles: equal for all spellings of one film."""
    return "".join(word for word in name.split("_") if word not in ARTICLES) or name


def article_first(name: str) -> str:
    """A name with its trailing article moved to the front: `ring_the` -> `the_ring`."""
    *rest, last = name.split("_")
    return "_".join([last, *rest]) if rest and last in ARTICLES else name


def sft_dataset(
    tokenizer: PreTrainedTokenizerBase, *, split: str = "reward", max_tokens: int = 32
) -> Dataset:
    """Rows for SFT: prompt and completion of every snippet of a split, rated or not.

    Args:
        max_tokens: longest snippet in tokens, EOS included.
    """
    reviews = [r for r in load_reviews() if r.split == split]
    lengths = map(len, tokenizer([r.text for r in reviews]).input_ids)
    return Dataset.from_list(
        [
            {"prompt": r.prompt, "completion": r.text}
            for r, n in zip(reviews, lengths, strict=True)
            if n < max_tokens
        ]
    )


def rl_prompts() -> list[str]:
    """Prompts for RL: titles of the reward films and the unrated films, in alphabetical order."""
    split = {r.movie: r.split for r in load_reviews()}
    movies = {row["movie"] for row in _corpus()}
    return [
        prompt_of(m) for m in sorted(movies) if split.get(m, "unrated") in ("reward", "unrated")
    ]


def eval_prompts(split: str) -> list[str]:
    """Prompts for evaluation: the titles of one split's films, in alphabetical order.

    Use `val` to choose settings and `test` to report results.
    """
    check("split", split, split in SPLITS, f"one of {', '.join(SPLITS)}")
    return [prompt_of(m) for m in sorted({r.movie for r in load_reviews() if r.split == split})]
