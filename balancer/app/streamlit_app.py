"""The application: pages about the runs of a folder.

`streamlit run app` or `balancer app` shows the runs in the folder `runs`; `streamlit run app -- --runs DIR`
or `balancer app --runs DIR` shows those of another folder.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from balancer.app.loading import plain, run_choice
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
STYLE = """<style>
/* Columns wrap instead of cutting off numbers or squeezing charts; two columns usually hold charts. */
[data-testid="stColumn"] { min-width: 11rem; }
[data-testid="stHorizontalBlock"]:has(> [data-testid="stColumn"]:first-child:nth-last-child(2)) > [data-testid="stColumn"] { min-width: 21rem; }
/* Streamlit makes each panel of stacked charts as wide as the container, without its axis. */
[class*="st-key-stacked-"] { padding-right: 5rem; }
/* A chart that is too wide scrolls, not the page. */
[class*="st-key-wide-"] { overflow-x: auto; }
</style>"""


def main() -> None:
    """Show the list of pages, the choice of the run, and the chosen page."""
    st.set_page_config(page_title="balancer", page_icon=Path(__file__).with_name("favicon.svg"), layout="wide")
    st.html(STYLE)
    page = st.navigation([st.Page(f"views/{name}.py", title=title, icon=icon, default=name == "runs") for name, title, icon in PAGES])
    run_choice(st.sidebar)
    try:
        page.run()
    except InputError as error:
        st.error(plain(error))


main()
