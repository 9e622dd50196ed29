"""Training: one file per algorithm family. Comments number the steps of most loops."""

from minirlhf.loops.actor_critic import ActorCritic
from minirlhf.loops.checkpoint import Checked, Checkpoint, Stopped
from minirlhf.loops.common import (
    clipped_step,
    linear_decay,
    make_optimizer,
    micro_batches,
    nothing_learned,
    set_dropout,
    set_learning_rate,
    shuffled_batches,
)
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.family import FAMILY, Algorithm, GroupFormulas
from minirlhf.loops.gold import GoldConfig, train_gold
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.lengths import row_lengths
from minirlhf.loops.losses import LOSSES, Answers, DPOFormulas, Loss
from minirlhf.loops.online import ONLINE, OnlineConfig, pairs_of, train_online
from minirlhf.loops.ppo import PPOConfig, PPOFormulas, train_ppo
from minirlhf.loops.preference import (
    DPOConfig,
    preference_step,
    reference_for,
    sync,
    train_dpo,
)
from minirlhf.loops.pretrain import PretrainConfig, new_gpt2, train_base, train_tokenizer
from minirlhf.loops.process_reward import PRMConfig, judged_prm, train_prm
from minirlhf.loops.reward import (
    RewardConfig,
    RewardFormulas,
    comparison_batches,
    distinct_texts,
    text_scores,
    train_reward_model,
)
from minirlhf.loops.row_report import RowReport
from minirlhf.loops.rows import check_tokens, fit_rows
from minirlhf.loops.sft import SFTConfig, SFTFormulas, train_sft
from minirlhf.loops.step_dpo import StepDPOConfig, StepJudge, step_pairs, train_step_dpo
from minirlhf.loops.step_labels import continuation_labels
from minirlhf.loops.verifier import VerifierConfig, prefix_logits, train_verifier

__all__ = [
    "ActorCritic",
    "Algorithm",
    "Answers",
    "Checked",
    "Checkpoint",
    "DPOConfig",
    "DPOFormulas",
    "FAMILY",
    "GoldConfig",
    "GroupConfig",
    "GroupFormulas",
    "KLConfig",
    "LOSSES",
    "Loss",
    "ONLINE",
    "OnlineConfig",
    "OptimiserConfig",
    "PPOConfig",
    "PPOFormulas",
    "PRMConfig",
    "PretrainConfig",
    "RewardConfig",
    "RewardFormulas",
    "RowReport",
    "SFTConfig",
    "SFTFormulas",
    "StepDPOConfig",
    "StepJudge",
    "Stopped",
    "VerifierConfig",
    "check_tokens",
    "clipped_step",
    "comparison_batches",
    "continuation_labels",
    "distinct_texts",
    "fit_rows",
    "judged_prm",
    "linear_decay",
    "make_optimizer",
    "micro_batches",
    "new_gpt2",
    "nothing_learned",
    "pairs_of",
    "preference_step",
    "prefix_logits",
    "reference_for",
    "row_lengths",
    "set_dropout",
    "set_learning_rate",
    "shuffled_batches",
    "step_pairs",
    "sync",
    "text_scores",
    "train_base",
    "train_dpo",
    "train_gold",
    "train_group",
    "train_online",
    "train_ppo",
    "train_prm",
    "train_reward_model",
    "train_sft",
    "train_step_dpo",
    "train_tokenizer",
    "train_verifier",
]
