"""Keep sphinx-thebe out of the pages.

jupyter-book always loads sphinx-thebe, which adds its settings to every page twice; the second
copy is a script error.  This book runs its code in Colab instead, so both hooks are taken out.
"""

from typing import Any

import sphinx_thebe
from sphinx.application import Sphinx

HOOKS = (sphinx_thebe.init_thebe_core, sphinx_thebe.update_thebe_context)


def disconnect(app: Sphinx, config: Any) -> None:
    for event in ("env-before-read-docs", "doctree-resolved"):
        for listener in list(app.events.listeners[event]):
            if listener.handler in HOOKS:
                app.disconnect(listener.id)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", disconnect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
