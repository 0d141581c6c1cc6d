"""Bodies of requests: strict JSON, within bounds, one error that names the place; the values are those of
json."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.serving.errors import EncodingError, TooLargeError
from balancer.serving.http.decoding import MOST_COLUMNS, check_content_type, decode_labels, decode_score
from tests.serving.tools import CARD

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['":', '"', "\\", '\\"', "{", "}", ":", "[", '" :', "\\\\"]
)
SCALAR = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
ROWS = st.lists(st.dictionaries(TEXT, SCALAR, max_size=5), min_size=1, max_size=4)
TOKENS = st.sampled_from(
    [
        *(b'"transactions"', b'"labels"', b'"id"', b'"label"', b'"explain"', b'"on_error"', b'"skip"', b'"a"', b'"a\\"b"', b'"\\ud800"'),
        *(b"{", b"}", b"[", b"]", b":", b",", b" ", b"\n", b"1", b"-1.5e9", b"1e999", b"NaN", b"-Infinity", b"true", b"null", b'"', b"\\"),
        *(b'{"transactions":[{', b'{"labels":[{"id":', b"}]}", b'"a":1,"a":2', b"\xff", b"\xef\xbb\xbf", b"\x00", b"1" * 5000, b"[" * 2000),
    ]
)


def wrong(body: bytes, max_rows: int = 10) -> str:
    with pytest.raises(InputError) as error:
        decode_score(body, max_rows)
    return str(error.value)


@given(ROWS, st.integers(0, 100), st.sampled_from([None, 1]), st.booleans())
@settings(max_examples=150)
def test_valid_requests_have_the_values_of_json(rows: list[dict[str, Any]], explain: int, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps({"explain": explain, "transactions": rows}, indent=indent, ensure_ascii=ascii_only)
    found = decode_score(text.encode(), 10)
    assert repr(found.transactions) == repr(json.loads(text)["transactions"])
    assert (found.explain, found.on_error, found.errors) == (explain, "refuse", {})


@given(st.binary(max_size=80) | st.lists(TOKENS, max_size=12).map(b"".join))
@settings(max_examples=300)
@example(b'{"transactions":[{"a":1},' + b"[" * 100_000 + b"]" * 100_000 + b'],"on_error":"skip"}')
@example(b"[" * 100_000)
def test_any_bytes_give_data_or_an_input_error(body: bytes) -> None:
    for decode in (decode_score, decode_labels):
        message = ""
        try:
            decode(body, 3)
        except InputError as error:
            message = str(error)
        assert len(message) < 500
        assert "\n" not in message


@given(ROWS, st.data())
@settings(max_examples=100)
def test_a_column_that_occurs_twice_is_found(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    texts = [json.dumps(row) for row in rows]
    place = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(sorted(rows[place]))) if rows[place] else "a"
    twice = json.dumps(column) + data.draw(st.sampled_from([":", " :", "\n: "])) + "1"
    texts[place] = texts[place][:-1] + (", " if rows[place] else twice + ",") + twice + "}"
    for more in ("", ', "on_error": "skip"'):
        body = ('{"transactions": [' + ", ".join(texts) + f"]{more}}}").encode()
        if more:
            assert [*decode_score(body, 10).errors] == [place]
        else:
            assert wrong(body) == f"transactions[{place}]: column {column!r} occurs twice; give it once"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"transactions":[{"a":1},{"amount":NaN}]}', "transactions[1]: column 'amount' is NaN, which JSON does not have; give null"),
        (b'{"transactions":[{"amount": -Infinity}]}', "transactions[0]: column 'amount' is infinite, which JSON does not have"),
        (b'{"transactions":[{"a":1,"b{\\":":{}}]}', "transactions[0]: column 'b{\":' is an object; give a text, a number"),
        (b'{"transactions":[{"a":"[{"},{"b":["x"]}]}', "transactions[1]: column 'b' is a list"),
        (b'{"transactions":[{"a":1e999}]}', "transactions[0]: column 'a' is beyond the range of numbers"),
        (b'{"transactions":[{"a":' + b"1" * 4300 + b"}]}", "transactions[0]: column 'a' is beyond the range of numbers"),
        (b'{"transactions":[{"a":' + b"1" * 400_000 + b"}]}", "transactions[0]: column 'a' is beyond the range of numbers"),
        (b'{"transactions":[{"a":-' + b"1" * 101 + b"}]}", "transactions[0]: column 'a' is beyond the range of numbers"),
        (b'{"transactions":[{},null]}', "transactions[1] is null; give an object with a value for each column"),
        (b'{"transactions":{}}', "transactions is an object; give a list of transactions"),
        (b'{"transactions":[]}', "transactions: the list is empty"),
        (b"{}", "the request has no 'transactions'"),
        (b"[]", "the body is a list; send an object with transactions"),
        (b"", "the body is empty"),
        (b"{", "no complete JSON text"),
        (b'{"transactions":[{"a":"\\ud800"}]}', "half of a character"),
        (b'{"transactions":[{"a":01}]}', "no JSON at byte 23"),
        (b'{"transactions":[{}]} {}', "no JSON at byte 23"),
        (b'{"transactions":[{}],"explian":1}', "unknown key 'explian'; known: transactions, explain"),
        (b'{"transactions":[{}],"transactions":[{}]}', "the key 'transactions' occurs twice"),
        (b'{"transactions":[{}],"explain":1, "explain" : 1}', "the key 'explain' occurs twice"),
        (b'{"transactions":[{}],"explain":true}', "explain is true or false; give a whole number"),
        (b'{"transactions":[{}],"explain":1.5}', "explain is 1.5; give a whole number from 0 to 100"),
        (b'{"transactions":[{}],"explain":-1}', "explain is -1; give a whole number from 0 to 100"),
        (b'{"transactions":[{}],"on_error":"skp"}', "on_error is 'skp'; did you mean 'skip'"),
        (b'{"transactions":[{}],"on_error":null}', "on_error is null; give refuse or skip"),
    ],
)
def test_bad_requests_name_the_place(body: bytes, message: str) -> None:
    assert message in wrong(body)
    assert message in wrong(body.decode().replace(":", " :\n ", 1).encode()) or "byte" in message


@pytest.mark.parametrize("body", [b"\xff\xfe{", '{"transactions":[]}'.encode("utf-16"), b'{"transactions":[{"a":"\xe9"}]}'])
def test_another_encoding_is_refused(body: bytes) -> None:
    with pytest.raises(EncodingError if b"\x00" not in body[2:] else InputError):
        decode_score(body, 10)
    assert decode_score(b'\xef\xbb\xbf{"transactions":[{"a":1}]}', 10).transactions == [{"a": 1}]


def test_rows_are_counted_before_they_are_built() -> None:
    rows = [CARD] * 11
    with pytest.raises(TooLargeError, match="11 rows in one request, but at most 10"):
        decode_score(json.dumps({"transactions": rows}).encode(), 10)
    assert len(decode_score(json.dumps({"transactions": rows[1:]}).encode(), 10).transactions) == 10
    assert decode_score(json.dumps({"transactions": [{"a": "{" * 99 + ":" * MOST_COLUMNS}]}).encode(), 1).transactions
    assert f"more than {MOST_COLUMNS} columns" in wrong(json.dumps({"transactions": [dict.fromkeys(map(str, range(5001)), 1)]}).encode())


@pytest.mark.parametrize("unit", [b"[]", b"{}", b'""', b"1", b"null", b'{"":[]}', b"[[", b'"{"'])
@pytest.mark.parametrize(
    "frame", [b'{"transactions":[%b]}', b'{"x":[%b]}', b'{"on_error":"skip","transactions":[%b]}', b"[%b]", b'{"labels":[%b]}']
)
def test_a_large_body_costs_little(unit: bytes, frame: bytes) -> None:
    body = frame % b",".join([unit] * (2_000_000 // (len(unit) + 1)))
    tracemalloc.start()
    begun = time.process_time()
    for decode in (decode_score, decode_labels):
        with pytest.raises(InputError):
            decode(body, 1000)
    taken, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(body) + 20e6
    assert taken < 1.0, "2 MB take 10 ms; a slow machine is no fault"


def test_rows_that_can_not_be_decoded_are_skipped_on_request() -> None:
    body = b'{"on_error":"skip","transactions":[{"a":1,"a":2},{"b":1},5,[],{"c":[[]]},{"d":1e999},{"b":%b}],"explain":2}' % (b"9" * 200)
    found = decode_score(body, 10)
    assert found.transactions == [{}, {"b": 1}, {}, {}, {}, {}, {}]
    assert found.explain == 2
    assert [found.errors[place].split("; ")[0] for place in sorted(found.errors)] == [
        "transactions[0]: column 'a' occurs twice",
        "transactions[2] is a number",
        "transactions[3] is a list",
        "transactions[4]: column 'c' is a list",
        "transactions[5]: column 'd' is beyond the range of numbers",
        "transactions[6]: column 'b' is beyond the range of numbers",
    ]


def test_labels() -> None:
    body = (
        b'{"labels":[{"id":"a","label":1},{"id":5,"label":true},{"label":null,"id":"b"},{"id":"c","label":1.0},{"id":"d","label":"1.50"}]}'
    )
    assert decode_labels(body, 10).labels == {"a": 1, "5": True, "b": None, "c": 1.0, "d": "1.50"}
    for content, message in (
        (b'{"id":true,"label":"1"}', "labels[0].id is true or false; give a text"),
        (b'{"id":"","label":"1"}', "labels[0].id is empty"),
        (b'{"id":"a\\u0000","label":"1"}', "labels[0].id is not a printable text"),
        (b'{"id":"a","label":"%b"}' % (b"1" * 1001), "labels[0].label is not a printable text"),
        (b'{"id":"a"}', "labels[0] has no 'label'"),
        (b'{"id":"a","label":[]}', "labels[0].label is a list; give a class"),
        (b'{"id":"a","label":1,"x":1}', "labels[0]: unknown key 'x'; known: id, label"),
        (b'{"id":"a","label":1,"label":1}', "labels[0]: key 'label' occurs twice"),
        (b'{"id":"a","label":1},{"id":"a","label":1}', "an id occurs twice"),
        (b'{"id":"a","label":1},7', "labels[1] is a number; give an object with an id and a label"),
        (b'{"id":%b,"label":1}' % (b"1" * 200), "labels[0].id is beyond the range of numbers"),
    ):
        with pytest.raises(InputError) as error:
            decode_labels(b'{"labels":[%b]}' % content, 10)
        assert message in str(error.value)


def test_numbers_have_the_bits_of_json() -> None:
    for text in (
        "9007199254740993.0",
        "1.7976931348623157e308",
        "4.9e-324",
        "0.1e-400",
        "-0.0",
        "123456789012345678901234567890.5",
        "1e23",
    ):
        (row,) = decode_score(b'{"transactions":[{"a":%b}]}' % text.encode(), 1).transactions
        assert row["a"] == float(text)
        assert math.copysign(1, row["a"]) == math.copysign(1, float(text))


def test_the_type_of_the_content_is_checked() -> None:
    for value in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.bank+json"):
        check_content_type(value)
    for other in (None, "", "text/plain", "application/x-www-form-urlencoded", "text/json"):
        with pytest.raises(InputError, match="Content-Type: application/json"):
            check_content_type(other)
