"""report.html: all results of a run in one file, readable offline, on a phone and on paper."""

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from minirlhf.runtime import write_text
from minirlhf.show.microscope_view import microscope
from minirlhf.show.plane import frontier
from minirlhf.show.strips import escape
from minirlhf.show.training import curves

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:auto;padding:1rem;color:#222;
background:#fff}img{max-width:100%}
table{border-collapse:collapse;font-size:.85rem;display:block;overflow-x:auto}
td,th{border:1px solid #ccc;padding:.25rem .5rem;text-align:left;vertical-align:top}
.whole{white-space:nowrap}.texts td{min-width:8rem}.how{color:#555;font-size:.9rem}
.warn{border-left:4px solid #d95f02;padding-left:.7rem}
@media print{body{max-width:none}img{max-height:9cm}table{display:table;font-size:.6rem}
td,th{padding:.1rem .25rem}.whole{white-space:normal}.texts td{min-width:0}
tr,img{break-inside:avoid}h2{break-after:avoid}}
"""
TABLE = {
    "method": "method",
    "gold": "gold score",
    "proxy": "proxy (reward model)",
    "ensemble": "GPT-2 ensemble",
    "lexicon": "lexicon",
    "kl": "KL, nats",
    "length": "tokens",
    "distinct_2": "distinct-2",
    "entropy": "entropy, nats per token",
    "opening_share": "commonest 4-word opening",
    "missing_eos": "missing EOS",
    "seconds": "training, s",
}
CURVES = {
    "sft": (
        ["loss"],
        "Supervised fine-tuning: the loss in nats per token on training reviews. It should fall "
        "and then flatten.",
    ),
    "reward": (
        ["loss", "accuracy", "margin"],
        "Reward model: the loss starts at ln 2 = 0.693. Single human ratings are noisy, so the "
        "accuracy stays well below 1.",
    ),
    "ppo": (
        [
            "gold",
            "score",
            "kl",
            "length",
            "entropy",
            "clip_fraction",
            "explained_variance",
            "missing_eos",
            "ratio",
        ],
        "PPO maximises the score; gold is what we want. If the score rises and gold falls, PPO "
        "exploits the reward model. KL is in nats per response. An entropy near 0 means that the "
        "policy writes almost the same response every time.",
    ),
    "dpo": (
        ["loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"],
        "DPO: the loss starts at ln 2. Both log-probabilities may fall while their difference "
        "grows.",
    ),
    "grpo": (
        ["gold", "score", "kl", "length", "entropy", "clip_fraction", "reward_std", "missing_eos"],
        "GRPO: the same reward and the same KL penalty as PPO. A group of samples for each prompt "
        "replaces the critic.",
    ),
}
WARNING = (
    "The samples come from a small model that was trained on reviews by film critics. They may "
    "offend."
)
SHOWN = 5  # samples at the top of the page
HOW_SAMPLES = (
    "The first titles, not selected. Each column is a model that was trained in this run; SFT is "
    "the model before. Below each review stands its gold score."
)
HOW_METHODS = (
    "Gold: the mean rating (-4 to 4) that people would give, predicted by a separate model that is "
    "not used in training. In brackets: the 95 % interval over films. The ensemble and the lexicon "
    "judge in other ways. Where they disagree with gold, read the samples. Best-of-n takes the "
    "SFT sample that the reward model scores highest; its KL is an upper bound."
)
HOW_PLANE = (
    "Higher is better. Further right is further from the SFT model. Of two methods with the same "
    "KL, the better one has more gold."
)
HOW_RECORDED = (
    "Recorded earlier with several seeds, not by this run. The mean over the seeds; in brackets, "
    "the range of the seeds."
)
HOW_ACCURACY = (
    "How often the reward model prefers the same text as one random rater. Gap: how far the mean "
    "ratings of the other raters are apart. The ceiling is how often those means predict that "
    "rater. The bag of words is a ridge regression on the same films. Where the mean "
    "probability equals the accuracy, the model is calibrated."
)
HOW_TOKENS = (
    "Point at a token, or use the arrow keys, to see all its numbers. The bars are the likeliest "
    "next tokens of the model and of the SFT model. At first a token's colour is the reward of the "
    "text up to that token, ended with EOS: blue is above the mean of SFT samples, orange below. "
    "This reads the reward model where it was trained, but on unusual texts. One pass reads it at "
    "positions where it was never trained, but on natural text. The KL penalty of each token is "
    "part of its reward; the score is added at the last token."
)


def write_report(
    path: str | Path,
    *,
    title: str,
    history: Iterable[dict],
    methods: list[dict],
    samples: list[dict],
    times: dict[str, float],
    environment: dict,
    recorded: list[dict] | None = None,
    accuracy: list[dict] | None = None,
    tokens: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write the page; an older page is replaced only after the new one is complete.

    What most people look for comes first: the result in one sentence, its picture, samples before
    and after, and the token microscope. Then come the curves of each stage, and then the tables.

    Args:
        history: rows of metrics of all stages.
        methods: a dict per method with the keys of TABLE, gold_low and gold_high.
        samples: dicts with prompt, columns {method: text} and golds {method: score}.
        times: stage -> seconds. environment: facts for the head of the page.
        recorded: rows like `methods` with `seed`, from earlier runs.
        accuracy: rows with low and high (the gap) and one share per column.
        tokens: model -> the `evaluate.token_table` of some responses, with a reward model.
    """
    facts = " · ".join(f"{escape(k)} {escape(v)}" for k, v in environment.items())
    spent = " · ".join(f"{escape(k)} {v:.0f} s" for k, v in times.items())
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(_result(methods))}</p>",
        _image(frontier(methods, by="method", ylabel="gold score"), "gold score against KL"),
        _how(HOW_PLANE),
        f'<h2>Before and after</h2><p class="warn">{escape(WARNING)}</p>',
        _samples(samples[:SHOWN]) + _how(HOW_SAMPLES),
    ]
    if tokens:
        block = microscope(tokens, "prefix_reward").html
        parts.append(_section("The first responses, token by token", block, HOW_TOKENS))
    parts += _curves_of_stages(list(history))
    parts.append(_section("All numbers of the methods", _table(methods), HOW_METHODS))
    if recorded:
        table = _table(_mean_over_seeds(recorded))
        parts.append(_section("Recorded: the same methods, several seeds", table, HOW_RECORDED))
    if accuracy:
        heading = "The reward model on held-out films, by rating gap (mean of the other raters)"
        parts.append(_section(heading, _accuracy(accuracy), HOW_ACCURACY))
    if samples[SHOWN:]:
        parts.append("<h2>More samples</h2>" + _samples(samples[SHOWN:]))
    parts.append(f'<h2>This run</h2><p class="how">{facts}<br>Time: {spent}</p>')
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    page = f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"
    write_text(path, page)
    return Path(path)


def _result(methods: list[dict]) -> str:
    """The result in a sentence: the gold score before training and after each way of training.

    The first row is the model before; best-of-n (a choice among samples) is no training.
    """
    before, *others = methods
    after = [f"{row['gold']:.2f} with {row['method']}" for row in others if not _searched(row)]
    return (
        f"Before, {before['method']} wrote reviews of held-out films with a gold score of "
        f"{before['gold']:.2f}. "
        + (f"After training it is {_listed(after)}. " if after else "")
        + "The gold score is the rating, from -4 to 4, that people would give, as a separate "
        "model predicts it."
    )


def _searched(row: dict) -> bool:
    return row["method"].startswith("best-of-")


def _listed(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _section(heading: str, content: str, how: str) -> str:
    return f"<h2>{escape(heading)}</h2>{content}{_how(how)}"


def _how(text: str) -> str:
    return f'<p class="how">{escape(text)}</p>'


def _curves_of_stages(history: list[dict]) -> list[str]:
    """A figure for each stage that has logged metrics."""
    parts = []
    for stage, (metrics, how) in CURVES.items():
        rows = [row for row in history if row["stage"] == stage]
        logged = [name for name in metrics if any(row.get(name) is not None for row in rows)]
        if logged:
            figure = curves(rows, stage=stage, columns=logged)
            parts.append(_section(stage.upper(), _image(figure, f"curves of {stage}"), how))
    return parts


def _table(rows: list[dict]) -> str:
    names = [name for name in TABLE if any(name in row for row in rows)]
    body = "".join(
        "<tr>" + "".join(f"<td>{_value(row, name)}</td>" for name in names) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{''.join(f'<th>{TABLE[name]}</th>' for name in names)}</tr>{body}</table>"


def _value(row: dict, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return f'<span class="whole">{escape(value)}</span>'
    if f"{name}_low" in row:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return f"{value:.2f} <span class=whole>[{low:.2f}, {high:.2f}]</span>"
    return f"{value:.0f}" if name == "seconds" else f"{value:.2f}"


def _mean_over_seeds(rows: list[dict]) -> list[dict]:
    """A row per method: means over the seeds, and the range of the seeds for the judges."""
    result = []
    for method in dict.fromkeys(row["method"] for row in rows):
        group = [row for row in rows if row["method"] == method]
        merged = {"method": f"{method} ({len(group)} seeds)"}
        for name in TABLE:
            values = [row[name] for row in group if isinstance(row.get(name), (int, float))]
            if values:
                merged[name] = sum(values) / len(values)
                if name in ("gold", "proxy", "ensemble", "lexicon"):
                    merged |= {f"{name}_low": min(values), f"{name}_high": max(values)}
        result.append(merged)
    return result


def _accuracy(rows: list[dict]) -> str:
    names = [name for name in rows[0] if name not in ("low", "high")]
    body = "".join(
        f"<tr><td>{r['low']:g} to {r['high']:g}</td>"
        + "".join(f"<td>{r[n]:.3f}</td>" for n in names)
        + "</tr>"
        for r in rows
    )
    head = "".join(f"<th>{escape(n)}</th>" for n in names)
    return f"<table><tr><th>gap, rating units</th>{head}</tr>{body}</table>"


def _samples(samples: list[dict]) -> str:
    if not samples:
        return "<p>none</p>"
    names = list(samples[0]["columns"])
    head = "".join(f"<th>{escape(name)}</th>" for name in ["title", *names])
    body = ""
    for sample in samples:
        cells = "".join(
            f"<td>{escape(sample['columns'][n])}<br>"
            f'<span class="how">gold {sample["golds"][n]:+.2f}</span></td>'
            for n in names
        )
        body += f"<tr><td>{escape(sample['prompt'])}</td>{cells}</tr>"
    return f'<table class="texts"><tr>{head}</tr>{body}</table>'


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'
