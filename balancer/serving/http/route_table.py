"""Which route answers a request, and which scope it needs, from the path alone.

What is special: the middleware needs the scope before the body arrives, and the router finds the route only
after it. The table is made from the routes themselves, so that a route is declared once, by
`Depends(access.allow(SCOPE))`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from starlette.routing import BaseRoute, Match, Mount, Route

SCOPE_ATTRIBUTE = "balancer_scope"
"""Attribute of a dependency that names the scope of its routes."""


class Found(NamedTuple):
    """The route of a request."""

    template: str
    """Its path with names in place of values, or `other`."""
    scope: str | None
    """What a key must allow; None: no key is needed, and a body is not read."""
    parameters: tuple[str, ...] = ()
    """Names that its query may have."""


OTHER = Found("other", None)
"""What no route answers, so that the application refuses it."""


class RouteTable:
    """Finds routes in the order in which the router finds them.

    Args:
        routes: The routes of the application.
    """

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._exact: dict[tuple[str, str], Found] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Found]] = []
        self._mounts: list[tuple[Mount, Found]] = []
        for route in routes:
            if isinstance(route, Mount):
                self._mounts.append((route, Found(route.path, None)))
                continue
            if not isinstance(route, Route):
                continue
            found = Found(route.path, _scope_of(route), _parameters_of(route))
            for method in route.methods or ():
                if "{" in route.path:
                    self._patterns.append((method, route.path_regex, found))
                else:
                    self._exact.setdefault((method, route.path), found)

    def find(self, scope: Any) -> Found:
        """Find the route of an ASGI scope."""
        method, path = scope["method"], scope["path"]
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact
        for allowed, pattern, found in self._patterns:
            if allowed == method and pattern.match(path):
                return found
        for mount, found in self._mounts:
            if mount.matches(scope)[0] == Match.FULL:
                return found
        return OTHER


def _parameters_of(route: Route) -> tuple[str, ...]:
    """The names of the query of a route."""
    return tuple(field.alias for field in getattr(getattr(route, "dependant", None), "query_params", ()))


def _scope_of(route: Route) -> str | None:
    """The scope that one of the dependencies of a route names."""
    waiting = list(getattr(getattr(route, "dependant", None), "dependencies", ()))
    while waiting:
        each = waiting.pop()
        scope: str | None = getattr(each.call, SCOPE_ATTRIBUTE, None)
        if scope is not None:
            return scope
        waiting += each.dependencies
    return None
