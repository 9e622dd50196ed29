"""report.html: one file with everything a run has to show, readable without a network, on a phone and on paper."""

import base64
import io
from pathlib import Path

from matplotlib.figure import Figure

from minirlhf.runtime import write_text
from minirlhf.show.curves import curves, reward_kl_plane
from minirlhf.show.strips import escape, token_strip_html
from minirlhf.show.tokens import token_table_html

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:auto;padding:1rem;color:#222}img{max-width:100%}
table{border-collapse:collapse;font-size:.85rem;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.25rem .5rem;
text-align:left;vertical-align:top}.whole{white-space:nowrap}.texts td{min-width:8rem}.how{color:#555;font-size:.9rem}.warn{border-left:4px solid #d95f02;padding-left:.7rem}
@media print{body{max-width:none}img{max-height:9cm}table{display:table;font-size:.6rem}td,th{padding:.1rem .25rem}.whole{white-space:normal}.texts td{min-width:0}
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
    "entropy": "entropy, nats a token",
    "opening_share": "commonest 4-word opening",
    "missing_eos": "missing EOS",
    "seconds": "training, s",
}
CURVES = {
    "sft": (
        ["loss"],
        "Supervised fine-tuning: nats a token on training reviews; it should fall and flatten.",
    ),
    "reward": (
        ["loss", "accuracy", "margin"],
        "Reward model: the loss starts at ln 2 = 0.693; single human ratings are noisy, so accuracy stays well below 1.",
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
        "PPO: the score is what it maximises, gold is what we want; watch whether they part. KL is per sequence; an entropy that goes to 0 is a collapse.",
    ),
    "dpo": (
        ["loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"],
        "DPO: the loss starts at ln 2. Both log-probabilities may fall while their difference grows.",
    ),
    "grpo": (
        ["gold", "score", "kl", "length", "entropy", "clip_fraction", "reward_std", "missing_eos"],
        "GRPO: the same reward and the same leash as PPO, a group of samples in place of the critic.",
    ),
}


def write_report(
    path: str | Path,
    *,
    title: str,
    history,
    methods: list[dict],
    samples: list[dict],
    strips: list[dict],
    times: dict[str, float],
    environment: dict,
    recorded: list[dict] | None = None,
    accuracy: list[dict] | None = None,
    token_rows: list[dict] | None = None,
) -> Path:
    """Write the page atomically.

    Args:
        history: rows of metrics of all stages. methods: one dict a method with the keys of TABLE, gold_low and gold_high.
        samples: dicts with prompt, columns {method: text}, golds {method: score}. strips: dicts with title, tokens, values.
        recorded: rows like methods with `seed`, from data/results. accuracy: rows with low, high and one share a column.
        token_rows: what token_table made of one response.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="warn">The samples come from a small model that imitates film critics. They may offend.</p>',
    ]
    facts = " · ".join(f"{escape(k)} {escape(v)}" for k, v in environment.items())
    spent = " · ".join(f"{escape(k)} {v:.0f} s" for k, v in times.items())
    parts.append(f'<p class="how">{facts}<br>{spent}</p>')
    parts.append("<h2>The methods on held-out films</h2>" + _table(methods))
    parts.append(
        '<p class="how">Gold: the mean rating (-4..4) that raters would give, as a scorer predicts that no training saw; in brackets '
        "the 95 % interval over films. Ensemble and lexicon are judges of another kind: where they disagree with gold, read the samples. "
        "Best-of-n picks by the reward model among samples of SFT; its KL is a bound.</p>"
    )
    points = [
        {
            "label": m["method"],
            "kl": m["kl"],
            "score": m["gold"],
            "low": m["gold_low"],
            "high": m["gold_high"],
        }
        for m in methods
    ]
    parts.append(_image(reward_kl_plane(points), "gold score against KL for each method"))
    parts.append(
        '<p class="how">Up is better, right is further from SFT: more gold for the same KL is a better method.</p>'
    )
    if recorded:
        parts.append(
            "<h2>Recorded: the same over several seeds</h2>" + _table(_mean_over_seeds(recorded))
        )
        parts.append(
            '<p class="how">Recorded by <code>make grid</code>, not by this run: the mean over seeds, in brackets the range of the seeds.</p>'
        )
    if accuracy:
        parts.append(
            "<h2>The reward model on held-out films, by gap of the other raters' means</h2>"
            + _accuracy(accuracy)
        )
        parts.append(
            '<p class="how">How often it ranks as one random rater did. The ceiling is how often the other raters\' means are right; the bag of words is a ridge on the same '
            "films. Mean probability against accuracy says whether it is calibrated.</p>"
        )
    parts.append("<h2>Before and after, the same titles, unselected</h2>" + _samples(samples))
    parts.append(
        "<h2>The reward of every prefix</h2>"
        + "".join(token_strip_html(s["tokens"], s["values"], title=s["title"]) for s in strips)
    )
    parts.append(
        '<p class="how">The colour of a token is the score of the text up to it: blue above the mean of SFT samples, orange below; hover for the number. Each prefix ended by EOS is a trained position '
        "on unusual text; one pass reads natural text at positions the head was never trained at.</p>"
    )
    if token_rows:
        parts.append("<h2>One response under the microscope</h2>" + token_table_html(token_rows))
        parts.append(
            '<p class="how">Read down: the KL penalty of each token enters its reward, the score arrives at the last; the TD error is '
            "what the critic had not expected, the advantage sums those to come. Clipped tokens give the policy no gradient.</p>"
        )
    for stage, (metrics, how) in CURVES.items():
        if any(
            row["stage"] == stage and row.get(metric) is not None
            for row in history
            for metric in metrics
        ):
            parts.append(
                f"<h2>{stage.upper()}</h2>"
                + _image(curves(list(history), metrics, stage=stage), f"curves of {stage}")
            )
            parts.append(f'<p class="how">{escape(how)}</p>')
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style>'
    write_text(
        path,
        f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>",
    )
    return Path(path)


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
        return f"{value:.2f} <span class=whole>[{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]</span>"
    return f"{value:.0f}" if name == "seconds" else f"{value:.2f}"


def _mean_over_seeds(rows: list[dict]) -> list[dict]:
    """One row a method: means, and for the judges the range over seeds."""
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
    return f"<table><tr><th>gap, rating units</th>{''.join(f'<th>{escape(n)}</th>' for n in names)}</tr>{body}</table>"


def _samples(samples: list[dict]) -> str:
    if not samples:
        return "<p>none</p>"
    names = list(samples[0]["columns"])
    head = "".join(f"<th>{escape(name)}</th>" for name in ["title", *names])
    body = ""
    for sample in samples:
        cells = "".join(
            f'<td>{escape(sample["columns"][n])}<br><span class="how">gold {sample["golds"][n]:+.2f}</span></td>'
            for n in names
        )
        body += f"<tr><td>{escape(sample['prompt'])}</td>{cells}</tr>"
    return f'<table class="texts"><tr>{head}</tr>{body}</table>'


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
