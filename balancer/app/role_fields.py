"""The roles of the columns on the page Train: what was found with reasons, and fields to change it.

What is special: a role that is not clear is asked for beside what was found, and everything else is kept.
When a single role changes, the features are found again, and what was added or removed by hand stays so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import polars as pl
import streamlit as st

from balancer.app.loading import plain, stamp
from balancer.app.table_checks import FIELDS, as_sentence, candidates, kept_lists, page_words, shorter_gap, unclear_roles
from balancer.data.inspection import inspect_table
from balancer.data.leaks import leak_notes
from balancer.data.reading import collect, scan
from balancer.data.roles import inferred
from balancer.data.spec import LIST_ROLES, SplitSpec
from balancer.data.spec_text import duration
from balancer.errors import InputError
from balancer.options.flags import parameters
from balancer.options.train import TrainConfig

SINGLE = ("entity", "time", "label", "amount", "id")
ABOUT = {
    "entity": "card, account or customer",
    "time": "when a transaction took place",
    "label": "fraud or not",
    "amount": "in one currency",
    "id": "of the transaction",
    "numeric": "numbers",
    "categorical": "texts and codes",
    "context": "terminal, merchant or payee",
}
"""What the column of a role holds, behind the title of its field."""
NOTHING = "– no column –"
SHARES = ("train", "validation", "test")
"""Parts of the split."""
HELP = {each.name: each.flag.help for each in parameters(TrainConfig)}
UNITS = {"found": None, "seconds": "s", "milliseconds": "ms", "microseconds": "us", "minutes": "min", "hours": "h", "days": "d"}
SPLITS = {"time": "by time: training, then validation, then test", "random": "at random, whole entities"}
BAD_ROWS = {"error": "are refused, the message names the first", "drop": "are left out and counted"}
_FIRST_ROWS = 5
_SHORT = 16
"""Most columns that are shown without scrolling."""
_SHORTER_DELAY = "the default label delay"


def ask_roles(source: Path) -> tuple[dict[str, Any], bool]:
    """Show what was found in a table, and ask for the roles of its columns.

    Returns:
        The flags for the run by field name, and whether the table can be trained on with them.

    Raises:
        InputError: The table can't be read, or a role does not fit; in the words of the page.
    """
    try:
        return _asked(source)
    except InputError as error:
        raise InputError(page_words(str(error).removeprefix(f"{source}: "))) from error


@st.cache_data(max_entries=16, show_spinner="Reading the columns")
def _inspected(source: str, changed: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What `balancer inspect` finds."""
    return inspect_table(Path(source), overrides=given).to_dict()


@st.cache_data(max_entries=16, show_spinner="Reading the columns")
def _features(source: str, changed: Any, single: dict[str, Any]) -> dict[str, Any]:
    """The features by role, and the label delay, that are found with these single roles."""
    spec = inferred(Path(source), overrides=single, doubtful=True).spec
    return {role: tuple(getattr(spec, role)) for role in LIST_ROLES} | {"label_delay": spec.label_delay}


@st.cache_data(max_entries=16, show_spinner=False)
def _preview(source: str, changed: Any) -> pl.DataFrame:
    return collect(scan(Path(source)).head(_FIRST_ROWS), Path(source))


def _asked(source: Path) -> tuple[dict[str, Any], bool]:
    if not source.exists():
        raise InputError(f"{source} does not exist: give the path of a table on this machine")
    changed = stamp(source) if source.is_file() else source.stat().st_mtime_ns
    head = _preview(str(source), changed)
    found = _inspected(str(source), changed, {})
    st.caption("First rows")
    st.dataframe(head, hide_index=True, key=f"first-{source}")
    unclear = unclear_roles(found["doubts"])
    single = _unclear(source, head.columns, unclear) if found["doubts"] else {}
    place = st.container()
    with st.expander("Change the roles of the columns", icon=":material/view_column:"):
        single |= _single(source, head.columns, found["spec"], unclear)
        given: dict[str, Any] = {role: value for role, value in single.items() if value is not None}
        chosen = {role: value for role, value in given.items() if role in unclear or value != (found["spec"].get(role) or "none")}
        follows = _features(str(source), changed, chosen) if chosen else found["spec"]
        features = {role: tuple(follows[role]) for role in LIST_ROLES}
        given |= _lists(source, head.columns, features, set(given.values()))
    with st.expander("Label delay, gap, split and bad rows", icon=":material/calendar_month:"):
        rest, bad_rows = _split_fields(source, duration(follows["label_delay"]))
    given |= rest
    with place:
        ready = _checked(source, changed, found, given, bad_rows, undecided=[role for role in SINGLE if role not in given])
    flags = {"split" if name == "by" else name: value for name, value in given.items() if name not in SHARES}
    if "train" in given:
        flags["shares"] = tuple(given[name] for name in SHARES)
    return flags | ({"bad_rows": bad_rows} if bad_rows != "error" else {}), ready


def _unclear(source: Path, columns: list[str], unclear: dict[str, str]) -> dict[str, str | None]:
    """Ask for the roles that are not clear; None is not decided."""
    place_of_doubts = st.empty()
    asked = [role for role in SINGLE if role in unclear]
    answers: dict[str, str | None] = {}
    for place, role in zip(st.columns(max(2, len(asked))), asked, strict=False):
        options = [*candidates(unclear[role], columns), NOTHING]
        key, title = f"role-{role}-{source}", f"{FIELDS[role]} ({ABOUT[role]})"
        answer = place.selectbox(title, options, None, key=key, help=HELP[role], placeholder="Choose a column")
        answers[role] = None if answer is None else "none" if answer == NOTHING else answer
    open_doubts = [doubt for role, doubt in unclear.items() if answers.get(role) is None]
    if open_doubts:
        place_of_doubts.warning(
            "Not every role is clear. Everything else was found and is kept; choose here:"
            + "".join(f"\n- {plain(page_words(doubt))}" for doubt in open_doubts),
            icon=":material/help:",
        )
    return answers


def _single(source: Path, columns: list[str], found: dict[str, Any], unclear: dict[str, str]) -> dict[str, str | None]:
    """Ask for the single roles that are clear."""
    roles = [role for role in SINGLE if role not in unclear]
    answers: dict[str, str | None] = {}
    places = [place for _ in range(2) for place in st.columns(3)]
    for place, role in zip(places, roles, strict=False):
        now = found.get(role) or NOTHING
        options = list(dict.fromkeys((NOTHING, *columns, now)))
        key, title = f"role-{role}-{source}", f"{FIELDS[role]} ({ABOUT[role]})"
        answer = place.selectbox(title, options, options.index(now), key=key, help=HELP[role])
        answers[role] = "none" if answer == NOTHING else answer
    return answers


def _lists(source: Path, columns: list[str], features: dict[str, tuple[str, ...]], taken: set[str]) -> dict[str, tuple[str, ...]]:
    """Ask for the features, with those found for the single roles."""
    keys = {role: f"role-{role}-{source}" for role in LIST_ROLES}
    before = st.session_state.get(f"features-{source}", features)
    shown = {role: st.session_state.get(key, before[role]) for role, key in keys.items()}
    for role, names in kept_lists(shown, before, features, taken).items():
        if list(st.session_state.get(keys[role], ())) != names or keys[role] not in st.session_state:
            st.session_state[keys[role]] = names
    st.session_state[f"features-{source}"] = features
    given: dict[str, tuple[str, ...]] = {}
    for place, role in zip(st.columns(len(LIST_ROLES)), LIST_ROLES, strict=True):
        options = list(dict.fromkeys((*columns, *features[role])))
        given[role] = tuple(place.multiselect(f"{FIELDS[role]} ({ABOUT[role]})", options, key=keys[role], help=HELP[role]))
    return given


def _split_fields(source: Path, usual: str) -> tuple[dict[str, Any], str]:
    """Ask for what is no role of a column; only what is given is a flag.

    Args:
        source: The table.
        usual: The label delay that is found with the present roles.
    """
    left, middle, right = st.columns(3)
    delay = left.text_input(
        FIELDS["label_delay"],
        key=f"delay-{source}",
        placeholder=f"{usual}, as found",
        help="Time until a label is known: 7d, 12h or seconds. Empty: what fits the table.",
    )
    gap = middle.text_input(
        FIELDS["gap"],
        key=f"gap-{source}",
        placeholder="the label delay",
        help="Time left out between the training and the validation rows, whose labels are not known yet when training ends: 7d, 12h or "
        "seconds. Empty: the label delay.",
    )
    by = right.selectbox(FIELDS["split"], list(SPLITS), format_func=SPLITS.__getitem__, key=f"split-{source}", help=HELP["split"])
    left, middle, right = st.columns(3)
    negative = left.text_input(
        FIELDS["negative"], key=f"negative-{source}", placeholder="found: 0, false, legitimate, …", help=HELP["negative"]
    )
    unit = middle.selectbox(FIELDS["time_unit"], list(UNITS), key=f"unit-{source}", help="Unit of times that are numbers.")
    bad = right.selectbox(FIELDS["bad_rows"], list(BAD_ROWS), format_func=BAD_ROWS.__getitem__, key=f"bad-{source}", help=HELP["bad_rows"])
    given: dict[str, Any] = {"by": by} | _shares(source)
    typed = {"label_delay": delay, "gap": gap, "negative": negative, "time_unit": UNITS[unit] or ""}
    return given | {name: text.strip() for name, text in typed.items() if text.strip()}, str(bad)


def _shares(source: Path) -> dict[str, float]:
    """Ask for the shares of the parts of the split; only those that differ from the usual ones are given.

    Raises:
        InputError: Nothing is left for the test.
    """
    usual = SplitSpec()
    left, middle, right = st.columns(3)
    train, validation = (
        int(place.number_input(FIELDS[name], 1, 98, round(100 * share), key=f"{name}-{source}", help=help_text))
        for place, name, share, help_text in (
            (left, "train", float(usual.train), "Share of the labelled rows that the detector is trained on."),
            (middle, "validation", float(usual.validation), "Share that stops the training and chooses calibration and threshold."),
        )
    )
    test = 100 - train - validation
    if test < 1:
        raise InputError(f"no rows are left for the test: make the field “{FIELDS['train']}” or “{FIELDS['validation']}” smaller")
    right.text_input(
        FIELDS["test"], str(test), disabled=True, key=f"test-{source}-{test}", help="What is left: all results are counted on it."
    )
    shares = {"train": train / 100, "validation": validation / 100, "test": test / 100}
    return {} if shares == {name: getattr(usual, name) for name in shares} else shares


def _checked(source: Path, changed: Any, found: dict[str, Any], given: dict[str, Any], bad_rows: str, undecided: list[str]) -> bool:
    """Check the roles as `balancer train` does, and show the columns; whether they can be trained on."""
    if given.get("label") == "none":
        st.warning("Choose the column of the label, which says what is fraud: a detector learns from it.")
        return False
    now = _inspected(str(source), changed, given)
    _columns(source, found, now)
    for doubt in now["doubts"]:
        if doubt not in found["doubts"]:
            st.error(plain(page_words(doubt)))
    for problem in now["to_correct"]:
        st.warning(plain(as_sentence(page_words(problem))), icon=":material/block:" if bad_rows == "error" else ":material/warning:")
    gap = None if now["doubts"] else shorter_gap(source, given, now["to_correct"])
    if gap is not None:
        text, words = gap
        st.button(
            f"Use a gap of {words}",
            icon=":material/auto_fix_high:",
            key=f"fit-{source}",
            on_click=_set,
            args=(f"gap-{source}", text),
            help="The longest gap that leaves enough validation rows. With a gap shorter than the label delay, the last training rows have "
            "labels that would not have been known when training ended.",
        )
    for caution in now["cautions"]:
        if caution.startswith(_SHORTER_DELAY):  # the field shows the delay, and nothing is wrong
            st.caption(plain(as_sentence(page_words(caution))))
        else:
            st.warning(plain(as_sentence(page_words(caution))), icon=":material/warning:")
    # Rows that can't be used may be left out; anything else must be corrected.
    refused = [problem for problem in now["to_correct"] if bad_rows == "error" or not re.search(r"\brow \d", problem)]
    return not now["doubts"] and not undecided and not refused


def _set(key: str, value: Any) -> None:
    st.session_state[key] = value


def _leave_out(source: Path, names: set[str]) -> None:
    """Take columns out of the fields of the features and of the amount."""
    for role in LIST_ROLES:
        key = f"role-{role}-{source}"
        st.session_state[key] = [name for name in st.session_state.get(key, ()) if name not in names]
    if st.session_state.get(f"role-amount-{source}") in names:
        st.session_state[f"role-amount-{source}"] = NOTHING


def _columns(source: Path, found: dict[str, Any], now: dict[str, Any]) -> None:
    """Show the role of each column with the reason, suspected leaks, and the spec file."""
    for warning in leak_notes(now["leaks"], "leave it out"):
        st.warning(plain(warning), icon=":material/warning:")
    if now["leaks"]:
        names = sorted(now["leaks"])
        label = f"Leave out {', '.join(names) if len(names) <= 3 else f'these {len(names)} columns'}"
        st.button(plain(label), icon=":material/remove_circle:", key=f"leaks-{source}", on_click=_leave_out, args=(source, set(names)))
    before = {each["name"]: each for each in found["columns"]}
    rows = [
        {
            "column": each["name"],
            "role": each["role"] or "left out",
            "why": before[each["name"]]["reason"] if before[each["name"]]["role"] == each["role"] else "chosen here",
            "values": each["distinct"],
            "missing": 100 * each["missing"],
            "first": ", ".join(each["first"]),
        }
        for each in now["columns"]
    ]
    used = sum(row["role"] != "left out" for row in rows)
    st.caption(f"Columns: {used} of {len(rows)} are used, of {now['rows']:,} rows")
    shape = {
        "column": st.column_config.TextColumn(pinned=True),
        "values": st.column_config.NumberColumn("different values", format="localized"),
        "missing": st.column_config.NumberColumn("missing, %", format="%.1f"),
        "first": st.column_config.TextColumn("first values"),
    }
    size: Literal["content", "auto"] = "content" if len(rows) <= _SHORT else "auto"
    st.dataframe(pl.DataFrame(rows), hide_index=True, column_config=shape, key=f"columns-{source}", height=size)
    facts = []
    if now["time"]:
        facts.append(f"{now['time']['days']:,.4g} days, from {plain(str(now['time']['first']))} to {plain(str(now['time']['last']))}")
    if now["classes"]:
        total = max(1, sum(now["classes"].values()))
        facts += [f"{plain(name)}: {count:,} rows ({100 * count / total:.2f} %)" for name, count in now["classes"].items()]
    if facts:
        st.caption("; ".join(facts))
    for note in now["notes"]:
        st.caption(plain(as_sentence(page_words(note))))
    st.download_button(
        "Roles as a file",
        now["spec_toml"],
        f"{source.stem}.toml",
        "application/toml",
        key=f"spec-{source}",
        type="tertiary",
        icon=":material/download:",
        help="The roles as a file for balancer train --spec",
        on_click="ignore",
    )
