"""Sphinx's settings for the site. `docs/site/build.py` runs it."""

project = "minirlhf"
html_title = "minirlhf"
extensions = ["myst_nb"]
exclude_patterns = ["conf.py"]

nb_execution_mode = "off"  # the notebooks are executed already
nb_ipywidgets_js = {}  # the default loads scripts from outside
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_heading_anchors = 4  # links to headings as on GitHub
suppress_warnings = ["myst.header"]  # a folded answer may jump over a level

html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the sidebar has the search already
}
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_static_path = ["_static"]
html_css_files = ["minirlhf.css"]
mathjax_path = "mathjax.js"  # relative to _static; build.py takes it from a pinned package
html_show_search_summary = False  # summaries are fetched, which needs a server
