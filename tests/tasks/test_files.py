"""Files of rows: what `datasets` writes is read, and faults are named with their row and line."""

import bz2
import gzip
import json
import lzma

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from minirlhf.tasks import load_by_name, named_prompts, pairs_from_file
from minirlhf.tasks.files import read_rows
from tests.tiny import tiny_tokenizer

ROWS = [
    {"prompt": "a film\n", "chosen": 'é, "two"', "rejected": "three\nlines"},
    {"prompt": "好看吗？", "chosen": "好看", "rejected": "\u2028 and \x85"},
]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


def zstd(path):
    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write(LINES)


def indexed_arrow(path):
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


WRITTEN = {
    "rows.jsonl": lambda path: Dataset.from_list(ROWS).to_json(path),
    "rows.ndjson": lambda path: path.write_bytes(LINES + b"\n\n"),
    "ROWS.JSONL": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
    "lines.json": lambda path: Dataset.from_list(ROWS).to_json(path),
    "list.json": lambda path: Dataset.from_list(ROWS).to_json(path, lines=False),
    "indented.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "data.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "train.json": lambda path: path.write_text(json.dumps({"train": ROWS}, indent=1)),
    "columns.json": lambda path: pd.DataFrame(ROWS).to_json(path),
    "index.json": lambda path: pd.DataFrame(ROWS).to_json(path, orient="index", indent=2),
    "split.json": lambda path: pd.DataFrame(ROWS).to_json(path, orient="split"),
    "table.json": lambda path: pd.DataFrame(ROWS).to_json(path, orient="table"),
    "lists.json": lambda path: path.write_text(json.dumps(pd.DataFrame(ROWS).to_dict("list"))),
    "semicolons.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, sep=";"),
    "tabs.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, sep="\t"),
    "commas.tsv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "rows.csv": lambda path: Dataset.from_list(ROWS).to_csv(path),
    "excel.CSV": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, encoding="utf-8-sig"),
    "index.csv": lambda path: pd.DataFrame(ROWS).to_csv(path),
    "rows.tsv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, sep="\t"),
    "rows.csv.gz": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "rows.parquet": lambda path: Dataset.from_list(ROWS).to_parquet(path),
    "indexed.arrow": indexed_arrow,
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "rows.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "ROWS.JSONL.XZ": lambda path: path.write_bytes(lzma.compress(LINES)),
    "rows.json.zst": zstd,
    "folder": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
    "splits": lambda path: DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_any_kind_gives_the_same_rows(name, tmp_path):
    WRITTEN[name](tmp_path / name)
    assert load_by_name(str(tmp_path / name)).to_list() == ROWS
    assert load_by_name(str(tmp_path / name), rows=1).to_list() == ROWS[:1]
    if name == "folder":
        (stream,) = (tmp_path / name).glob("*.arrow")
        assert load_by_name(str(stream)).to_list() == ROWS


def test_one_object_is_one_row_and_cells_may_be_very_long(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=1))
    assert read_rows(tmp_path / "one.json") == ROWS[:1]
    long = ROWS[0] | {"chosen": "x" * 200_000}  # the csv module alone stops at 131,072 letters
    pd.DataFrame([long]).to_csv(tmp_path / "long.csv", index=False)
    assert read_rows(tmp_path / "long.csv") == [long]
    (tmp_path / "mac.csv").write_bytes(b"prompt,chosen,rejected\ra,b,c\rd,e,f")
    assert [row["chosen"] for row in read_rows(tmp_path / "mac.csv")] == ["b", "e"]


def test_an_empty_cell_is_an_empty_text_in_every_kind_of_file(tmp_path):
    row, said = {"prompt": "a", "chosen": "", "rejected": "c"}, []
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\na,,c\n")
    for name in ("a.jsonl", "a.csv"):
        assert load_by_name(str(tmp_path / name), say=said.append).to_list() == [row]
        assert said[-1].endswith("\nUsed as well: an empty response: 1 row (1).")


def test_lists_in_one_object_are_columns_unless_they_are_turns(tmp_path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    shared = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for given, rows in (
        ({"messages": [talk, talk]}, [{"messages": talk}] * 2),
        ({"messages": talk}, [{"messages": talk}]),
        ({"conversations": shared, "tags": ["x", "y"]}, None),
        ({"prompt": {"text": "a"}, "completion": {"text": "b"}}, None),
        (
            {"columns": ["a", "b"], "data": ["c", "d"]},
            [{"columns": "a", "data": "c"}, {"columns": "b", "data": "d"}],
        ),
    ):
        (tmp_path / "a.json").write_text(json.dumps(given))
        assert read_rows(tmp_path / "a.json") == (rows or [given])


def table(tmp_path, **columns):
    """A Parquet file of two pairs, with further columns."""
    texts = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
    pyarrow.parquet.write_table(pyarrow.table(texts | columns), tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


BROKEN = {
    "no UTF-8": (pyarrow.array([b"good", b"\xff"]).view(pyarrow.string()), "'utf-8' codec can't"),
    "year 294247": (pyarrow.array([0, 2**63 - 1], pyarrow.timestamp("us")), "of type timestamp"),
    "no such zone": (pyarrow.array([None, 1], pyarrow.timestamp("s", "Mars/Crater")), "timestamp"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_value_of_a_table_that_cannot_be_read_matters_only_where_it_is_used(kind, tmp_path):
    column, why = BROKEN[kind]
    file = table(tmp_path, extra=column)
    assert load_by_name(file)["prompt"][:] == ["a", "b"]
    said = []
    prompts = named_prompts(file, tiny_tokenizer(), say=said.append)
    assert prompts.column_names == ["prompt", "chosen", "rejected", "row_of_file"]
    start = "Not given to a reward: a.parquet, row 2, column extra: the value cannot be read: "
    assert said[1].startswith(start) and why in said[1]
    texts = table(tmp_path, prompt=column)
    with pytest.raises(ValueError) as refused:
        load_by_name(texts)
    assert "column prompt: the value" in str(refused.value)
    if kind == "no UTF-8":
        assert str(refused.value).startswith("a.parquet, row 2, column prompt: the value cannot be")


@pytest.mark.parametrize("data", [["x"], [], [{"k": 1}]])
def test_a_column_may_have_the_name_of_a_list_of_rows(data, tmp_path):
    row = json.dumps(ROWS[0] | {"data": data})
    (tmp_path / "a.json").write_text(f"{row}\n{row}\n")
    assert load_by_name(str(tmp_path / "a.json")).to_list() == ROWS[:1] * 2
    if data != [{"k": 1}]:
        (tmp_path / "a.json").write_text(row)
        assert load_by_name(str(tmp_path / "a.json")).to_list() == ROWS[:1]


def test_a_line_that_is_no_row_is_refused_like_a_row(tmp_path):
    row = json.dumps(ROWS[0])
    (tmp_path / "a.jsonl").write_text(f"{row}\n{{\n[1]\n")
    with pytest.raises(ValueError) as error:
        load_by_name(str(tmp_path / "a.jsonl"))
    assert str(error.value).startswith("a.jsonl, row 2 is no JSON: ")
    assert str(error.value).endswith(
        "2 of 3 rows cannot be used. --skip-invalid leaves such rows out."
    )


def test_a_folder_has_a_name_where_its_path_has_none(tmp_path, monkeypatch):
    Dataset.from_list([ROWS[0] | {"chosen": None}]).save_to_disk(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(ValueError, match="^mine, row 1, column chosen: .*--skip-invalid leaves"):
        load_by_name(".")


@pytest.mark.parametrize("name", ["/", "", " ", "a" * 5000])
def test_a_name_that_can_name_no_dataset_is_refused(name):
    with pytest.raises(ValueError, match="^dataset is '.* of a file, or of a folder of data.$"):
        load_by_name(name)


def test_pairs_to_label_come_from_the_same_kinds_of_files(tmp_path):
    given = [{"prompt": "p", "response_a": "x", "response_b": "y"}]
    Dataset.from_list(given).to_parquet(tmp_path / "pairs.parquet")
    (tmp_path / "PAIRS.JSONL.gz").write_bytes(gzip.compress(json.dumps(given[0]).encode()))
    for name in ("pairs.parquet", "PAIRS.JSONL.gz"):
        (pair,) = pairs_from_file(tmp_path / name)
        assert {pair.left, pair.right} == {"x", "y"}


HEAD = b"prompt,chosen,rejected\n"
GOOD = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
FAULTS = {
    # the file's name and content -> what the sentence says besides the name
    ("a.jsonl", GOOD + b"\n" + b'{"prompt": }\n'): "row 2 is no JSON: Expecting value at "
    "character 12 of line 3",
    ("a.jsonl", GOOD + b"[1]\n"): "row 2 is no JSON object with columns, in line 2; a file that is "
    "one list must be named .json",
    ("a.jsonl", b"[\n" + GOOD + b"]"): "a file that is one list must be named .json",
    ("a.jsonl", b'{"prompt": "a", "prompt": "b"}'): "an object has the name 'prompt' twice, in "
    "line 1",
    ("a.jsonl", GOOD + b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"): "row 2 cannot be read "
    "as JSON: lists or objects are nested too deeply",
    ("a.jsonl", GOOD + b'{"prompt": "\xe9"}'): "line 2 is not UTF-8 at byte 13; save the file as",
    ("a.jsonl", GOOD.decode().encode("utf-16")): "it is UTF-16; save it as UTF-8",
    ("a.csv", HEAD.decode().encode("utf-16")): "it is UTF-16; save it as UTF-8",
    ("a.json", GOOD.decode().encode("utf-16-le")): "it is no text in UTF-8",
    ("a.jsonl", bytes(range(256))): "it is no text in UTF-8 (it holds bytes of zero)",
    ("a.jsonl", b"PAR1\x15\x04\x15"): "row 1 is no JSON: Expecting value at character 1 of line 1",
    ("a.json", b'[{"prompt": "a"},\n {"prompt": }]'): "Expecting value in line 2, character 13 "
    "(row 2)",
    ("a.json", b'[{"prompt": "a"} {}]'): "Expecting ',' or ']' in line 1, character 18 (after row",
    ("a.json", b'[{"prompt": "a"}] 7'): "Text after the list in line 1",
    ("a.json", b'[{"prompt": "a"}'): "Expecting ',' or ']'",
    ("a.json", b"[" * 5000 + b"]" * 5000): "row 1: nested too deeply",
    ("a.json", b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"): "nested too deeply",
    ("a.json", b'[{"prompt": "a"}, 3]'): "row 2 is no JSON object with columns",
    ("a.json", b"7"): "row 1 is no JSON object with columns",
    ("a.csv", HEAD + b'a,b,"c,d",e\n'): "row 1 (line 2) has 4 cells, and the first line names 3",
    ("a.csv", HEAD + b'a,b,c\na,"b,c\na,b,c\n'): "unexpected end of data, in row 2 (line 4)",
    ("a.csv", b"prompt,chosen,chosen,rejected\na,b,c,d\n"): "two columns have the name 'chosen'",
    ("a.csv", HEAD): "no rows",
    ("a.csv", HEAD + b"a,b\n"): "row 1, column rejected: the value is 'None', of type NoneType "
    "(null, or no cell)",
    (
        "a.csv",
        b"prompt;chosen\trejected\n",
    ): "its first line can be split at ';' and at '\\t'; save it with ',' between the cells",
    ("a.json", b'{"prompt": ["a", "b"], "completion": ["c"]}'): "it holds columns of different "
    "lengths (prompt 2, completion 1)",
    ("a.tsv", b"prompt\tchosen\trejected\na\tb\n"): "row 1, column rejected: the value is 'None'",
    ("a.json", b" \n"): "no rows",
    ("a.json", b"[ ]"): "no rows",
    ("a.jsonl", b""): "no rows",
    ("a.parquet", GOOD): "cannot be read: ",
    ("a.arrow", GOOD): "cannot be read: ",
    ("a.arrow", b""): "cannot be read: ",
    ("a.jsonl.gz", GOOD): "Not a gzipped file",
    ("a.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-12]): "Compressed file ended before",
    (
        "a.jsonl.gz",
        gzip.compress(GOOD, mtime=0)[:20] + b"xx" + gzip.compress(GOOD, mtime=0)[22:],
    ): "cannot be read",
    ("a.jsonl.bz2", GOOD): "cannot be read: ",
    ("a.jsonl.xz", GOOD): "cannot be read: ",
    ("a.jsonl.zst", GOOD): "cannot be read: ",
    ("a.txt", GOOD): "its name does not end in .jsonl, .ndjson, .json, .csv",
    ("a.zip", GOOD): "its name does not end in .jsonl",
}


@pytest.mark.parametrize("given", FAULTS, ids=[f"{k} {name}" for k, (name, _) in enumerate(FAULTS)])
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(given, tmp_path):
    name, content = given
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as refused:
        load_by_name(str(tmp_path / name))
    sentence = str(refused.value)
    assert FAULTS[given] in sentence and name in sentence and "\n" not in sentence


def test_folders_and_names_that_hold_no_rows_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    DatasetDict(test=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "damaged")
    next((tmp_path / "damaged").glob("*.arrow")).write_bytes(b"ARROW1")
    for name, said in (
        ("empty", "The folder .*empty' cannot be read: "),
        ("splits", r"has no split 'train', but test; give the folder of one, .*splits.test'"),
        ("damaged", "The folder .*damaged' cannot be read: "),
        ("missing.CSV", "No dataset .*missing.CSV': there is no such file; check the spelling"),
    ):
        with pytest.raises(ValueError, match=said):
            load_by_name(str(tmp_path / name))
    assert load_by_name(str(tmp_path / "splits"), split="test").to_list() == ROWS
    assert load_by_name(str(tmp_path / "splits" / "test")).to_list() == ROWS


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_what_follows_the_rows_asked_for_is_not_looked_at(ending, tmp_path):
    good, bad = {
        ".jsonl": (GOOD * 100, b"{"),
        ".json": (b"[" + b",".join([GOOD] * 100), b", {]"),
        ".csv": (HEAD + b"a,b,c\n" * 100, b'a,"b'),
    }[ending]
    (tmp_path / f"a{ending}").write_bytes(good + bad)
    assert len(load_by_name(str(tmp_path / f"a{ending}"), rows=100)) == 100
    with pytest.raises(ValueError, match="101"):
        load_by_name(str(tmp_path / f"a{ending}"), rows=101)


def test_a_fault_far_down_is_reported_with_its_own_number(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD * 20_000 + b"\n\n" + b"{nonsense\n" + GOOD)
    with pytest.raises(ValueError, match="row 20001 is no JSON: .* of line 20003"):
        load_by_name(str(tmp_path / "a.jsonl"))
    said = []
    found = load_by_name(str(tmp_path / "a.jsonl"), skip_invalid=True, say=said.append)
    assert len(found) == 20_001 and "20001 of 20002 rows" in said[0]
    assert "Left out: no row that can be read: 1 row (20001)" in said[0]
