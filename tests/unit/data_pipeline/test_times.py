"""Times: formats as Python reads them, and units that are plausible."""

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import csv
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.report import summary
from tssr_jax.data_pipeline.sources.delimited import Chunk
from tssr_jax.data_pipeline.sources.values import ORDER, parse_timestamps
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
    table = pl.DataFrame({"timestamp": [1000 * value for value in values]})
    return iter([table.with_columns(user=pl.lit("u"), item=pl.lit("i"))])


def test_the_range_is_reported():
    times = TimeRange("file.csv")
    list(times.checked(seconds(1_700_000_000, -86_400, *[1_600_000_000] * 200)))
    assert times.report() == {"first_date": "1969-12-31", "last_date": "2023-11-14"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1_700_000_000, 1_700_000_000_000], "1 other times are not: the column has two units"),
        ([1_700_000_000_000], "thousands of years away. These are probably milliseconds"),
        (
            [17_000_000_000] * 3,
            r"3 of 3 times after 2100, such as 17000000000 \(2508-09-16\) of user 'u' and item 'i'",
        ),
        # Minutes, days of a spreadsheet, and hours, beside seconds.
        ([28_000_000, 1_700_000_000], r"1 of 2 times of 1970, .* 28000000 \(1970-11-21\) of user"),
        ([45_000, 1_700_000_000], "of 1970, .* Does the column have two units"),
        ([470_000, *[1_700_000_000] * 50], "1 of 51 times of 1970"),
        ([-1_700_000_000, 5], r"1 of 2 times before 1970, such as -1700000000 \(1916-02-18\)"),
    ],
)
def test_implausible_times_are_told(values, message):
    with pytest.raises(UserError, match=f"file.csv has .*{message}"):
        list(TimeRange("file.csv").checked(seconds(*values)))


def test_few_times_without_a_value_are_told(capsys):
    times = TimeRange("file.csv")
    list(times.checked(seconds(0, *[1_700_000_000] * 100)))
    assert (
        "1 of 101 times of 1970, where others are after 1980, such as 0 " in capsys.readouterr().out
    )


def test_times_of_1970_alone_are_told(tmp_path):
    rows = [f"u{user},i{(user + step) % 9},{step}" for user in range(9) for step in range(8)]
    (tmp_path / "interactions.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    (tmp_path / "items.csv").write_text("item,title\ni1,red\n" + "i2,x\ni3,x\ni4,x\ni5,x\n")
    config = csv.get_config(str(tmp_path))
    config.data.cache_dir = str(tmp_path / "cache")

    def told():
        return "\n".join(summary(prepare(config.data).report))

    for _ in range(2):  # also from the cache
        assert "items of one minute have no order" in told()
    assert "timestamp_format=order" in told() and "have equal times" not in told()
    config.data.timestamp_format = ORDER
    assert "in 1970" not in told()


def test_dates_written_as_numbers_are_told():
    dates = [20_240_131, 20_231_201]
    with pytest.raises(UserError, match=r"look like dates written as YYYYMMDD.*format=%Y%m%d"):
        list(TimeRange("file.csv").checked(seconds(*dates)))
    for other in (20_241_331, 20_240_132, 999):  # no month 13, no day 32, no year
        list(TimeRange("file.csv").checked(seconds(*dates, other)))


def test_places_in_an_order_are_minutes_apart():
    def read(*values):
        table = pl.DataFrame({"t": values}, strict=False)
        chunk = Chunk(np.arange(7, 7 + len(values)), table)
        path = Path("file.csv")
        return parse_timestamps(chunk, "t", path, ORDER, settable=True).to_list()

    assert read(1, 2, 30_000_000) == [60_000, 120_000, 1_800_000_000_000]
    with pytest.raises(UserError, match="line 8: column 't' holds 'x', which is not a number"):
        read("1", "x")


def test_numbers_of_milliseconds():
    def read(*values):
        chunk = Chunk(np.arange(7, 7 + len(values)), pl.DataFrame({"t": values}, strict=False))
        return parse_timestamps(chunk, "t", Path("file.json"), ticks=1000).to_list()

    assert read("1700000000123", "1.7e12", "2024-01-31", "0", "1700000000123.9") == [
        1_700_000_000_123, 1_700_000_000_000, 1_706_659_200_000, 0, 1_700_000_000_123,
    ]  # fmt: skip
    with pytest.raises(UserError, match="line 8: column 't' holds 1700000000, where milliseconds"):
        read("1700000000123", "1700000000")


def test_other_sources_are_not_told_of_a_flag_that_they_do_not_read():
    chunk = Chunk(np.arange(1, 2), pl.DataFrame({"t": ["x"]}))
    for form in ("", "%Y"):
        with pytest.raises(UserError) as told:
            parse_timestamps(chunk, "t", Path("f"), form)
        assert "--config" not in str(told.value)


@pytest.mark.parametrize("form", ["%d %d", "%Y-%m-%d %Q", "%"])
def test_a_format_that_python_cannot_read_is_told(form):
    with pytest.raises(UserError, match=r"timestamp_format is .*, which strptime can't read"):
        parsed(["1 2"], form)


def test_a_fraction_of_a_day_counts():
    form = "%Y-%m-%d.%f"
    assert parsed(["2024-01-31.250000"], form) == [1_706_659_200_250]
