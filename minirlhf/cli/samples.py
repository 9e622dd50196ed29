"""The commands sample and score: what a model writes, and what reward it gets."""

from functools import cache
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from minirlhf.cli.checked import say_plain
from minirlhf.cli.data_options import Chat
from minirlhf.cli.limits import whole
from minirlhf.cli.options import (
    DATA,
    SAMPLING,
    SCORER,
    Device,
    Model,
    Scorer,
    Seed,
    model_option,
    option,
    out_file,
)
from minirlhf.cli.terminal import console, say
from minirlhf.cli.training_options import MaxNewTokens, Temperature
from minirlhf.evaluate import token_table
from minirlhf.models.fit import end_ids, same_vocabulary
from minirlhf.models.forward import decode, encode
from minirlhf.models.load import CHECKPOINTS, committed, load_policy, load_scalar
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.model import prefix_scores
from minirlhf.runtime import check, write_text
from minirlhf.show import escape, microscope, printable, strip_colour
from minirlhf.tasks.conversations import render

app = typer.Typer()
THE_FILM = "the film"  # the prompt of `score` where none is given
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
    chat: Chat = False,
    n: Annotated[
        int, option(SAMPLING, "Responses per prompt, 1 or more.", callback=whole(1, 1_000_000))
    ] = 3,
    temperature: Temperature = SamplingConfig.temperature,
    max_new_tokens: MaxNewTokens = SamplingConfig.max_new_tokens,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Print responses that a language model samples.

    The samples are not selected. The model imitates film critics, so they may offend. This
    project's models read a film's title and a line break, which is added. Prompts of other models
    stay as they are.

    Example: minirlhf sample "a night at the opera" --n 5
    """
    policy, tokenizer = load_policy(model)
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    asked = [as_asked(prompt, tokenizer, chat)["prompt"] for prompt in prompts]
    repeated = [text for text in asked for _ in range(n)]
    say_plain([model], asked, tokenizer, chat=chat, to=Console(stderr=True))
    rollouts = sample_text(policy, tokenizer, repeated, config=config, seed=seed)
    texts = [text for rollout in rollouts for text in decode(tokenizer, rollout)]
    say(f"Samples of {model} at temperature {temperature:g}, with seed {seed}:")
    for i, text in enumerate(texts):
        console.print(Text(prompts[i // n].strip() + ":", style="bold"), Text(printable(text)))
    ends = end_ids(policy, tokenizer)
    if cut := sum(int((~rollout.finished(ends)).sum()) for rollout in rollouts):
        say(f"{cut} of {len(texts)} are cut at {max_new_tokens} tokens (--max-new-tokens).")


@app.command()
def score(
    text: Annotated[
        str, typer.Argument(help="The response, for example a review.", show_default=False)
    ],
    scorer: Scorer = SCORER,
    prompt: Annotated[
        str | None,
        option(DATA, "The prompt, such as a film's title.", show_default=THE_FILM),
    ] = None,
    chat: Chat = False,
    model: Annotated[
        str | None,
        model_option("Language model whose probabilities the page shows too.", show_default="none"),
    ] = None,
    device: Device = "cpu",
    html: Annotated[
        Path | None, out_file("Also write a page with the token microscope to this file.")
    ] = None,
) -> None:
    """Print the reward of every prefix of a response.

    It is read in two ways: each prefix scored alone, with the end of sequence (EOS) after it; and
    all tokens in one pass.

    The page of --html shows both as colours. Point at a token to see its numbers; with --model
    also its probability and the likeliest next tokens.

    Example: minirlhf score "I love to walk the dog" --html dog.html
    """
    check("model", model, model is None or html is not None, "given together with --html")
    reward_model, tokenizer = load_scalar(scorer)
    actor = None if model is None else policy_of(model, tokenizer)
    if prompt is None:
        say(f"The prompt is {THE_FILM!r}. Give the response's own with --prompt.")
    prompt, text = as_asked(prompt or THE_FILM, tokenizer, chat, completion=text).values()
    readers = [scorer] if model is None else [scorer, model]
    say_plain(readers, [prompt], tokenizer, chat=chat, to=Console(stderr=True))
    tokens, *values = prefix_scores(reward_model, tokenizer, prompt, text)
    readings = dict(zip(READINGS, values, strict=True))
    limit = float(torch.cat(values).abs().max())
    for title, rewards in readings.items():
        console.print(Text(title, style="bold"))
        console.print(coloured(tokens, rewards.tolist(), limit))
    table = Table("prefix ends with", "(a) prefix + EOS", "(b) one pass")
    for token, a, b in zip(tokens, *(rewards.tolist() for rewards in values), strict=True):
        table.add_row(Text(printable(token)), f"{a:+.3f}", f"{b:+.3f}")
    console.print(table)
    rated = (reward_model.shift, reward_model.scale) == (0.0, 1.0)
    unit = "predicted ratings, -4 to 4" if rated else "standard deviations of the SFT samples"
    learned = "film reviews" if scorer in committed(scores=True) else "its own data"
    warning = (
        f"Reward units: {unit}. The reward model learned from {learned}. "
        "The further a text is from these, the less its reward means."
    )
    say(warning)
    if html:
        table = token_table(
            encode(tokenizer, [prompt], [text]),
            tokenizer,
            actor=actor,
            reward_model=reward_model,
            temperature=1.0,
        )
        page = microscope(table, "prefix_reward", title="The reward of every prefix").page()
        write_text(html, page.replace("</body>", f"<p>{escape(warning)}</p></body>"))
        say(f"Wrote {html}.")


def as_asked(
    prompt: str, tokenizer: PreTrainedTokenizerBase, chat: bool, **response: str
) -> dict[str, str]:
    """The prompt (and response) as the model reads it.

    With `chat` the tokenizer's template writes it. This project's models of film reviews read a
    title and a line break. The prompt of any other model stays as it is.
    """
    if chat:
        template = getattr(tokenizer, "chat_template", None)
        check("chat", chat, template is not None, "off: the tokenizer has no chat template")
        return render({"prompt": prompt, **response}, ["prompt", *response], tokenizer)
    if same_vocabulary(tokenizer, _films_tokenizer()):
        prompt = prompt.strip() + "\n"
    return {"prompt": prompt, **response}


@cache
def _films_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of this project's models of film reviews."""
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-reviews")


def coloured(tokens: list[str], values: list[float], limit: float) -> Text:
    """The response with each token on the colour of its reward."""
    strip = Text()
    for token, value in zip(tokens, values, strict=True):
        strip.append(printable(token), style=f"black on {strip_colour(value, limit)}")
    return strip


def policy_of(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The language model `name`.

    Raises:
        ValueError: it has another tokenizer than the reward model.
    """
    policy, its_tokenizer = load_policy(name)
    same = same_vocabulary(its_tokenizer, tokenizer)
    check("model", name, same, "a model with the reward model's own tokenizer")
    return policy
