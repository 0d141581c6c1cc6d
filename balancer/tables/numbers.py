"""Numbers as people write them: decimal commas, thousands marks, currencies, per cent, negatives in brackets.

What is special: a column decides its own marks. "12,50" can only hold a decimal comma and "1,234.56" only a
decimal point; "1,234" can be either, and follows the rest of the column, then the options, then the rest of
the file. Most columns are plain numbers, and are converted without any of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from balancer.tables.options import ReadOptions

NULL_WORDS = frozenset(
    {"", "na", "n/a", "n.a.", "n.a", "#n/a", "#n/a n/a", "#na", "nan", "-nan", "null", "(null)", "none", "nil", "\\n", "-", "--", "---"}
    | {"#nv", "#n/v", "#n/d", "#nd", "n.v.", "n.d.", "n/d", "k.a.", "k. a.", "k.a", "s/d", "s.d.", "s/o", "n.b.", "b.d.", "i.a."}
    | {"unbekannt", "desconocido", "desconocida", "desconhecido", "desconhecida", "inconnu", "inconnue", "sconosciuto", "onbekend"}
    | {
        "keine",
        "keine angabe",
        "keine angaben",
        "nicht vorhanden",
        "nicht verfügbar",
        "fehlt",
        "leer",
        "sin dato",
        "sin datos",
        "vacio",
        "vacío",
    }
    | {
        "não informado",
        "nao informado",
        "non disponible",
        "non renseigné",
        "non disponibile",
        "okänd",
        "ukjent",
        "ukendt",
        "brak",
        "brak danych",
    }
    | {"#wert!", "#zahl!", "#bezug!", "#name?", "#valeur!", "#nombre!", "#valor!", "#núm!", "#rif!", "not available", "not applicable"}
    | {"?", ".", "nat", "<na>", "missing", "unknown", "#null!", "#value!", "#div/0!", "#ref!", "#num!", "-1.#ind", "1.#qnan"}
)
"""Texts that mean "missing" in a column of numbers or times; compared without outer spaces, in lower case."""

_CODES = (
    "AED ARS AUD BGN BRL CAD CHF CLP CNY COP CZK DKK EGP EUR GBP HKD HUF IDR ILS INR ISK JPY KES KRW KZT MAD MXN MYR NGN NOK NZD "
    "PEN PHP PKR PLN QAR RMB RON RSD RUB SAR SEK SGD THB TND TRY TWD UAH USD VND XAF XOF ZAR"
)
_CURRENCY = rf"(?:(?:US|R|A|C|CA|AU|NZ|HK|S|MX)?\$|\p{{Sc}}|(?:{_CODES.replace(' ', '|')})|kr\.?|zł|Kč|Ft|Rs\.?|lei|Fr\.?)"
_SPACES = "[\u0020\u00a0\u2007\u2009\u202f\u2028]"
_DIGITS = r"\d(?:[\d.,'" + "\u2019\u0020\u00a0\u2007\u2009\u202f" + r"]*\d)?[.,]?|[.,]\d+"
_WRITTEN = rf"^(\()?{_SPACES}*([-+])?{_SPACES}*{_CURRENCY}?{_SPACES}*([-+])?{_SPACES}*({_DIGITS})((?:[eE][-+]?\d+)?){_SPACES}*(?:{_CURRENCY}|(%)|(‰))?{_SPACES}*(-)?(\))?$"
_AMBIGUOUS = r"^[1-9]\d{0,2},\d{3}$"
_ENOUGH = 50
"""Numbers such as "1,234" among whole numbers below 1,000 that show that the comma parts thousands."""


@dataclass(frozen=True)
class Marks:
    """The marks of the numbers of one column."""

    decimal: str | None
    """`.` or `,`; None where no number shows it."""
    ambiguous: int | None = None
    """Position of a number that can be read in two ways, where nothing decides."""
    evident: bool = False
    """Whether the numbers of the column themselves show the decimal mark."""


def null_words(read: ReadOptions) -> frozenset[str]:
    """The texts that mean "missing" in lower case: the usual ones and those of `read`."""
    return NULL_WORDS.union(text.strip().lower() for text in read.null_values or ())


@dataclass(frozen=True)
class Numbers:
    """A column of text, read as numbers."""

    values: pl.Series
    """(N,) Float64, null where a cell is missing and where it can't be read."""
    wrong: pl.Series
    """(N,) Boolean, whether a cell is neither a number nor missing."""
    marks: Marks
    """The marks of the numbers."""
    plain: bool
    """Whether every number is written plainly, without currencies and other marks than a decimal point."""


def parse_numbers(text: pl.Series, read: ReadOptions) -> tuple[pl.Series, pl.Series]:
    """The values and the wrong cells of :func:`read_numbers`."""
    numbers = read_numbers(text, read)
    return numbers.values, numbers.wrong


def read_numbers(text: pl.Series, read: ReadOptions) -> Numbers:
    """Read a column of text as numbers.

    A number may have a sign before or after it, brackets for a negative one, a currency before or after it,
    marks between groups of digits, and a per cent sign, which divides by 100.

    Args:
        text: (N,) String.
        read: Marks and null words that were given, or found in the rest of the file. The column's own
            numbers come first where they are clear.
    """
    name = text.name
    stripped = text.str.strip_chars()
    numbers = stripped.cast(pl.Float64, strict=False)
    missing = _missing(stripped, numbers, read)
    marked = stripped.str.contains(".", literal=True) if _comma(read) else None
    if (numbers.is_not_null() | missing).all() and (marked is None or not (marked & ~missing).any()):
        wrong = pl.repeat(False, len(text), dtype=pl.Boolean, eager=True)
        return Numbers(_without(numbers, missing).alias(name), wrong.alias(name), Marks(None), plain=True)
    parts = _parts(stripped, missing)
    marks = _marks(parts, read)
    if marks.decimal == ",":
        # A text such as 1.234 is a plain number too, but here its point parts thousands.
        doubtful = stripped.str.contains(".", literal=True).fill_null(False)
        numbers = _without(numbers, doubtful)
    written = _written(parts, "," if marks.decimal == "," else ".")
    numbers = _without(numbers.zip_with(numbers.is_not_null(), written), missing)
    return Numbers(numbers.alias(name), (numbers.is_null() & ~missing).alias(name), marks, plain=False)


def find_marks(text: pl.Series, read: ReadOptions) -> Marks:
    """The marks of a column of text, and whether a number of it can be read in two ways."""
    stripped = text.str.strip_chars()
    if not (stripped.str.contains(",", literal=True).any() or stripped.str.contains(r"\..*\.").any() or _comma(read)):
        return Marks(".", evident=bool(stripped.str.contains(r"^\D*\d*\.\d+\D*$").any()))
    return _marks(_parts(stripped, _missing(stripped, stripped.cast(pl.Float64, strict=False), read)), read)


def currencies(text: pl.Series) -> list[str]:
    """The currencies that the numbers of a column name, sorted, as they are written."""
    rest = text.filter(~text.str.contains(r"^[\s\d.,+-]*$").fill_null(True))
    if not len(rest):
        return []
    stripped = rest.str.strip_chars()
    found = stripped.filter(stripped.str.contains(_WRITTEN)).str.extract(f"({_CURRENCY})", 1)
    return sorted(found.drop_nulls().unique().to_list())


def _comma(read: ReadOptions) -> bool:
    return read.decimal == "," or read.thousands == "."


def _missing(stripped: pl.Series, numbers: pl.Series, read: ReadOptions) -> pl.Series:
    """(N,) Boolean, whether a cell is null or a null word; only cells that are no numbers are compared."""
    words = null_words(read)
    open_ = numbers.is_null() | numbers.is_nan().fill_null(False)
    if read.null_values and any(_is_number(word) for word in words):
        open_ = pl.repeat(True, len(stripped), dtype=pl.Boolean, eager=True)
    if not open_.any():
        return open_.alias(stripped.name)
    if open_.all():
        return (stripped.is_null() | stripped.str.to_lowercase().is_in(list(words))).fill_null(True)
    positions = open_.arg_true()
    cells = stripped.gather(positions)
    found = (cells.is_null() | cells.str.to_lowercase().is_in(list(words))).fill_null(True)
    return pl.repeat(False, len(stripped), dtype=pl.Boolean, eager=True).scatter(positions, found).alias(stripped.name)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _without(numbers: pl.Series, missing: pl.Series) -> pl.Series:
    if not missing.any():
        return numbers
    return numbers.set(missing, None)


def _parts(stripped: pl.Series, missing: pl.Series) -> pl.DataFrame:
    """The parts of each number: `digits` with their marks, null if it is none, and the rest."""
    cells = stripped.str.replace_all("\u2212", "-", literal=True).set(missing, None)
    names = ("open", "before", "inner", "digits", "exponent", "percent", "permille", "after", "close")
    found = cells.str.extract_groups(_WRITTEN).struct.rename_fields(list(names)).struct.unnest()
    signs = [pl.col("before") == "-", pl.col("inner") == "-", pl.col("after") == "-"]
    number = sum(sign.fill_null(False).cast(pl.Int8) for sign in signs) + pl.col("open").is_not_null().cast(pl.Int8)
    bad = (pl.col("open").is_null() != pl.col("close").is_null()) | (number > 1)
    bad |= pl.col("before").is_not_null() & pl.col("inner").is_not_null()
    return found.select(
        digits=pl.when(~bad).then(pl.col("digits").str.replace_all("[\u2019]", "'").str.replace_all(_SPACES, " ")),
        exponent=pl.col("exponent").fill_null(""),
        negative=number > 0,
        scale=pl.when(pl.col("percent").is_not_null()).then(100.0).when(pl.col("permille").is_not_null()).then(1000.0).otherwise(1.0),
    )


def _marks(parts: pl.DataFrame, read: ReadOptions) -> Marks:
    digits = parts["digits"].drop_nulls()
    marked = digits.filter(digits.str.contains("[.,]"))
    bare = marked.str.replace_all("[ ']", "")
    doubtful = bare.str.contains(_AMBIGUOUS)
    comma = int(((bare.str.contains(r"^\d*,\d*$") & ~doubtful) | bare.str.contains(r"^\d{1,3}(?:\.\d{3})+,\d*$")).sum())
    # One point with three digits after it is taken as a decimal point, unless the column has decimal commas.
    point = int(bare.str.contains(r"^\d*\.(?:\d{0,2}|\d{4,})$|^0\d*\.\d{3}$|^\d{4,}\.\d{3}$|^\d{1,3}(?:,\d{2,3})*,\d{3}\.\d*$").sum())
    comma += int(bare.str.contains(r"^\d{1,3}(?:\.\d{3}){2,}$").sum())
    point += int(bare.str.contains(r"^\d{1,3}(?:,\d{2,3})+,\d{3}$").sum())
    if comma != point and (comma == 0 or point == 0):
        return Marks("," if comma else ".", evident=True)
    given = read.decimal or {",": ".", ".": ","}.get(read.thousands or "")
    if comma and point:
        return Marks(given or ("," if comma > point else "."), evident=False)
    if given:
        return Marks(given)
    if not doubtful.any():
        return Marks("." if len(marked) else None)
    whole = digits.filter(~digits.str.contains("[.,]"))
    short = whole.str.contains(r"^\d{1,3}$")
    if int(doubtful.sum()) >= _ENOUGH and len(whole) and short.all() and not bare.str.contains(".", literal=True).any():
        return Marks(".", evident=True)
    return Marks(".", ambiguous=int((parts["digits"].str.contains(",", literal=True).fill_null(False)).arg_max() or 0))


def _written(parts: pl.DataFrame, decimal: str) -> pl.Series:
    """(N,) Float64 of numbers whose decimal mark is known; null where the marks do not fit."""
    group = "." if decimal == "," else ","
    point, other = ("\\" + decimal if decimal == "." else decimal), ("\\" + group if group == "." else group)
    shapes = [rf"\d*(?:{point}\d*)?"]
    shapes += [rf"\d{{1,3}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}(?:{point}\d*)?" for mark in (other, " ", "'")]
    fits = pl.col("digits").str.contains(f"^(?:{'|'.join(shapes)})$")
    bare = pl.col("digits").str.replace_all(rf"[{other} ']", "")
    bare = bare.str.replace(decimal, ".", literal=True) if decimal == "," else bare
    value = (bare + pl.col("exponent")).cast(pl.Float64, strict=False) / pl.col("scale")
    signed = pl.when(pl.col("negative")).then(-value).otherwise(value)
    return parts.select(number=pl.when(fits).then(signed))["number"]
