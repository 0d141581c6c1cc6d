"""Which worker of pytest-xdist runs which tests: those of a file stay on one, in the order of the file.

Otherwise each worker would build the fixtures of nearly every module, and train the same small models.
"""

from __future__ import annotations

from collections import OrderedDict

from xdist.scheduler import LoadScopeScheduling

SHARED_FOLDERS = ("tests/cluster/",)
"""Folders whose files share something costly, here a Ray cluster; all their tests stay on one worker."""
LONG = (
    "tests/cluster/",
    "tests/app/test_layout.py",
    "tests/app/test_browser.py",
    "tests/app/test_decisions_in_browser.py",
    "tests/test_packaging.py",
    "tests/docs/test_site.py",
    "tests/docs/test_service_pages.py",
    "tests/docs/test_examples.py",
    "tests/cli/test_torchrun.py",
    "tests/cli/test_resume.py",
    "tests/benchmarks/lib/test_gpu.py",
    "tests/test_extras.py",
    "tests/training/",
    "tests/integrations/",
)
"""What begins first, because it takes longer than its number of tests tells; at the end it would keep the
other workers waiting."""


class ByFile(LoadScopeScheduling):
    """Hands out whole files, first those of `LONG`, then those with most tests."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in SHARED_FOLDERS if nodeid.startswith(folder)), nodeid.split("::", 1)[0])

    def _assign_work_unit(self, node: object) -> None:
        if any(self.workqueue) and not getattr(self, "_ordered", False):
            self._ordered = True
            self.workqueue = OrderedDict(sorted(self.workqueue.items(), key=lambda unit: _place(unit[0])))
        super()._assign_work_unit(node)


def _place(scope: str) -> int:
    return next((place for place, start in enumerate(LONG) if scope.startswith(start)), len(LONG))
