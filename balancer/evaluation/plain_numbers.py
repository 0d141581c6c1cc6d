"""Numbers in the words of the verdict on a run: shares, counts a day, and differences."""

from __future__ import annotations

MINUS = "−"


def in_words(part: int, whole: int) -> str:
    """A share of the frauds as a manager says it.

    >>> in_words(180, 222), in_words(3, 4), in_words(0, 9), in_words(9, 9), in_words(1, 60)
    ('about 4 in 5 frauds', '3 in 4 frauds', 'none of the frauds', 'all frauds', '1 in 60 frauds')
    """
    if part == whole or not part:
        return "all frauds" if part else "none of the frauds"
    value = part / whole
    if value < 0.1:
        top, bottom = 1, round(1 / value)
    elif value > 0.9:
        bottom = round(1 / (1 - value))
        top = bottom - 1
    else:
        # The simplest fraction that is close enough, else the closest one.
        simple = ((top, bottom) for bottom in (2, 3, 4, 5, 10) for top in range(1, bottom))
        top, bottom = min(simple, key=lambda each: (round(max(abs(each[0] / each[1] - value) - 0.025, 0.0), 9), each[1]))
    about = "" if top * whole == part * bottom else "about "
    return f"{about}{top:,} in {bottom:,} frauds"


def share(value: float) -> str:
    """A share in percent, with a digit more near 0 and near 100 %.

    >>> share(0.811), share(0.996), share(0.004), share(1.0)
    ('81 %', '99.6 %', '0.4 %', '100 %')
    """
    near = 0 < value < 0.0995 or 0.9905 < value < 1
    return f"{100 * value:.1f} %" if near else f"{100 * value:.0f} %"


def daily(value: float) -> str:
    """A count a day.

    >>> daily(3.13), daily(0.166), daily(1234.5), daily(0)
    ('3.1', '0.17', '1,234', '0')
    """
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:,.1f}" if value >= 0.95 else f"{value:.2g}"


def more(difference: float, noun: str, *, decimals: int = 0) -> str:
    """How many more or fewer.

    >>> more(2.0, "fraud"), more(-1.0, "fraud"), more(0.0, "fraud"), more(-0.53, "false alarm", decimals=1)
    ('2 more frauds', '1 fewer fraud', 'just as many frauds', '0.5 fewer false alarms')
    """
    size, many = round(abs(difference), decimals), f"{noun}s"
    if not size:
        return f"just as many {many}"
    return f"{size:,.{decimals}f} {'more' if difference > 0 else 'fewer'} {noun if size == 1 else many}"


def signed(value: float) -> str:
    """A whole number with its sign.

    >>> signed(1361.9), signed(-3.0), signed(0.2)
    ('+1,362', '−3', '0')
    """
    text = f"{value:+,.0f}".replace("-", MINUS)
    return "0" if text[1:] == "0" else text
