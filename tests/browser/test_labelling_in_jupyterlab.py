"""The labelling widget in a real JupyterLab, with its own keys and its own kernel."""

import nbformat
import pytest

from minirlhf.tasks import read_labels
from tests.browser.jupyterlab import jupyterlab, wait

pytestmark = pytest.mark.browser

CODE = """
from minirlhf import show, tasks
pairs = [tasks.Pair("the film\\n", text, "dull", 2.0, -1.0) for text in ("one", "two", "three", "four")]
show.label_pairs(tasks.LabelSession(pairs, "anna.jsonl", "anna"))
"""


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves a notebook in `tmp_path`."""
    cells = [nbformat.v4.new_code_cell(CODE, id="first"), nbformat.v4.new_code_cell("", id="last")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "label.ipynb")
    with jupyterlab(tmp_path, f"--notebook-dir={tmp_path}") as url:
        yield url


def test_clicks_and_keys_in_jupyterlab_are_in_the_file(lab, browser, tmp_path):
    file = tmp_path / "anna.jsonl"
    browser.driver.get(lab + "doc/tree/label.ipynb?reset")
    wait(lambda: "| Idle" in browser.one("body").text)
    wait(lambda: browser.all(".jp-Cell .cm-content"))[0].click()
    browser._actions().key_down("\ue008").send_keys("\ue007").key_up("\ue008").perform()
    texts = lambda: [text.text for text in browser.all(".minirlhf-label .text")]
    said = lambda: browser.one(".minirlhf-label .count").text
    wait(texts)
    assert texts() == ["one", "dull"]
    browser.one("[data-action=right]").click()
    wait(lambda: said() == "1 of 4 labelled")
    for done, key in ((2, "1"), (3, "0"), (2, "u"), (3, "2"), (4, "s")):
        browser._actions().send_keys(key).perform()
        wait(lambda done=done: said() == f"{done} of 4 labelled")
    assert read_labels(file).choice.tolist() == ["right", "left", "right", "skip"]
    browser._actions().send_keys("dd").perform()  # would delete a cell of the notebook
    assert len(browser.all(".jp-Cell")) == 2
    assert not browser.all(".jp-Cell .jp-RenderedMarkdown")  # 1 would make a heading
