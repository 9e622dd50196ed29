"""Random rows, settings, numbers and texts: each is used, or refused with one sentence."""

import dataclasses
import html.parser
import json
import math
import typing

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minirlhf import loops, models, show
from minirlhf.tasks import load_by_name
from tests.core.test_extremes import CALLED, check_function
from tests.core.test_odd_input import check_with_odd_arguments
from tests.tiny import tiny_tokenizer

MANY = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Rows of a file

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=8))
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": SCALARS})
VALUES = st.one_of(st.text(min_size=1, max_size=8), SCALARS, st.lists(TURN, max_size=3))
NAMES = ["prompt", "chosen", "rejected", "completion", "label", "messages", "text", "other"]
ROWS = st.lists(
    st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=4), min_size=1, max_size=4
)
PAIRS = st.lists(
    st.fixed_dictionaries({name: VALUES for name in ("prompt", "chosen", "rejected")}),
    min_size=1,
    max_size=3,
)

SAID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": SAID}),
    min_size=1,
    max_size=3,
)
GOOD = st.one_of(
    *(
        st.lists(st.fixed_dictionaries({name: kind for name in names}), min_size=1, max_size=3)
        for kind in (SAID, TURNS)
        for names in (("prompt", "completion"), ("prompt", "chosen", "rejected"), ("messages",))
    )
)

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_file_of_random_rows_is_read_or_refused_in_one_sentence(tmp_path, record_property):
    outcomes, tokenizer = [], tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE

    @MANY
    @given(st.one_of(ROWS, PAIRS, GOOD), st.binary(max_size=3), st.integers(0, 9))
    def holds(rows, noise, where):
        lines = [json.dumps(row).encode() for row in rows]
        if where < len(lines):  # damage one line in some of the files
            lines[where] = lines[where][: len(lines[where]) // 2] + noise
        file = tmp_path / "rows.jsonl"
        file.write_bytes(b"\n".join(lines))
        try:
            found = load_by_name(str(file), tokenizer)
        except ValueError as error:
            assert 0 < len(str(error)) < 600 and "\n" not in str(error)
            outcomes.append("refused")
            return
        assert isinstance(found, Dataset) and len(found)
        for name in {"prompt", "chosen", "rejected", "completion"} & set(found.column_names):
            assert all(isinstance(text, str) for text in found[name])
        outcomes.append("read")

    holds()
    read, refused = outcomes.count("read"), outcomes.count("refused")
    assert read > 10 and refused > 10
    record_property("files of random rows", f"{read} read, {refused} refused")


# Settings

CONFIGS = [
    loops.DPOConfig,
    loops.GroupConfig,
    loops.KLConfig,
    loops.OptimiserConfig,
    loops.PPOConfig,
    loops.RewardConfig,
    loops.SFTConfig,
    models.SamplingConfig,
]
NUMBERS = (-1.0, 0.0, 1e-9, 0.5, 1.0, 2.0, 1e9, math.inf, -math.inf, math.nan)


def values_of(hint):
    """Values of a field's type: usual ones and impossible ones. None: not a number or a bool."""
    if typing.get_origin(hint) is tuple:
        return None
    kinds = {*typing.get_args(hint), hint}
    if int in kinds and float not in kinds:
        return st.one_of(st.integers(-2, 70), *([st.none()] if type(None) in kinds else []))
    if float in kinds:
        return st.one_of(st.sampled_from(NUMBERS), *([st.none()] if type(None) in kinds else []))
    return st.booleans() if hint is bool else None


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_random_settings_are_taken_or_refused_in_one_sentence(config, record_property):
    hints = typing.get_type_hints(config)
    fields = {f.name: values_of(hints[f.name]) for f in dataclasses.fields(config)}
    fields = {name: values for name, values in fields.items() if values is not None}
    outcomes = []

    @MANY
    @given(st.fixed_dictionaries({}, optional=fields))
    def holds(drawn):
        try:
            made = config(**drawn)
        except ValueError as error:
            assert any(name in str(error) for name in fields) and "\n" not in str(error)
            outcomes.append("refused")
            return
        outcomes.append("taken")
        numbers = [getattr(made, name) for name in fields]
        assert not any(isinstance(x, float) and math.isnan(x) for x in numbers)

    holds()
    assert outcomes.count("taken") > 5 and outcomes.count("refused") > 5
    record_property(
        f"{config.__name__} of random settings",
        f"{outcomes.count('taken')} taken, {outcomes.count('refused')} refused",
    )


# Formulas and texts


@pytest.mark.parametrize("name", CALLED)
def test_a_function_of_core_gives_no_nan_or_raises_a_value_error(name):
    check_function(name, examples=600, derandomize=False)


@pytest.mark.parametrize("name", CALLED)
def test_an_odd_argument_among_random_ones_gives_a_defined_number_or_a_sentence(name):
    check_with_odd_arguments(name, examples=600)


class Tags(html.parser.HTMLParser):
    """The elements, their attributes, and the text of a piece of HTML."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.texts = set(), set(), []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["<script>alert(1)</script>", '" onclick="x', "</span>", "&lt;", "\u202e", "\x00"]
    ),
)


@MANY
@given(st.lists(HOSTILE, min_size=1, max_size=6))
def test_no_text_becomes_html(tokens):
    harmless = Tags(show.token_strip_html(["word"] * len(tokens), [0.5] * len(tokens)))
    page = Tags(show.token_strip_html(tokens, [0.5] * len(tokens)))
    assert page.elements == harmless.elements and page.attributes == harmless.attributes
