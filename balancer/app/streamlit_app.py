"""The application: pages about the runs of a folder.

`streamlit run app` or `balancer app` shows the runs in the folder `runs`; `streamlit run app -- --runs DIR`
or `balancer app --runs DIR` shows those of another folder.
"""

from __future__ import annotations

import streamlit as st

from balancer.app.loading import all_runs
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


def main() -> None:
    """Show the list of pages, the choice of the run, and the chosen page."""
    st.set_page_config(page_title="balancer", page_icon=":material/balance:", layout="wide")
    page = st.navigation([st.Page(f"views/{name}.py", title=title, icon=icon, default=name == "runs") for name, title, icon in PAGES])
    names = [run.name for run in all_runs() if run.status == "complete"]
    if names:
        st.sidebar.selectbox("Run", names, key="run", help="The run that the pages show")
    try:
        page.run()
    except InputError as error:
        st.error(str(error))


main()
