"""Times: formats as Python reads them, and units that are plausible."""

import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tssr_jax.data_pipeline.sources.delimited import Chunk
from tssr_jax.data_pipeline.sources.values import parse_timestamps
from tssr_jax.data_pipeline.time_range import TimeRange
from tssr_jax.errors import UserError

FORMATS = (
    "%Y-%m-%dT%H:%M:%S.%fZ",
    "%Y-%m-%d %H:%M:%S,%f",
    "%Y.%m.%d %H:%M:%S.%f",
    "%d/%m/%y %I:%M %p",
    "%Y%m%d",
    "%Y%m%d%H%M%S%f",
    "%d %b %Y (%j)",
    "%m/%d/%Y %H:%M:%S %z",
    "100%% %Y-%m-%d",
    "%c",
    "%H:%M %d.%m.%Y",
    "%Y-%m-%d %H",
)


def parsed(texts, form):
    return parse_timestamps(chunk(texts), "time", "file.csv", form).to_list()


def chunk(texts):
    return Chunk(np.arange(2, 2 + len(texts)), pl.DataFrame({"time": texts}))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(
        st.datetimes(datetime.datetime(1000, 1, 1), datetime.datetime(9000, 1, 1)), min_size=1
    ),
)
def test_a_format_means_what_python_means(form, times):
    texts = [time.replace(tzinfo=datetime.UTC).strftime(form) for time in times]
    expected = []
    for text in texts:
        time = datetime.datetime.strptime(text, form)
        time = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
        since = time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        expected.append(since // datetime.timedelta(milliseconds=1))
    assert parsed(texts, form) == expected


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("%Y-%m-%dT%H:%M:%S.%fZ", "2024-01-31T00:00:00Z"),
        ("%Y-%m-%dT%H:%M:%S.%fZ", "2024-01-31T00:00:00.1234567Z"),
        ("%Y-%m-%d", "223-01-01"),
        ("%Y-%m-%d", "2023-02-30"),
        ("%Y-%m-%d", "2023-01-01x"),
    ],
)
def test_what_python_refuses_is_refused(form, text):
    with pytest.raises(ValueError):
        datetime.datetime.strptime(text, form)
    with pytest.raises(UserError, match=f"file.csv, line 3: column 'time' holds '{text}'"):
        parsed([datetime.datetime(2024, 1, 31).strftime(form), text], form)


def test_one_digit_is_read_as_python_does():
    assert parsed(["2024-1-3", "2024-01-03"], "%Y-%m-%d") == [1704240000000] * 2


def seconds(*values):
    return iter([pl.DataFrame({"timestamp": [1000 * value for value in values]})])


def test_the_range_is_reported():
    times = TimeRange("file.csv")
    list(times.checked(seconds(1_700_000_000, -86_400, *[1_600_000_000] * 200)))
    assert times.report() == {"first_date": "1969-12-31", "last_date": "2023-11-14"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1_700_000_000, 1_700_000_000_000], "1 other times are not: the column has two units"),
        ([1_700_000_000_000], "thousands of years away. These are probably milliseconds"),
        ([17_000_000_000] * 3, r"3 of 3 times after 2100, such as 17000000000 \(2508-09-16\)"),
        ([-1_700_000_000, 5], r"1 of 2 times before 1970, such as -1700000000 \(1916-02-18\)"),
    ],
)
def test_implausible_times_are_told(values, message):
    with pytest.raises(UserError, match=f"file.csv has .*{message}"):
        list(TimeRange("file.csv").checked(seconds(*values)))
