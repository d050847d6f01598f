"""Pages of docs/ link to files beside the folder, which a site does not hold: their words stay."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with every page before it is rendered."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
