"""The application: ``streamlit run app`` or ``balancer app`` shows the runs in ``runs``, ``-- --runs DIR`` or ``--runs DIR`` those of another folder."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "pyproject.toml").is_file() and str(ROOT) not in sys.path:  # `streamlit run app` puts only this folder on the path
    sys.path.insert(0, str(ROOT))

from balancer.app.loading import all_runs  # noqa: E402 - after the path
from balancer.errors import InputError  # noqa: E402

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
    """The frame around every page: which pages there are, and which run they are about."""
    st.set_page_config(page_title="balancer", page_icon=":material/balance:", layout="wide")
    page = st.navigation([st.Page(f"views/{name}.py", title=title, icon=icon, default=name == "runs") for name, title, icon in PAGES])
    names = [run.name for run in all_runs() if run.status == "complete"]
    if names:
        st.sidebar.selectbox("Run", names, key="run", help="The run that the pages are about")
    try:
        page.run()
    except InputError as error:
        st.error(str(error))


main()
