"""The work that both sides are timed on: model, data and sizes; and how a step is timed. Needs torch and transformers only.

A step is timed from its end to the next one's end, so batching and sampling count; the first WARMUP steps are left out.
"""

import json
import os
import random
import resource
import statistics
import sys
import time

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

LAYERS, HEADS, POSITIONS = 4, 4, 256
WARMUP = 3
PAD, EOS, UNKNOWN = 0, 1, 2
SIZES = {
    "width": 256,
    "vocabulary": 4096,
    "prompt": 32,
    "completion": 64,
    "new": 48,
    "batch": 16,
    "group": 4,
    "steps": 12,
    "threads": 2,
    "bf16": 0,
}
TASKS = ("generate", "sft", "reward", "dpo", "grpo", "rloo", "ppo")


def sizes(arguments: list[str]) -> tuple[str, dict]:
    """`TASK name=value ...` -> the task and the sizes of its work. Sets the threads."""
    task, *given = arguments
    size = SIZES | {name: int(value) for name, value in (word.split("=") for word in given)}
    torch.set_num_threads(size["threads"])
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return task, size


def rows(n: int, size: dict) -> list[tuple[str, str, str]]:
    """n rows of (prompt, chosen, rejected): random words, every completion as long as every other, so that nothing is padded."""
    rng = random.Random(0)

    def words(k):
        return " ".join(f"t{rng.randrange(3, size['vocabulary'])}" for _ in range(k))

    return [
        (words(size["prompt"]), words(size["completion"] - 1), words(size["completion"] - 1))
        for _ in range(n)
    ]


def tokenizer(size: dict):
    """One token a word; EOS and padding apart, for TRL's sake."""
    ids = {"<pad>": PAD, "</s>": EOS, "<unk>": UNKNOWN} | {
        f"t{i}": i for i in range(3, size["vocabulary"])
    }
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )


def configuration(size: dict, **given):
    return transformers.GPT2Config(
        vocab_size=size["vocabulary"],
        n_positions=POSITIONS,
        n_embd=size["width"],
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **given,
    )


def policy(size: dict):
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(configuration(size))


class Clock:
    """Ends of steps -> the JSON line that a side prints."""

    def __init__(self):
        self.ends, self.sampled = [time.perf_counter()], [0.0]

    def __call__(self, *_):
        self.ends.append(time.perf_counter())
        self.sampled.append(0.0)

    def sampling(self, function):
        """The function; its seconds are known as this step's sampling."""

        def timed(*args, **given):
            started = time.perf_counter()
            result = function(*args, **given)
            self.sampled[-1] += time.perf_counter() - started
            return result

        return timed

    def report(self, task: str, side: str, size: dict, **extra) -> None:
        steps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)][WARMUP:]
        shares = [s / step for s, step in zip(self.sampled[WARMUP:], steps, strict=False)]
        extra |= {"sampling": statistics.median(shares)} if any(shares) else {}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**10 if sys.platform == "linux" else 2**20
        )
        print(
            json.dumps(
                {
                    "task": task,
                    "side": side,
                    "seconds": statistics.median(steps),
                    "best": min(steps),
                    "steps": len(steps),
                    "peak_mib": round(peak),
                    "load": os.getloadavg()[0],
                    **size,
                    **extra,
                }
            )
        )
