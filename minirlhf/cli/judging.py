"""How a trained policy does on held-out prompts, printed."""

import torch
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from minirlhf.cli.terminal import console, say
from minirlhf.evaluate import bootstrap, paired_difference, sharpened_or_learned
from minirlhf.experiments.practice import ASKED, TRIES, judged
from minirlhf.models.adapters import Policy, merged
from minirlhf.models.load import load_policy
from minirlhf.tasks.calculator import OUTCOMES


def print_judged(policy: Policy, tokenizer: PreTrainedTokenizerBase, start: str, seed: int) -> None:
    """Gold score on held-out films with its 95 % interval, KL, length and distinct-2."""
    reference = load_policy(start)[0]
    try:
        row = judged(
            "reviews", merged(policy), tokenizer, reference=reference, seed=seed, scorer=""
        )
    except ValueError as wrong:  # for example a model with too few positions; it is saved already
        return say(f"Not judged on the held-out films: {wrong}")
    say(
        f"Held-out films: gold {row['gold']:.2f} [{row['gold_low']:.2f}, {row['gold_high']:.2f}], "
        f"KL {row['kl']:.1f} nats, {row['length']:.0f} tokens, distinct-2 {row['distinct_2']:.2f}."
    )


def print_passes(before: dict, after: dict) -> None:
    """Held-out problems solved before and after training, and whether the gain is learning."""
    title = f"{ASKED} held-out problems"
    table = Table("", "greedy", "pass@1", f"pass@{TRIES}", title=title)
    for name, row in (("before", before), ("after", after)):
        table.add_row(name, *(f"{row[key]:.1%}" for key in ("greedy", "pass_1", f"pass_{TRIES}")))
    console.print(table)
    say(
        "Judged by the 95 % intervals of the paired differences, this is "
        f"{sharpened_or_learned(before, after)}."
    )


def print_steps(before: dict, after: dict, *, asked: int, samples: int) -> None:
    """Right answers and right steps on held-out problems, before and after training."""
    title = f"{asked} held-out problems, {samples} samples of each"
    table = Table("", "right answers", "95 % interval", "right steps", title=title)
    for name, row in (("before", before), ("after", after)):
        low, high = bootstrap(torch.tensor(row["pass_1_by_prompt"], device="cpu"))
        interval = f"{low:.1%} to {high:.1%}"
        table.add_row(name, f"{row['pass_1']:.1%}", interval, f"{row['step_right']:.1%}")
    console.print(table)
    gain, low, high = paired_difference(after["pass_1_by_prompt"], before["pass_1_by_prompt"])
    say(f"Change of right answers: {gain:+.1%} (95 % interval {low:+.1%} to {high:+.1%}).")


def print_asked(when: str, row: dict[str, float]) -> None:
    """Right answers on held-out problems, and what the policy did with its calculator."""
    shares = ", ".join(f"{name} {row[name]:.0%}" for name in OUTCOMES)
    say(
        f"Held-out problems {when}: {row['right']:.1%} right (95 % interval {row['low']:.1%} to "
        f"{row['high']:.1%}); {shares}."
    )
