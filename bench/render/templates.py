"""The templates of the reports: each lies beside the module that fills it."""

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined, select_autoescape

templates = Templates(
    loader=PackageLoader("bench", ""),
    autoescape=select_autoescape(),  # HTML only: this is Markdown
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
