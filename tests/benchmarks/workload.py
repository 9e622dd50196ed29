"""The work that both sides are timed on: model, data and sizes; and how a step is timed.

Needs torch and transformers only. A step is timed from the end of the step before to its own end,
so batching and sampling count. The first WARMUP steps are left out.
"""

import json
import os
import random
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "out" / "bench" / "prompts.json"  # film titles, written by bench.py
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
TASKS = ("generate", "reviews", "sft", "reward", "dpo", "grpo", "rloo", "ppo")
REVIEWS = {"batch": 64, "new": 32}  # of the task "reviews", and its temperature
TEMPERATURE = 0.7


def sizes(arguments: list[str]) -> tuple[str, dict]:
    """`TASK name=value ...` -> the task and the sizes of its work. Sets the threads."""
    task, *given = arguments
    size = SIZES | {name: int(value) for name, value in (word.split("=") for word in given)}
    torch.set_num_threads(size["threads"])
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return task, size


def rows(n: int, size: dict) -> list[tuple[str, str, str]]:
    """n rows of (prompt, chosen, rejected): random words.

    All completions have the same length, so that nothing is padded.
    """
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


def review_writer():
    """(model, tokenizer, prompts) of the task "reviews": what the tour samples from at first."""
    folder = ROOT / "data" / "checkpoints" / "tiny-reviews-sft"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    return model.eval(), words, json.loads(PROMPTS.read_text())[: REVIEWS["batch"]]


def review_sizes(prompt_mask, response_masks) -> dict:
    """The sizes of "reviews" as they came out: mean tokens of a prompt and of a response."""
    responses = [mask.sum() / len(mask) for mask in response_masks]
    prompt, response = prompt_mask.sum() / len(prompt_mask), sum(responses) / len(responses)
    return REVIEWS | {"prompt": round(float(prompt), 2), "completion": round(float(response), 2)}


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
