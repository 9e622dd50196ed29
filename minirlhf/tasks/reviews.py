"""Movie-review snippets with every single human rating: the join, the splits, the pairs, the pretraining text.

Ratings (Hutto and Gilbert 2014): 15 people or more said how positive a snippet is, -4..4. **We** define "preferred" as
"rated more positive", as Ziegler et al. 2019 did; nobody compared two snippets. The movie's name comes from joining the
snippets by normalised text with a corpus of the same reviews that keeps the name; its spelling is the one used.
Prompt = the title and a newline, response = the snippet and EOS.
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

from minirlhf.runtime import check
from minirlhf.tasks import sources

SPLITS = {
    "test": 0.15,
    "val": 0.05,
    "gold": 0.40,
    "reward": 0.40,
}  # shares of the rated films, fixed for ever
SAME_FILM = {"the_crime_of_padre_amaro": "el_crimen_del_padre_amaro"}  # one film under two names
ARTICLES = frozenset("the a an el la le les los las il der die das".split())
GAP_BANDS = (
    (0.0, 0.5),
    (0.5, 1.0),
    (1.0, 2.0),
    (2.0, 3.5),
    (3.5, 8.0),
)  # |difference of the other raters' means|, rating units


@dataclass(frozen=True)
class Review:
    """One snippet. `ratings` is empty where nobody rated it; `fresh` is the critic's own verdict, never trained on."""

    text: str
    movie: str
    split: str  # test, val, gold, reward, or "unrated" for films without ratings
    ratings: tuple[int, ...]
    fresh: bool

    @property
    def mean(self) -> float:
        return sum(self.ratings) / len(self.ratings)

    @property
    def prompt(self) -> str:
        return prompt_of(self.movie)


def prompt_of(movie: str) -> str:
    """The prompt of a film: its slug with spaces, escapes like %e9 read, and a newline."""
    return unquote(movie, encoding="latin-1").replace("_", " ") + "\n"


def normalise(text: str) -> str:
    """Letters and digits only, lower case, accents off: the key on which the two copies of a snippet meet."""
    decomposed = unicodedata.normalize("NFKD", text).lower()
    return "".join(c for c in decomposed if c.isascii() and c.isalnum())


def rated_snippets(name: str = "movieReviewSnippets") -> list[tuple[str, str, tuple[int, ...]]]:
    """(row id, text, ratings) of one of Hutto and Gilbert's sets; rows are sorted by polarity in the source."""
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
    """Every review snippet with a film's name, rated or not, with its split. About 12,750; 10,448 of them rated."""
    corpus = [r for r in _corpus() if r["category"] != "plot"]
    films, first = defaultdict(set), {}
    for row in corpus:
        key = normalise(row["text"])
        films[key].add(row["movie"])
        first.setdefault(key, row)
    ratings = {}
    for _, text, values in rated_snippets():
        if (
            len(films.get(normalise(text), ())) == 1
        ):  # a snippet under several films names none: dropped
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
    """Assign rated films to splits in the order of the sha256 of their names: the same for ever, on every machine."""
    order = sorted(movies, key=lambda movie: hashlib.sha256(movie.encode()).hexdigest())
    result, start, share = {}, 0, 0.0
    for split, part in SPLITS.items():
        share += part
        end = round(share * len(order))
        result |= dict.fromkeys(order[start:end], split)
        start = end
    return result


def pretraining_texts() -> list[str]:
    """Raw text, no titles, no ratings: all but the val and test films, and the other rated sources.

    A snippet that the join did not find may belong to a val or test film, so it is left out too.
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
    """Entities decoded; people's handles and links taken out."""
    text = re.sub(r"@\w+|https?://\S+", "", html.unescape(text))
    return re.sub(r"\s+", " ", text).strip()


def pairs_within_films(
    split: str, min_gap: float = 0.0, max_gap: float = 8.0
) -> list[tuple[Review, Review]]:
    """All pairs of rated snippets of one film whose |difference of mean ratings| lies in [min_gap, max_gap)."""
    check("split", split, split in SPLITS, f"one of {', '.join(SPLITS)}")
    films = defaultdict(list)
    for review in load_reviews():
        if review.split == split and review.ratings:
            films[review.movie].append(review)
    return [
        (a, b)
        for group in films.values()
        for i, a in enumerate(group)
        for b in group[i + 1 :]
        if min_gap <= abs(a.mean - b.mean) < max_gap
    ]


def preference_pairs(
    split: str,
    n: int,
    *,
    seed: int,
    min_gap: float = 0.0,
    max_gap: float = 8.0,
    max_tokens: int | None = None,
    tokenizer=None,
) -> Dataset:
    """Draw n pairs of snippets of one film, labelled by ONE random rating of each: what one person would have said.

    Ties of the two ratings are dropped and counted (column-free: `dataset.info.description`). TRL's preference format with
    an explicit prompt, and for evaluation only the two mean ratings and `gap`, |difference of the *other* raters' means|: by it
    results are told apart, since a mean that holds the label's own rating knows of the label.

    Args:
        split: whose films. n: pairs wanted. seed: of the drawing.
        min_gap, max_gap: band of |difference of mean ratings|, rating units, half open.
        max_tokens: leave out snippets longer than this with EOS (needs `tokenizer`).
    """
    check("n", n, n >= 1, "at least 1 pair")
    rng = random.Random(seed)
    candidates = pairs_within_films(split, min_gap, max_gap)
    if max_tokens is not None:
        texts = list(
            dict.fromkeys(r.text for pair in candidates for r in pair)
        )  # a text is in many pairs
        short = {
            text
            for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True)
            if len(ids) < max_tokens
        }
        candidates = [(a, b) for a, b in candidates if a.text in short and b.text in short]
    if not candidates:
        limit = "" if max_tokens is None else f" and fewer than {max_tokens} tokens"
        raise ValueError(
            f"No pairs within a film in split '{split}' with a gap in [{min_gap}, {max_gap}){limit}."
        )
    rows, ties = [], 0
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


def _corpus() -> list[dict]:
    """Rows of the named corpus with `movie` merged and `text` trimmed; rows without text are left out.

    Plots are filed as `ring_the`, reviews as `the_ring`: names that differ in articles and underscores only are one film, spelled as
    its reviews spell it.
    """
    rows = [
        r for r in csv.DictReader(io.StringIO(sources.read_rotten_tomatoes())) if r["text"].strip()
    ]
    spelled = {}
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
    """What spellings of one film share: its letters without articles."""
    return "".join(word for word in name.split("_") if word not in ARTICLES) or name


def article_first(name: str) -> str:
    """`ring_the` -> `the_ring`."""
    *rest, last = name.split("_")
    return "_".join([last, *rest]) if rest and last in ARTICLES else name


def sft_dataset(tokenizer, *, split: str = "reward", max_tokens: int = 32) -> Dataset:
    """`prompt`, `completion` of every snippet of a split's films that fits in max_tokens with its EOS, rated or not."""
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
    """Titles to practise on: the reward films and the films that have no ratings at all, in alphabetical order."""
    split = {r.movie: r.split for r in load_reviews()}
    movies = {row["movie"] for row in _corpus()}
    return [
        prompt_of(m) for m in sorted(movies) if split.get(m, "unrated") in ("reward", "unrated")
    ]


def eval_prompts(split: str) -> list[str]:
    """Titles of the films of one split (`val` to choose settings, `test` to report), in alphabetical order."""
    check("split", split, split in SPLITS, f"one of {', '.join(SPLITS)}")
    return [prompt_of(m) for m in sorted({r.movie for r in load_reviews() if r.split == split})]
