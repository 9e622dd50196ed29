# ruff: noqa: F401  (notebooks use these names)
"""The checkers of all exercises, one per exercise.

`check.eos_mask(your_function)` returns a Result: "pass", or "not yet" with the likely mistake.
"""

from minirlhf.classroom.exercise import CASES, Exercise, Result
from minirlhf.classroom.lessons.lesson_00 import best_of_n, kl_penalised_score
from minirlhf.classroom.lessons.lesson_01 import (
    eos_mask,
    imitation_loss,
    reward_pushes,
    score_of_text,
    two_measures,
)
from minirlhf.classroom.lessons.lesson_02 import (
    held_out_pairs,
    interval_alpha,
    label_ceiling,
    share_preferring,
)
from minirlhf.classroom.lessons.lesson_03 import (
    draw_word,
    sft_loss,
    token_logprobs,
    v_and_q,
    word_advantages,
)
from minirlhf.classroom.lessons.lesson_04 import (
    baseline_loss,
    policy_gradient_loss,
    returns_to_go,
)
from minirlhf.classroom.lessons.lesson_05 import (
    best_lambda,
    critic_loss,
    critic_targets,
    gae_advantages,
    n_step_advantages,
    td_error,
)
from minirlhf.classroom.lessons.lesson_06 import clipped_share, ppo_loss, pull_back_loss
from minirlhf.classroom.lessons.lesson_06_step import watch_updates, whole_step
from minirlhf.classroom.lessons.lesson_06b import three_methods, three_runs
from minirlhf.classroom.lessons.lesson_07 import (
    coefficient_for_kl,
    gibbs_logprobs,
    kl_shaped_rewards,
    missing_weights,
    penalty_loss,
)
from minirlhf.classroom.lessons.lesson_08 import (
    best_of_k_loss,
    bradley_terry_loss,
    calibrate,
    in_sft_units,
    read_score,
)
from minirlhf.classroom.lessons.lesson_09 import (
    explained_by_position,
    four_models,
    paired_standard_error,
    score_rewards,
)
from minirlhf.classroom.lessons.lesson_10 import (
    adapted_layer,
    model_bytes,
    rloo_advantages,
)
from minirlhf.classroom.lessons.lesson_11 import (
    colleagues_loss,
    group_advantages,
    grpo_loss,
    gspo_loss,
    kept_groups,
    pass_at_k,
)
from minirlhf.classroom.lessons.lesson_11_verdicts import six_verdicts
from minirlhf.classroom.lessons.lesson_11b import interval_over_seeds, six_comparisons
from minirlhf.classroom.lessons.lesson_12 import (
    dpo_loss,
    dpo_of_a_batch,
    optimum_of_pairs,
    order_and_displacement,
    reward_from_policy,
)
from minirlhf.classroom.lessons.lesson_13 import (
    blame_shares,
    prefix_values,
    soft_value,
    state_value,
)
from minirlhf.classroom.lessons.lesson_14 import (
    gold_above_curve,
    gradient_of_pairs,
    ipo_of_votes,
    orpo_loss,
    simpo_loss,
    slopes_of_a_pair,
)
from minirlhf.classroom.lessons.lesson_14b import lead_in_draw
from minirlhf.classroom.lessons.lesson_15 import (
    luck_of_a_result,
    mask_of,
    turn_log_ratio,
)
from minirlhf.classroom.lessons.lesson_15_turns import take_turns
from minirlhf.classroom.lessons.lesson_15b import (
    loss_of_labelled_steps,
    pairs_of,
    progress_of_steps,
    steps_read,
)
from minirlhf.classroom.lessons.lesson_16 import (
    best_of_n_gold,
    distance,
    early_stop,
    kept_probs,
    peak_of_rl,
)

EXERCISES = {name: value for name, value in globals().items() if isinstance(value, Exercise)}
__all__ = [
    "CASES",
    "EXERCISES",
    "Exercise",
    "Result",
    "six_comparisons",
    "six_verdicts",
    "take_turns",
    "three_methods",
    "three_runs",
    "watch_updates",
    "whole_step",
    *EXERCISES,
]
