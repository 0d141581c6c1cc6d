"""What the app finds in a folder of runs."""

from __future__ import annotations

from pathlib import Path

from balancer.app.browsing import find_comparisons


def test_files_of_jobs_are_no_comparisons(tmp_path: Path) -> None:
    for folder in (".jobs", "mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "comparison.json").write_text("{}")
    assert find_comparisons(tmp_path) == [tmp_path / "mine" / "comparison.json"]
