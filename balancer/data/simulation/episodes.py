"""Episodes in the simulator: runs of payments that belong together, three of them frauds and three their legitimate look-alikes.

Special about it: a fraud and its look-alike are two lines of one table (:data:`RECIPES`) and made by the same code, so they overlap by design
and only by degrees can be told apart: a card test beside a game's top-ups, a stolen card beside a shopping spree, a taken-over account
beside a move of house. That makes the hard tail of the legitimate rows; nearly all other rows are trivially easy.

The fourth fraud, the compromised merchant, is no episode of a card: see :func:`compromise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from balancer.data.simulation.payments import Payments, concatenate, make_payments
from balancer.data.simulation.population import CATEGORY_NAMES, DAY, Ints, World, strata

FRAUD_TYPES = ("legitimate", "card_testing", "stolen_card", "account_takeover", "compromised_merchant")
COMPROMISED = FRAUD_TYPES.index("compromised_merchant")


@dataclass(frozen=True)
class Recipe:
    """What the payments of one kind of episode look like."""

    kind: int
    """Index in FRAUD_TYPES."""
    size: tuple[int, int]
    """Fewest and most payments."""
    gap: tuple[float, float]
    """Median seconds between payments, and the spread of their logarithm."""
    scale: tuple[float, float]
    """The amount against the card's own habit in the category: lowest and highest factor, one per episode."""
    categories: dict[str, float]
    """Where the money goes, with weights."""
    online: float
    """Chance of an episode to be online (all of its payments that can be)."""
    away: float
    """Chance of an episode to happen outside the home region."""
    any_hour: float
    """Chance of an episode to begin at any hour instead of one of the card's own."""
    loyalty: float
    """Chance of a payment to go to a favourite merchant."""
    tiny: tuple[float, float] | None = None
    """Amounts between these two, whatever the card's habit, instead of ``scale``."""
    finale: float = 0.0
    """Where ``tiny``: chance of the last payment to be a purchase of ``scale`` in electronics or fashion, some minutes later."""

    @property
    def reach(self) -> int:
        """Days before the first one on which an episode may begin and still be going on."""
        return int(np.ceil(3.0 * self.size[1] * self.gap[0] / DAY))


_SHOP = {"electronics": 3.0, "fashion": 3.0, "household": 2.0, "travel": 1.0, "grocery": 1.0, "fuel": 1.0}
_WEB = {"electronics": 3.0, "fashion": 3.0, "household": 2.0, "travel": 2.0, "digital": 1.0, "entertainment": 1.0, "health": 1.0}
_SMALL = {"digital": 5.0, "entertainment": 2.0, "transport": 1.0}

RECIPES = {
    "card_testing": Recipe(1, (5, 13), (35.0, 0.8), (1.8, 4.5), _SMALL, 1.0, 0.50, 0.7, 0.0, tiny=(1.0, 5.0), finale=0.6),
    "stolen_card": Recipe(2, (3, 9), (1_400.0, 0.9), (2.5, 7.0), {**_SHOP, "cash": 2.0}, 0.15, 0.75, 0.7, 0.02),
    "account_takeover": Recipe(3, (5, 12), (9_000.0, 1.0), (2.5, 5.5), _WEB, 0.95, 0.55, 0.8, 0.02),
    "top_ups": Recipe(0, (2, 6), (180.0, 1.0), (0.7, 1.6), _SMALL, 1.0, 0.05, 0.1, 0.5, tiny=(1.0, 10.0), finale=0.08),
    "spree": Recipe(0, (2, 6), (2_800.0, 0.9), (0.9, 2.8), _SHOP, 0.15, 0.35, 0.05, 0.3),
    "house_move": Recipe(0, (3, 9), (30_000.0, 1.0), (0.9, 2.4), _WEB, 0.8, 0.05, 0.1, 0.3),
}
FRAUD_SHARE = {"card_testing": 0.22, "stolen_card": 0.24, "account_takeover": 0.24}
"""Share of all fraud rows; what is left is the compromised merchants'."""
LOOKALIKE_SHARE = {"top_ups": 0.010, "spree": 0.006, "house_move": 0.006}
"""Share of all legitimate rows."""
COMPROMISED_PAYMENTS = (22, 36)
"""Fewest and most payments at a merchant until it is found out."""
COMPROMISED_DAYS = 35.0
"""Longest time between any payment of such an episode and the one it was drawn by: idle merchants are found out too."""


def episodes(rng: np.random.Generator, world: World, recipe: Recipe, count: int) -> Payments:
    """Exactly ``count`` payments of ``recipe``; only the last episode may be cut short by that.

    A card has an episode in proportion to how much it pays, so a row of a busy card is no likelier to be fraud than one of an idle card;
    it may have several or none. Episodes may have begun before the first day and go on after the last one; those rows are left out.
    """
    parts: list[Payments] = []
    found = 0
    while found < count or not parts:
        part = _draw(rng, world, recipe, 1 + int(1.1 * (count - found) / np.mean(recipe.size)))
        part = part.take((part.time >= 0.0) & (part.time < world.days * DAY))
        parts.append(part)
        found += len(part)
    return concatenate(parts).take(slice(0, count))


def _draw(rng: np.random.Generator, world: World, recipe: Recipe, number: int) -> Payments:
    rate = np.cumsum(world.cards.rate)
    holder = np.searchsorted(rate, rng.random(number) * rate[-1], side="right").clip(0, len(rate) - 1)
    hour = np.where(rng.random(number) < recipe.any_hour, rng.uniform(0.0, 24.0, number), world.hour(rng, holder))
    begin = (world.day(rng, number, before=recipe.reach) + hour / 24.0) * DAY
    home = world.cards.home[holder]
    where = np.where(rng.random(number) < recipe.away, world.elsewhere(rng, home), home)
    size = rng.integers(recipe.size[0], recipe.size[1] + 1, number)

    episode = np.repeat(np.arange(number), size)
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    last = np.zeros(len(episode), bool)
    last[first + size - 1] = True
    gap = recipe.gap[0] * np.exp(recipe.gap[1] * rng.normal(size=len(episode)))
    category = _draw_categories(rng, recipe.categories, len(episode))
    finale = last & (rng.random(number) < recipe.finale)[episode]
    gap = np.where(finale, rng.lognormal(np.log(2_400.0), 0.8, len(episode)), gap)
    category = np.where(finale, _draw_categories(rng, {"electronics": 1.0, "fashion": 1.0}, len(episode)), category)
    gap[first] = 0.0
    elapsed = np.cumsum(gap)
    elapsed -= elapsed[first][episode]

    payments = make_payments(
        rng,
        world,
        card=holder[episode],
        time=begin[episode] + elapsed,
        category=category,
        online=(rng.random(number) < recipe.online)[episode],
        region=where[episode],
        scale=rng.uniform(*recipe.scale, number)[episode],
        loyalty=recipe.loyalty,
        kind=recipe.kind,
    )
    if recipe.tiny is not None:
        payments.amount[~finale] = rng.uniform(*recipe.tiny, int((~finale).sum()))
    return payments


def _draw_categories(rng: np.random.Generator, weights: dict[str, float], count: int) -> Ints:
    code = np.array([CATEGORY_NAMES.index(name) for name in weights])
    share = np.array(list(weights.values()))
    return np.asarray(rng.choice(code, count, p=share / share.sum()))


def compromise(rng: np.random.Generator, legitimate: Payments, count: int) -> None:
    """Make exactly ``count`` of the legitimate payments frauds of compromised merchants, in place, by their ``kind``.

    For some weeks, until it is found out, every payment at a compromised merchant, or every second one, is later reported as fraud. The
    payments stay what they were, so nothing in them shows it; only earlier reported frauds of the same merchant do. Merchants are drawn in
    proportion to their business and found out after as many payments whatever it is, so a busy merchant's payment is no likelier to be fraud.
    """
    order = np.lexsort((legitimate.time, legitimate.merchant))
    merchant, time = legitimate.merchant[order], legitimate.time[order]
    by_time = np.argsort(time)
    number = 2 + count // 20
    chosen = np.zeros(0, np.int64)
    while len(chosen) < count:
        witness = by_time[(strata(rng, number) * len(order)).astype(np.int64)]  # a payment of each episode, evenly over time
        size = rng.integers(COMPROMISED_PAYMENTS[0], COMPROMISED_PAYMENTS[1] + 1, number)
        offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        row = np.repeat(witness - rng.integers(0, size), size) + offset
        every, phase = 1 + (rng.random(number) < 0.25), rng.integers(0, 2, number)
        hit = (row >= 0) & (row < len(order)) & ((offset + np.repeat(phase, size)) % np.repeat(every, size) == 0)
        row, seen = row[hit], np.repeat(witness, size)[hit]
        hit = (merchant[row] == merchant[seen]) & (np.abs(time[row] - time[seen]) < COMPROMISED_DAYS * DAY)
        both = np.concatenate([chosen, order[row[hit]]])
        # Two episodes may overlap at one merchant: each payment once, in the order of the episodes.
        chosen = both[np.sort(np.unique(both, return_index=True)[1])]
    legitimate.kind[chosen[:count]] = COMPROMISED
