"""Loading and comparing models, and the names that the room exports."""

import copy
import inspect

import pytest
import torch

from minirlhf import models
from minirlhf.models.load import same_weights
from tests.models.test_adapters import tiny_llama
from tests.tiny import tiny_policy


def next_float(p):
    p.view(-1)[3] = torch.nextafter(p.view(-1)[3], torch.tensor(float("inf")))


def sign_of_zero(p):
    p.view(-1)[3] = -0.0


@pytest.mark.parametrize("change", [next_float, sign_of_zero])
def test_same_weights_detects_a_change_of_one_bit(change):
    a = tiny_policy()
    with torch.no_grad():
        a.transformer.ln_f.bias[3] = 0.0
        a.transformer.ln_f.bias[4] = torch.nan
    b = copy.deepcopy(a)
    assert same_weights(a, b)  # NaN included
    with torch.no_grad():
        change(b.transformer.ln_f.bias)
    assert not same_weights(a, b)


def test_same_weights_compares_names_shapes_and_types():
    model = tiny_policy()
    assert not same_weights(model, tiny_policy(seed=1))
    assert not same_weights(model, tiny_policy(width=64))
    assert not same_weights(model, tiny_llama())
    assert not same_weights(torch.nn.Linear(1, 2), torch.nn.Linear(1, 2, bias=False))
    row, column = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        row.weight.fill_(1.0), column.weight.fill_(1.0)
    assert not same_weights(row, column)
    zeros = torch.nn.Linear(2, 2).requires_grad_(False)
    torch.nn.init.zeros_(zeros.weight), torch.nn.init.zeros_(zeros.bias)
    assert not same_weights(zeros, copy.deepcopy(zeros).to(torch.bfloat16))


def test_the_package_exports_no_modules():
    for name in models.__all__:
        assert not inspect.ismodule(getattr(models, name)), name
    assert models.load_policy is models.load.load_policy
