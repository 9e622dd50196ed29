"""The commands sample and score: what a model writes, and what reward it gets."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from rich.text import Text

from minirlhf.cli.options import DATA, RUN, SAMPLING, Model, Scorer, Seed, option
from minirlhf.cli.terminal import console, say
from minirlhf.models.forward import decode
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.model import prefix_scores
from minirlhf.runtime import check, write_text
from minirlhf.show.strips import printable, strip_colour, token_strip_html

app = typer.Typer()
READINGS = (
    "(a) prefix + EOS: each prefix scored alone, as in training",
    "(b) one pass: the reward read at each token of the whole text",
)


@app.command()
def sample(
    prompts: Annotated[
        list[str], typer.Argument(help="Film titles, or any other prompts.", show_default=False)
    ],
    model: Model = "tiny-reviews-sft",
    n: Annotated[int, option(SAMPLING, "Responses per prompt, 1 or more.")] = 3,
    temperature: Annotated[
        float, option(SAMPLING, "Sampling temperature, above 0. 1: the model's own distribution.")
    ] = SamplingConfig.temperature,
    max_new_tokens: Annotated[
        int, option(SAMPLING, "Longest response in tokens, EOS included.")
    ] = SamplingConfig.max_new_tokens,
    seed: Seed = 0,
):
    """Print responses that a language model samples.

    The samples are not selected. The model imitates film critics, so they may offend.

    Example: minirlhf sample "a night at the opera" --n 5
    """
    check("n", n, n >= 1, "at least 1")
    policy, tokenizer = load_policy(model)
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    repeated = [p if p.endswith("\n") else p + "\n" for p in prompts for _ in range(n)]
    rollouts = sample_text(policy, tokenizer, repeated, config=config, seed=seed)
    texts = [text for rollout in rollouts for text in decode(tokenizer, rollout)]
    for prompt, text in zip(repeated, texts, strict=True):
        console.print(Text(prompt.strip() + ":", style="bold"), Text(printable(text)))


@app.command()
def score(
    text: Annotated[
        str, typer.Argument(help="The response, for example a review.", show_default=False)
    ],
    scorer: Scorer = "tiny-reviews-reward",
    prompt: Annotated[str, option(DATA, "The prompt: the film's title.")] = "the film",
    html: Annotated[
        Path | None, option(RUN, "Also write a page with both coloured texts to this file.")
    ] = None,
):
    """Print the reward of every prefix of a response.

    It is read in two ways: each prefix with an EOS scored alone, and all tokens in one pass.

    Example: minirlhf score "I love to walk the dog" --html dog.html
    """
    model, tokenizer = load_scalar(scorer)
    tokens, *values = prefix_scores(model, tokenizer, prompt.strip() + "\n", text)
    readings = dict(zip(READINGS, values, strict=True))
    limit = float(torch.cat(values).abs().max())
    for title, rewards in readings.items():
        console.print(Text(title, style="bold"))
        console.print(coloured(tokens, rewards.tolist(), limit))
    table = Table("prefix ends with", "(a) prefix + EOS", "(b) one pass")
    for token, a, b in zip(tokens, *(rewards.tolist() for rewards in values), strict=True):
        table.add_row(Text(printable(token)), f"{a:+.3f}", f"{b:+.3f}")
    console.print(table)
    rated = (model.shift, model.scale) == (0.0, 1.0)
    unit = "predicted ratings, -4 to 4" if rated else "standard deviations of the SFT samples"
    warning = (
        f"Reward units: {unit}. The reward model learned from film reviews. "
        "The further a text is from a film review, the less its reward means."
    )
    say(warning)
    if html:
        strips = [token_strip_html(tokens, v, title=title) for title, v in readings.items()]
        head = "<!doctype html><meta charset=utf-8><title>Reward of every prefix</title>"
        write_text(html, f"{head}{''.join(strips)}<p>{warning}</p>")
        say(f"Wrote {html}.")


def coloured(tokens: list[str], values: list[float], limit: float) -> Text:
    """The response with each token on the colour of its reward."""
    strip = Text()
    for token, value in zip(tokens, values, strict=True):
        strip.append(printable(token), style=f"black on {strip_colour(value, limit)}")
    return strip
