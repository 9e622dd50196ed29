"""The whole of RLHF in one run: SFT, reward model and PPO, then DPO and GRPO, and an evaluation.

PPO, DPO and GRPO all start from the SFT model and are evaluated in the same way. Each stage writes
its checkpoint, metrics and settings to the folder of the run. A second run with the same settings
reuses them. An interrupted run continues with the step at which it stopped.
"""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from minirlhf import evaluate
from minirlhf.core.best_of_n import best_of_n_kl
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.family import GroupFormulas
from minirlhf.loops.formulas import identity
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.losses import DPOFormulas
from minirlhf.loops.ppo import PPOConfig, PPOFormulas, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, RewardFormulas, train_reward_model
from minirlhf.loops.sft import SFTConfig, SFTFormulas, train_sft
from minirlhf.models.adapters import Model, Policy
from minirlhf.models.forward import encode
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import fingerprint, load_policy, save_policy
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.bag_of_words import lexicon_judge, ridge_judge
from minirlhf.rewards.gold import ensemble_judge, ensemble_members, gold_judge
from minirlhf.rewards.model import (
    normalise_scores,
    rollout_judge,
    rollout_score,
    text_judge,
)
from minirlhf.runtime import History, OnStep, check_folder, write_text
from minirlhf.search.selection import best_index
from minirlhf.tasks import reviews
from minirlhf.tasks.agreement import human_ceiling
from minirlhf.tasks.formats import texts_once

SHOWN = 4  # responses of each model that the report shows token by token
POOL = 16  # SFT samples per prompt, shared by SFT, best-of-4 and best-of-16


@dataclass(frozen=True)
class TourConfig:
    """Settings of the tour: one seed for all stages, and a group of settings for each stage."""

    base: str = "tiny-reviews"
    seed: int = 0
    pairs: int = 40_000  # preference pairs from the reward films, one rating per snippet
    samples_per_prompt: int = 4  # of each trained policy, for every evaluation title
    split: str = "test"  # films of the evaluation titles; choose settings on val
    max_prompts: int = 1000  # evaluation titles at most; fewer in a reduced run
    accuracy_pairs: int = 3000  # held-out pairs, for the reward model's accuracy by rating gap
    sft: SFTConfig = SFTConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    dpo: DPOConfig = DPOConfig()
    grpo: GroupConfig = GroupConfig()

    @classmethod
    def reduced(cls) -> "TourConfig":
        """A few steps of every stage on a few titles.

        It takes a minute and shows that all stages work. The models learn nothing useful.
        """
        return cls(
            pairs=64,
            samples_per_prompt=2,
            max_prompts=4,
            accuracy_pairs=100,
            sft=SFTConfig(epochs=0.02),
            reward=RewardConfig(steps=3, batch_size=8),
            ppo=PPOConfig(steps=2, batch_size=8, minibatch_size=4),
            dpo=DPOConfig(steps=2, batch_size=8),
            grpo=GroupConfig(steps=2, prompts_per_step=2, minibatch_size=4),
        )

    def seeded(self, seed: int) -> "TourConfig":
        """The same settings with another seed in every stage."""
        groups = {
            name: replace(getattr(self, name), seed=seed)
            for name in ("sft", "reward", "ppo", "dpo", "grpo")
        }
        return replace(self, seed=seed, **groups)


@dataclass(frozen=True)
class TourFormulas:
    """The formulas of each stage; replace some to run the tour with your own."""

    sft: SFTFormulas = SFTFormulas()
    reward: RewardFormulas = RewardFormulas()
    ppo: PPOFormulas = PPOFormulas()
    dpo: DPOFormulas = DPOFormulas()
    grpo: GroupFormulas = GroupFormulas()


class Tour:
    """One run in one folder.

    `run` goes through the stages. Afterwards the results are attributes: `sft`, `reward_model`,
    `ppo`, `dpo`, `grpo` and `rows`, the table of methods.

    Args:
        folder: of the run.
        on_step: called with each row of metrics.
        formulas: the functions that the stages use; with other formulas a stage is another run.
        mine: which of them are a student's own, in words, for the report.
    """

    def __init__(
        self,
        folder: str | Path,
        config: TourConfig = TourConfig(),
        on_step: OnStep = lambda row: None,
        *,
        formulas: TourFormulas = TourFormulas(),
        mine: str = "",
    ) -> None:
        self.folder, self.config, self.on_step = Path(folder), config, on_step
        self.formulas, self.mine = formulas, mine
        self.times: dict[str, float] = {}

    def learn_reward(self) -> list[dict]:
        """Run the stages up to the reward model.

        Returns:
            Its accuracy on held-out pairs, one row per band of the rating gap.
        """
        self.base, self.tokenizer = load_policy(self.config.base)
        # 1. SFT: from a title to a review
        self.sft = self._policy(
            "sft",
            lambda on: train_sft(
                trainable(self.base),
                self.tokenizer,
                reviews.sft_dataset(self.tokenizer),
                self.config.sft,
                formulas=self.formulas.sft,
                **on,
            )[0],
        )
        # 2. reward model: pairs of snippets of one film, labelled by single human ratings
        self.reward_model = self._reward_model()
        self.reward_accuracy = self._stage(
            "accuracy", ("split", "accuracy_pairs"), self._accuracy, _load_json, _save_json
        )
        return self.reward_accuracy

    def run(self) -> list[dict]:
        """Run all stages.

        Returns:
            The table of methods, one row each. Scores are paired by prompt.
        """
        config, rl_prompts = self.config, reviews.rl_prompts()
        self.learn_reward()
        score, gold = (
            rollout_score(self.reward_model, self.tokenizer.eos_token_id),
            rollout_judge(gold_judge(), self.tokenizer),
        )
        # 3. PPO, DPO, GRPO: all start from the SFT model, which is also their reference policy
        start = {"reference": self.sft}
        self.ppo = self._policy(
            "ppo",
            lambda on: train_ppo(
                trainable(self.sft),
                trainable(self.reward_model),
                self.tokenizer,
                rl_prompts,
                score,
                config.ppo,
                formulas=self.formulas.ppo,
                monitors={"gold": gold},
                **start,
                **on,
            )[0],
        )
        self.dpo = self._policy(
            "dpo",
            lambda on: train_dpo(
                trainable(self.sft),
                self.tokenizer,
                self._pairs(config.dpo.max_response),
                config.dpo,
                formulas=self.formulas.dpo,
                **start,
                **on,
            )[0],
        )
        self.grpo = self._policy(
            "grpo",
            lambda on: train_group(
                trainable(self.sft),
                self.tokenizer,
                rl_prompts,
                score,
                config.grpo,
                formulas=self.formulas.grpo,
                monitors={"gold": gold},
                **start,
                **on,
            )[0],
        )
        # 4. evaluate all methods on titles of held-out films
        settings = ("ppo", "dpo", "grpo", "split", "samples_per_prompt", "max_prompts")
        self.rows = self._stage("evaluation", settings, self._evaluate, _load_json, _save_json)
        history = History(
            row
            for stage in ("sft", "reward", "ppo", "dpo", "grpo")
            for row in History.load(self.folder / f"{stage}.jsonl")
        )
        history.save(self.folder / "metrics.jsonl")
        self.history = history
        return self.rows

    def _policy(self, name: str, train: Callable[[dict], PreTrainedModel]) -> PreTrainedModel:
        """The policy of one stage, trained or loaded."""

        def made(checkpoint: Checkpoint) -> PreTrainedModel:
            history = History()
            model = train({"history": history, "on_step": self.on_step, "checkpoint": checkpoint})
            history.save(self.folder / f"{name}.jsonl")
            return model.eval().requires_grad_(False)

        def load(path: Path) -> PreTrainedModel:
            return load_policy(path)[0].requires_grad_(False)

        return self._stage(
            name, (name,), made, load, lambda model, path: save_policy(model, self.tokenizer, path)
        )

    def _reward_model(self) -> ScalarModel:
        """The reward model, trained and normalised or loaded."""

        def made(checkpoint: Checkpoint) -> ScalarModel:
            backbone, history = trainable(self.sft.base_model), History()
            model, _ = train_reward_model(
                backbone,
                self.tokenizer,
                self._pairs(self.config.reward.max_response),
                self.config.reward,
                formulas=self.formulas.reward,
                history=history,
                on_step=self.on_step,
                checkpoint=checkpoint,
            )
            history.save(self.folder / "reward.jsonl")
            samples = sample_text(
                self.sft, self.tokenizer, reviews.rl_prompts()[:256], seed=self.config.seed
            )
            return (
                normalise_scores(model, samples, self.tokenizer.eos_token_id)
                .eval()
                .requires_grad_(False)
            )

        def save(model: ScalarModel, path: Path) -> None:
            model.save(path, self.tokenizer, dtype=torch.float32)

        return self._stage(
            "reward",
            ("reward", "pairs"),
            made,
            lambda path: ScalarModel.load(path).requires_grad_(False),
            save,
        )

    def _pairs(self, max_tokens: int) -> Dataset:
        """Preference pairs of the reward films, responses of at most max_tokens tokens."""
        return reviews.preference_pairs(
            "reward",
            self.config.pairs,
            seed=self.config.seed,
            max_tokens=max_tokens,
            tokenizer=self.tokenizer,
        )

    def _evaluate(self, _: Checkpoint) -> list[dict]:
        """The table of methods: one row per method, with its responses."""
        prompts = reviews.eval_prompts(self.config.split)[: self.config.max_prompts]
        proxy = text_judge([self.reward_model], self.tokenizer)
        judges = {
            "gold": gold_judge(),
            "proxy": proxy,
            "ensemble": ensemble_judge(),
            "lexicon": lexicon_judge(),
        }
        draw: dict[str, Any] = {"reference": self.sft, "seed": 1000 + self.config.seed}
        pool = evaluate.draw(self.sft, self.tokenizer, prompts, samples_per_prompt=POOL, **draw)
        chosen = proxy(pool.prompts, pool.texts)
        every = {"SFT": pool}
        for n in (4, 16):
            every[f"best-of-{n}"] = pool.select(best_index(chosen, n), kl=best_of_n_kl(n))
        for name in ("PPO", "DPO", "GRPO"):
            every[name] = evaluate.draw(
                getattr(self, name.lower()),
                self.tokenizer,
                prompts,
                samples_per_prompt=self.config.samples_per_prompt,
                **draw,
            )
        rows = [
            {
                "method": name,
                **evaluate.summary(samples, judges),
                "texts": samples.texts,
                "prompts": samples.prompts,
            }
            for name, samples in every.items()
        ]
        for row in rows:
            row["seconds"] = self.times.get(row["method"].lower(), 0.0)
        return rows

    def _accuracy(self, _: Checkpoint) -> list[dict]:
        """Accuracy of the reward model on held-out pairs, one row per band of the rating gap.

        For comparison each row has the ceiling of human agreement and a bag-of-words model fitted
        on the same films.
        """
        drawn = reviews.preference_pairs(self.config.split, self.config.accuracy_pairs, seed=17)[:]
        gap = torch.tensor(drawn["gap"], device="cpu")
        every = reviews.pairs_within_films(self.config.split)
        judges = {
            "reward model": text_judge([self.reward_model], self.tokenizer),
            "bag of words": ridge_judge("reward"),
        }
        prompts, texts, chosen, rejected = texts_once(drawn)
        scores = {name: judge(prompts, texts) for name, judge in judges.items()}
        margins = {name: x[chosen] - x[rejected] for name, x in scores.items()}
        # probability of its own choice; for a calibrated model the mean equals the accuracy
        sure, rows = torch.sigmoid(margins["reward model"].abs() * self.reward_model.scale), []
        for low, high in (*reviews.GAP_BANDS, (0.0, 8.0)):
            here = (low <= gap) & (gap < high)
            rows.append(
                {
                    "low": low,
                    "high": high,
                    **{name: (m[here] > 0).float().mean().item() for name, m in margins.items()},
                    "mean probability": sure[here].mean().item(),
                    "human ceiling": human_ceiling(every, low, high),
                }
            )
        return rows

    def _replaced(self, stages: set[str]) -> dict[str, dict[str, str]]:
        """The formulas of these stages that were replaced; nothing for the package's own.

        A formula without a source cannot be compared with that of another run, so it always counts
        as a new one.
        """
        replaced = {
            f"{stage} {name}": source or f"of unknown source, started {time.time()}"
            for stage in sorted(stages & {f.name for f in fields(self.formulas)})
            for name, source in identity(getattr(self.formulas, stage)).items()
        }
        return {"formulas": replaced} if replaced else {}

    def _stage(
        self, name: str, needed: tuple[str, ...], make: Callable, load: Callable, save: Callable
    ) -> Any:
        """The result of a stage: loaded if a run with the same settings left it, else made.

        A new result is saved with its settings and its time.

        Args:
            name: of the stage and of its files.
            needed: settings that the result depends on, besides those of earlier stages.
            make, load, save: checkpoint -> result; path -> result; (result, path) -> None.
        """
        path, note, partial = (
            self.folder / f"{name}{end}" for end in ("", ".json", ".training.safetensors")
        )
        needs = {"sft": (), "reward": ("sft",)}.get(name, ("sft", "reward"))
        settings = {
            key: value
            for key, value in asdict(self.config).items()
            if key in ("base", "seed", "pairs", *needs, *needed)
        }
        settings["weights"] = fingerprint(
            self.config.base, *(ensemble_members() if name == "evaluation" else ())
        )
        settings |= self._replaced({name, *needs, *needed})
        settings = json.loads(json.dumps(settings))  # as it is when read back from the file
        if path.is_dir():
            check_folder(path)
        known = json.loads(note.read_text()) if note.exists() else {}
        if known.get("settings") != settings:
            partial.unlink(missing_ok=True)  # left by a run with other settings
        elif known["seconds"] is not None and path.exists():
            self.times[name] = known["seconds"]
            return load(path)
        write_text(
            note, json.dumps({"settings": settings, "seconds": None})
        )  # None: started, not finished
        started = time.time()
        with Checkpoint(partial, resume=True) as checkpoint:
            result = make(checkpoint)
        self.times[name] = time.time() - started + checkpoint.earlier
        save(result, path)
        write_text(note, json.dumps({"settings": settings, "seconds": self.times[name]}))
        checkpoint.remove()
        return result


def trainable(model: Model) -> Model:
    """A copy of a model with all parameters trainable. The original is not changed."""
    return copy.deepcopy(model).requires_grad_(True)


def _save_json(value: object, path: Path) -> None:
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value))


def _load_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_tour_report(run: Tour, path: Path, recorded: list[dict] | None = None) -> Path:
    """Write report.html of a finished tour and return its path.

    The report shows training curves, the table of methods, samples side by side (not selected by
    score), and the first responses of SFT and PPO token by token.

    Args:
        recorded: rows of an earlier tour over several seeds, shown beside the table of this run.
    """
    from minirlhf.show.report import write_report

    first = {
        row["method"]: evaluate.first_samples(row["prompts"], row["texts"], 12) for row in run.rows
    }
    gold, shown = gold_judge(), ("SFT", "PPO", "DPO", "GRPO")
    samples = []
    for prompt in first["SFT"]:
        texts = {m: first[m][prompt] for m in shown}
        scores = dict(
            zip(texts, gold([prompt] * len(texts), list(texts.values())).tolist(), strict=True)
        )
        samples.append({"prompt": prompt.strip(), "columns": texts, "golds": scores})
    write_report(
        path,
        title="A tour of RLHF",
        history=run.history,
        methods=run.rows,
        recorded=recorded,
        samples=samples,
        tokens={
            method: _token_table(run, model, samples[:SHOWN], method)
            for method, model in (("SFT", run.sft), ("PPO", run.ppo))
        },
        times=run.times,
        accuracy=run.reward_accuracy,
        environment={
            "seed": run.config.seed,
            "split": run.config.split,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        | ({"yours": run.mine} if run.mine else {}),
    )
    return path


def _token_table(run: Tour, model: Policy, samples: list[dict], method: str) -> pd.DataFrame:
    """The token table of a method's samples, read by its own model."""
    sampling = run.config.ppo.sampling
    batch = encode(
        run.tokenizer,
        [sample["prompt"] + "\n" for sample in samples],
        [sample["columns"][method] for sample in samples],
        max_response=sampling.max_new_tokens,  # a response that was cut off has no EOS
    )
    eos_id = run.tokenizer.eos_token_id
    cut = run.config.ppo.missing_eos_penalty * ~batch.finished(eos_id)
    scores = rollout_score(run.reward_model, eos_id)(batch) - cut  # as PPO pays
    return evaluate.token_table(
        batch.with_columns(scores=scores),
        run.tokenizer,
        actor=model,
        reference=run.sft,
        reward_model=run.reward_model,
        temperature=sampling.temperature,
        kl_coef=run.config.ppo.kl.kl_coef,
    )
