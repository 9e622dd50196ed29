"""Texts that try to run a script, and every page that the package writes, as a function of a text.

`tests/show/test_injection.py` reads the pages with html.parser; a real browser opens them in
`tests/browser/test_injection_in_browser.py` and in `make stress`.
"""

import importlib.util
import sys
from pathlib import Path

import pandas as pd
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.show import microscope, report, token_strip_html

PAYLOADS = [  # each sets window.hacked where it runs
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=1</script>",
    "<ScRiPt >window.hacked=1</sCrIpT >",
    "<script src=data:text/javascript,window.hacked=1></script>",
    "<img src=x onerror=window.hacked=1>",
    "</title></style></textarea><img src=x onerror=window.hacked=1>",
    '"><svg onload=window.hacked=1>',
    "'><svg/onload=window.hacked=1>",
    '" autofocus onfocus=window.hacked=1 tabindex=1 x="',
    "' onmouseover=window.hacked=1 x='",
    "<iframe srcdoc='<script>parent.window.hacked=1</script>'></iframe>",
    "<iframe src=javascript:parent.window.hacked=1></iframe>",
    "<a href=javascript:window.hacked=1>a</a>",
    "[a](javascript:window.hacked=1)",
    "<body onload=window.hacked=1>",
    "<details open ontoggle=window.hacked=1>",
    "<!--><img src=x onerror=window.hacked=1>-->",
    "<!--<script>window.hacked=1//",
    "&lt;script&gt;window.hacked=1&lt;/script&gt;",
    "<math><mtext><style><img src=x onerror=window.hacked=1></style></mtext></math>",
    "\\u003cscript>window.hacked=1\u2028</script>${window.hacked=1}{{7*7}}",
]
assert len({*PAYLOADS}) == 21
SITE = Path(__file__).parents[2] / "docs" / "site" / "annotate.py"


def _tokens(text: str) -> pd.DataFrame:
    size = 2
    return pd.DataFrame(
        {
            "text": 0,
            "prompt": text,
            "position": range(size),
            "token": [text, "a"],
            "prefix_reward": 0.5,
            "alternatives": [[(text, 0.5)]] * size,
        }
    )


def microscope_page(text: str, folder: Path) -> str:
    column = text.replace("\u2028", "")  # a column's name must be printable
    tokens = _tokens(text).assign(**{column: 1.0})
    return microscope({text: tokens, "b": tokens}, "prefix_reward", title=text, still=text).page()


def strip(text: str, folder: Path) -> str:
    return token_strip_html([text, "a"], [0.5, -0.5])


def tour_report(text: str, folder: Path) -> str:
    method = {"method": text, "gold": 1.0, "gold_low": 0.5, "gold_high": 1.5, "proxy": 1.0}
    method |= {"kl": 2.0, "length": 20.0, "distinct_2": 0.7}
    methods = [method, method | {"method": "b"}]
    picture, report._image = report._image, lambda figure, alt: ""  # a picture holds no text
    try:
        path = report.write_report(
            folder / "report.html",
            title=text,
            history=[{"stage": text, "step": 0, "loss": 1.0}],
            methods=methods,
            samples=[{"prompt": text, "columns": {text: text}, "golds": {text: 0.5}}] * 9,
            times={text: 1.0},
            environment={text: text},
            recorded=[{**m, "seed": 0} for m in methods],
            accuracy=[{"low": 0.0, "high": 1.0, text: 0.5}],
            tokens={text: _tokens(text)},
        )
    finally:
        report._image = picture
    return path.read_text(encoding="utf-8")


def score_html(text: str, folder: Path) -> str:
    path = folder / "score.html"
    done = CliRunner().invoke(cli.app, ["score", text, "--prompt", text, "--html", str(path)])
    assert done.exit_code == 0, done.exception
    return path.read_text(encoding="utf-8")


def source_page(text: str, folder: Path) -> str:
    spec = importlib.util.spec_from_file_location("annotate", SITE)
    annotate = importlib.util.module_from_spec(spec)
    sys.modules["annotate"] = annotate  # its dataclass looks it up
    spec.loader.exec_module(annotate)
    safe = text.replace("\\", "/").replace('"', "'")
    source = (
        f'"""{safe}"""\n\n# {safe}\nX = "{safe}"\n\n\ndef f(x):\n    """{safe}"""\n    return x\n'
    )
    return annotate.page(source.replace("\u2028", ""), "f.py")


WRITERS = {
    "the report of the tour": tour_report,
    "score --html": score_html,
    "the token microscope": microscope_page,
    "the token strip of a notebook": strip,
    "the site's annotated source": source_page,
}
