"""The application: pages about the runs of a folder.

`streamlit run app` or `balancer app` shows the runs in the folder `runs`; `streamlit run app -- --runs DIR`
or `balancer app --runs DIR` shows those of another folder.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from pathlib import Path

import polars as pl
import streamlit as st
from streamlit import runtime

from balancer.app.loading import plain, run_choice
from balancer.app.service import target
from balancer.errors import InputError

PAGES = (
    ("runs", "Runs", ":material/list:"),
    ("weights", "Weights", ":material/tune:"),
    ("threshold", "Threshold", ":material/notifications:"),
    ("transactions", "Transactions", ":material/receipt_long:"),
    ("compare", "Compare", ":material/balance:"),
    ("train", "Train", ":material/model_training:"),
    ("model", "Model", ":material/account_tree:"),
)
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, pl.exceptions.PolarsError)
"""What pages raise at a file of a run whose content is not what it should be."""
_LOG = logging.getLogger(__name__)
_SLOW = "balancer.runs.trained_run"
"""Module with torch, which the pages Transactions and Model need."""
_SOON = 3.0
"""Seconds after the first page from which it is imported."""
SERVICE_PAGE = ("service", "Service", ":material/monitoring:")  # only where a service is configured
STYLE = """<style>
/* Columns wrap instead of cutting off numbers or squeezing charts; two columns usually hold charts. */
[data-testid="stColumn"] { min-width: 11rem; }
[data-testid="stHorizontalBlock"]:has(> [data-testid="stColumn"]:first-child:nth-last-child(2)) > [data-testid="stColumn"] { min-width: 21rem; }
@media (max-width: 1199px) {
  /* One column of charts; tiles and fields still lie side by side as far as they fit. */
  [data-testid="stHorizontalBlock"]:has(> [data-testid="stColumn"]:first-child:nth-last-child(2)) > [data-testid="stColumn"],
  [data-testid="stColumn"]:has([data-testid="stVegaLiteChart"]) { min-width: 100%; }
  [data-testid="stMainBlockContainer"] { padding-left: 1rem; padding-right: 1rem; }
}
[data-testid="stColumn"]:has([data-testid="stMetric"]):not(:has([data-testid="stVegaLiteChart"])) { min-width: 9.5rem; }
@media (max-width: 640px) {
  /* Two tiles beside each other, with smaller numbers. */
  [data-testid="stColumn"]:has([data-testid="stMetric"]):not(:has([data-testid="stVegaLiteChart"])) {
    min-width: calc(50% - 0.5rem) !important; flex: 1 1 calc(50% - 0.5rem) !important;
  }
  [data-testid="stMetricValue"] { font-size: 1.5rem; }
}
/* Numbers and titles of tiles wrap; nothing of them is cut off. */
[data-testid="stMetric"] * { white-space: normal !important; overflow: visible !important; text-overflow: clip !important; overflow-wrap: anywhere; }
[data-testid="stMetricLabel"] * { min-width: 0; }
/* The sign of help keeps its place beside a title of several lines. */
[data-testid="stMetricLabel"] > span, [data-testid="stMetricLabel"] > span * { flex: none; }
[data-testid="stHeading"] * { overflow-wrap: anywhere; }
/* Streamlit makes each panel of stacked charts as wide as the container, without its axis. */
[class*="st-key-stacked-"] { padding-right: 5rem; }
/* A chart that is too wide scrolls, not the page. */
[class*="st-key-wide-"] { overflow-x: auto; }
/* Captions are readable: at least 4.5 to 1 on both themes. */
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p { color: inherit; }
[data-testid="stCaptionContainer"] { opacity: 0.8; }
/* White on the blue of the light theme has a contrast of 5 to 1 on both themes. */
[data-testid="stBaseButton-primary"] { background-color: #0072B2; border-color: #0072B2; color: #FFFFFF; }
span[data-tag-index] { background-color: #0072B2 !important; color: #FFFFFF !important; }
[data-testid="stBaseButton-primary"]:hover { background-color: #005A8C; border-color: #005A8C; color: #FFFFFF; }
</style>"""


@st.cache_resource(show_spinner=False)
def _import_ahead() -> None:
    """Import torch in the background while the first page is read, so that other pages do not wait for it."""

    def imported() -> None:
        with contextlib.suppress(ImportError):  # the page that needs it says what is missing
            importlib.import_module(_SLOW)

    if runtime.exists() and isinstance(runtime.get_instance(), runtime.Runtime):  # a server, not a test of one page
        later = threading.Timer(_SOON, imported)
        later.daemon = True
        later.start()


def main() -> None:
    """Show the list of pages, the choice of the run, and the chosen page."""
    st.set_page_config(page_title="balancer", page_icon=Path(__file__).with_name("favicon.svg"), layout="wide")
    st.html(STYLE)
    _import_ahead()
    pages = (*PAGES, SERVICE_PAGE) if target().configured else PAGES
    page = st.navigation([st.Page(f"views/{name}.py", title=title, icon=icon, default=name == "runs") for name, title, icon in pages])
    run_choice(st.sidebar)
    try:
        page.run()
    except InputError as error:
        st.error(plain(error))
    except _DAMAGE as error:
        # A file that can be read but has other content than expected; the log has the place.
        _LOG.exception("the page %s can't be shown", page.title)
        st.error(
            f"The page can't be shown: a file that it reads is damaged or was written by another version "
            f"({type(error).__name__}: {plain(error)}). Train the run again if it stays; the log of the app has the details."
        )


main()
