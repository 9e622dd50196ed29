"""Lesson 12: the loss of direct preference optimisation."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.preference import dpo


def _dpo_case(g):
    chosen, rejected, ref_chosen, ref_rejected = -30 * torch.rand(4, 5, generator=g)
    chosen[0], rejected[0] = -3000.0, 0.0  # far apart, and wrong
    return chosen, rejected, ref_chosen, ref_rejected, 0.05 + torch.rand((), generator=g).item()


def _dpo(chosen, rejected, ref_chosen, ref_rejected, beta):
    return dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)


dpo_loss = Exercise(
    "dpo_loss", ("chosen_logprobs", "rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs", "beta"), _dpo_case, _dpo,
    {"log(sigmoid(x)) is minus infinity where x is very negative: use logsigmoid.":
         lambda c, r, rc, rr, b: -torch.sigmoid(b * (c - rc - r + rr)).log(),
     "chosen and rejected are exchanged: this makes rejected texts likelier.": lambda c, r, rc, rr, b: _dpo(r, c, rr, rc, b),
     "the reference's log-ratio has the wrong sign: policy minus reference, for each text.":
         lambda c, r, rc, rr, b: _dpo(c, r, -rc, -rr, b),
     "the reference is missing: without it the loss only pulls the two texts apart.":
         lambda c, r, rc, rr, b: _dpo(c, r, 0 * rc, 0 * rr, b),
     "beta is missing.": lambda c, r, rc, rr, b: _dpo(c, r, rc, rr, 1.0),
     "beta multiplies the loss; it belongs inside the sigmoid.": lambda c, r, rc, rr, b: b * _dpo(c, r, rc, rr, 1.0),
     "divided by beta; the implicit reward is beta times the log-ratio.": lambda c, r, rc, rr, b: _dpo(c, r, rc, rr, 1 / b),
     "the sign: a loss is minus the log-probability.": lambda c, r, rc, rr, b: -_dpo(c, r, rc, rr, b)},
    differentiate=("chosen_logprobs", "rejected_logprobs"))
