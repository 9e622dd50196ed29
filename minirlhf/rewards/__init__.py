"""What scores a response: reward models, verifiable rules, your own functions, and judges."""

from minirlhf.rewards.answer_numbers import parse_number
from minirlhf.rewards.answers import answer_reward, extract_answer, same_answer
from minirlhf.rewards.bag_of_words import lexicon_judge, ridge_judge
from minirlhf.rewards.function import reward_function, weighted
from minirlhf.rewards.gold import correlation, ensemble_judge, ensemble_members, gold_judge
from minirlhf.rewards.model import (
    Judge,
    end_with_eos,
    ensemble_score,
    normalise_scores,
    prefix_scores,
    rollout_judge,
    rollout_score,
    text_judge,
)
from minirlhf.rewards.process import process_score
from minirlhf.rewards.rules import right_answer, right_steps, right_with_calculator
from minirlhf.rewards.symbolic import same_symbolic_answer, symbolic_answer_reward

__all__ = [
    "Judge",
    "answer_reward",
    "correlation",
    "end_with_eos",
    "ensemble_judge",
    "ensemble_members",
    "ensemble_score",
    "extract_answer",
    "gold_judge",
    "lexicon_judge",
    "normalise_scores",
    "parse_number",
    "prefix_scores",
    "process_score",
    "reward_function",
    "ridge_judge",
    "right_answer",
    "right_steps",
    "right_with_calculator",
    "rollout_judge",
    "rollout_score",
    "same_answer",
    "same_symbolic_answer",
    "symbolic_answer_reward",
    "text_judge",
    "weighted",
]
