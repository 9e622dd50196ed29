"""Every tensor says where it lives: runs whose default device is another one than the model's.

With `torch.device("meta")` as the default device, a tensor that is made without naming a device has
no values. The models are on the CPU. So a run under this default gives the ordinary run's numbers,
bit for bit, only if every tensor names its device or takes it from an input. (Whole computations on
"meta" raise no error, so the numbers are compared.)
"""

import pytest
import torch

from minirlhf.runtime import device_named, use_device
from tests import histories

LEFT_OUT = ("tour", "micro-batches")  # the tour is made of such runs; one with micro-batches is in
RUNS = {
    name: run
    for name, run in histories.runs()
    if not any(words in name for words in LEFT_OUT) or name == "ppo, micro-batches"
}


def on_the_cpu(make):
    """The same function, which makes its model on the CPU whatever the default device is."""

    def made(*given, **named):
        with torch.device("cpu"):
            return make(*given, **named)

    return made


@pytest.mark.parametrize("name", RUNS)
def test_a_run_does_not_depend_on_the_default_device(name, monkeypatch):
    expected = RUNS[name]()
    for maker in ("tiny_policy", "ending_policy"):
        monkeypatch.setattr(histories, maker, on_the_cpu(getattr(histories, maker)))
    with torch.device("meta"):
        assert RUNS[name]() == expected


@pytest.fixture
def the_cpu_again():
    yield
    use_device("cpu")


def test_the_names_of_devices(monkeypatch, the_cpu_again):
    assert device_named() == torch.device("cpu") == device_named("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device is 'cuda'; it must be one that torch finds"):
        use_device("cuda")
    with pytest.raises(ValueError, match="device is 'gpu'; it must be cpu, cuda, mps or auto"):
        device_named("gpu")
    assert device_named() == torch.device("cpu")  # a refused name changes nothing
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named("auto") == device_named("cuda") == torch.device("cuda")
    assert device_named("cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert use_device("auto") == device_named() == torch.device("mps")
