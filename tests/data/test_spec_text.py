"""The text of a spec is read back as the same spec."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from balancer.data.spec import LIST_ROLES, Spec, SplitSpec, read_spec_file
from balancer.data.spec_text import spec_text
from balancer.tables.options import ReadOptions

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda text: text != "none" and text == text.strip()
)
LISTS = st.lists(NAMES, max_size=30, unique=True).map(tuple)
SPECS = st.builds(
    Spec,
    time=st.one_of(st.none(), st.just("when")),
    entity=st.one_of(st.none(), st.just("card1+addr1")),
    label=st.one_of(st.none(), st.just("is fraud")),
    label_date=st.one_of(st.none(), st.just("reported")),
    negative=st.one_of(st.none(), st.just("0")),
    time_format=st.one_of(st.none(), st.just("%d/%m/%Y")),
    time_unit=st.sampled_from((None, "h", "ms")),
    id=st.one_of(st.none(), st.just('a "quoted" \\ name')),
    numeric=LISTS,
    categorical=LISTS,
    context=LISTS,
    label_delay=st.sampled_from((0.0, 90.0, 3600.0, 86_400.0, 604_800.0, 0.5)),
    split=st.sampled_from((SplitSpec(), SplitSpec("2024-01-01", "2024-02-01", ""), SplitSpec(0.5, 0.25, 0.25, gap=0.0, by="random"))),
    read=st.sampled_from((ReadOptions(), ReadOptions(separator="\t", decimal=",", null_values=("n.v.", "x")))),
)


@given(SPECS)
def test_the_text_gives_the_same_spec(spec: Spec) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.toml"
        path.write_text(spec_text(spec), encoding="utf-8")
        given = read_spec_file(path)
    assert set(LIST_ROLES) <= set(given)
    assert Spec.from_dict(given) == spec
