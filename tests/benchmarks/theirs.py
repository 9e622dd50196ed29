"""TRL's trainers on the work of workload.py: `python theirs.py TASK name=value ...`.

Prints one JSON line. TRL is 1.16 for all tasks but `ppo`, whose trainer was last released in 1.12;
each has an environment of its own (`bench.py` makes them).
"""

import contextlib
import os
import sys
import tempfile
import warnings
from unittest.mock import patch

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
warnings.filterwarnings("ignore")

import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from workload import WARMUP, Clock, configuration, policy, rows, sizes, tokenizer  # noqa: E402

datasets.disable_progress_bars()


def settings(size, folder, **given):
    """What all trainers share: float32, fused AdamW, a constant rate, nothing saved or logged."""
    usual = {
        "output_dir": folder,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": bool(size["bf16"]),
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_steps": size["steps"] + WARMUP,
    }
    return usual | given


def train(trainer, clock):
    class Steps(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            clock()

    trainer.add_callback(Steps())
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()


def dataset(n, size, columns):
    drawn = rows(n, size)
    both = {
        "prompt": [p + " " for p, _, _ in drawn],
        "chosen": [c + " </s>" for _, c, _ in drawn],
        "rejected": [r + " </s>" for _, _, r in drawn],
    }
    both["completion"] = both["chosen"]
    return datasets.Dataset.from_dict({column: both[column] for column in columns})


def real_tokens(trainer, expected):
    """The batch is as long as the work says: no truncation, no second EOS."""
    batch = next(iter(trainer.get_train_dataloader()))
    found = (
        int(batch["attention_mask"].sum())
        if "attention_mask" in batch
        else batch["input_ids"].numel()
    )
    assert found == expected, (found, expected)


def offline(trainer, config, model, size, folder, clock, columns, texts, **given):
    n = size["batch"] // 2
    work = trainer(
        model=model,
        args=config(**settings(size, folder, per_device_train_batch_size=n)),
        processing_class=tokenizer(size),
        train_dataset=dataset(n * (size["steps"] + WARMUP), size, columns),
        **given,
    )
    real_tokens(work, texts * n * (size["prompt"] + size["completion"]))
    train(work, clock)


def sft(size, clock, folder):
    offline(
        trl.SFTTrainer,
        trl.SFTConfig,
        policy(size),
        size,
        folder,
        clock,
        ("prompt", "completion"),
        1,
    )


def reward(size, clock, folder):
    model = transformers.GPT2ForSequenceClassification(configuration(size, num_labels=1))
    offline(
        trl.RewardTrainer,
        trl.RewardConfig,
        model,
        size,
        folder,
        clock,
        ("prompt", "chosen", "rejected"),
        2,
    )


def dpo(size, clock, folder):
    columns = ("prompt", "chosen", "rejected")
    offline(
        trl.DPOTrainer,
        trl.DPOConfig,
        policy(size),
        size,
        folder,
        clock,
        columns,
        2,
        ref_model=policy(size),
    )


def grpo(size, clock, folder, trainer=None, config=None, beta=0.04):
    def even_ids(completions, completion_ids, **columns):
        return [sum(i % 2 == 0 for i in row) / len(row) for row in completion_ids]

    policy(size).save_pretrained(folder)  # the reference is loaded by the model's name
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    every = dataset(size["batch"] * (size["steps"] + WARMUP), size, ("prompt",))
    given = settings(
        size,
        folder,
        per_device_train_batch_size=size["batch"],
        num_generations=size["group"],
        num_iterations=1,
        max_completion_length=size["new"],
        beta=beta,
        temperature=1.0,
        generation_kwargs={"min_new_tokens": size["new"]},
    )
    work = (trainer or trl.GRPOTrainer)(
        model=model,
        args=(config or trl.GRPOConfig)(**given),
        reward_funcs=even_ids,
        train_dataset=every,
        processing_class=tokenizer(size),
    )
    with patch.object(
        transformers.GenerationMixin,
        "generate",
        clock.sampling(transformers.GenerationMixin.generate),
    ):
        train(work, clock)


def rloo(size, clock, folder):
    grpo(size, clock, folder, trl.RLOOTrainer, trl.RLOOConfig, beta=0.05)


def ppo(size, clock, folder):
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    words, steps = tokenizer(size), size["steps"] + WARMUP
    ids = words([p for p, _, _ in rows(size["batch"] * steps, size)]).input_ids
    given = settings(
        size,
        folder,
        per_device_train_batch_size=size["batch"],
        num_mini_batches=1,
        num_ppo_epochs=4,
        temperature=1.0,
        total_episodes=size["batch"] * steps,
        response_length=size["new"],
        num_sample_generations=0,
        local_rollout_forward_batch_size=size["batch"],
    )
    del given["max_steps"]
    scorer, critic = (
        transformers.GPT2ForSequenceClassification(configuration(size, num_labels=1))
        for _ in range(2)
    )
    train(
        PPOTrainer(
            args=PPOConfig(**given),
            processing_class=words,
            model=policy(size),
            ref_model=policy(size),
            reward_model=scorer,
            value_model=critic,
            train_dataset=datasets.Dataset.from_dict({"input_ids": ids}),
        ),
        clock,
    )


if __name__ == "__main__":
    task, size = sizes(sys.argv[1:])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        globals()[task](size, clock, folder)
    clock.report(task, f"TRL {trl.__version__}", size, torch=torch.__version__)
