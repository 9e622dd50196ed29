"""Lesson 11: a response against the others of its prompt."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.baselines import group_relative


def _group_case(g):
    scores = 2 * torch.randn(4, 3, generator=g)
    scores[1] = 0.1  # nobody did better than another; 0.1 has no exact mean in binary
    return (scores,)


group_advantages = Exercise(
    "group_advantages", ("group_scores",), _group_case, group_relative,
    {"the mean and std of the whole batch: a hard prompt's responses then all look bad. A group is a row.":
         lambda s: (s - s.mean()) / (s.std() + 1e-4),
     "mean and std run over the prompts (axis 0); the samples of one prompt are a row.": lambda s: (s - s.mean(0)) / (s.std(0) + 1e-4),
     "centred, not divided by the std: Dr. GRPO's advantage; GRPO divides.": lambda s: group_relative(s, scale_by_std=False),
     "the std divides by G; `torch.std` divides by G - 1, and so does this exercise.": lambda s: group_relative(s, unbiased=False),
     "divided by the variance.": lambda s: (s - s.mean(1, keepdim=True)) / (s.var(1, keepdim=True) + 1e-4),
     "the baseline is the mean of the *others*: RLOO's; GRPO's mean includes the response.":
         lambda s: (s - (s.sum(1, keepdim=True) - s) / 2) / (s.std(1, keepdim=True) + 1e-4),
     "the mean is missing: every response of a good prompt would be praised.": lambda s: s / (s.std(1, keepdim=True) + 1e-4)})
