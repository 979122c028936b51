"""The table of published results: its facts, one's own results beside them, and what is no table."""

from __future__ import annotations

import csv
import math

import pytest
from masksets import SHARED, in_process

import imagenets
from imagenets.common.errors import InputError
from imagenets.reporting.published import COLUMNS, Standing, read_results, read_standings, standings
from imagenets.reporting.standing import standing_section

FACTS = SHARED / "published_results.csv"
HEADER = ",".join(COLUMNS)


def test_records_are_what_pandas_takes():
    records = imagenets.published()
    assert records and all(tuple(record) == COLUMNS for record in records)
    assert all(type(record["mIoU"]) is float and 0 < record["mIoU"] < 100 for record in records)
    assert all(record["source"] and record["method"] for record in records)
    assert {record["mode"] for record in records} == {"50", "300", "919"}
    assert all(not (math.isnan(row.val) and math.isnan(row.test)) for row in standings(records))


def test_the_splits_of_a_method_are_one_row_with_all_their_sources():
    (mdc,) = (row for row in standings(imagenets.published(50)) if row.method == "MDC")
    assert (mdc.val, mdc.test, mdc.protocol) == (4.0, 3.6, "fully-unsupervised")
    assert "PASS-SAM" in mdc.source and "namedmask" in mdc.source
    (pass_,) = (row for row in standings(imagenets.published(50, "distance-matching")))
    assert (pass_.val, pass_.test) == (39.6, 40.4) and ";" not in pass_.source


def test_what_is_only_known_on_test_is_in_the_reports_table_and_not_in_its_chart():
    run = Standing("free", "919", "this run", "", "", "", val=30.0, test=math.nan, own=True)
    section = standing_section(run, 12_419, None, read_standings("919", "free", None))
    assert [(row["method"], row["text"], row["test_text"]) for row in section["rows"]][:2] == [
        ("this run", "30.00", "–"),
        ("ZUTIS", "–", "37.4"),
    ]
    assert "this run" in section["chart"] and "ZUTIS" not in section["chart"]


@pytest.mark.skipif(not FACTS.is_file(), reason="the facts are not beside the checkout")
def test_numbers_are_those_of_the_facts():
    keys = ("protocol", "mode", "method", "split", "source")
    with FACTS.open(encoding="utf-8") as file:
        facts = sorted((*(row[key] for key in keys), float(row["mIoU"])) for row in csv.DictReader(file))
    ours = sorted((*(record[key] for key in keys), record["mIoU"]) for record in imagenets.published())
    assert ours == facts


def test_one_mode_protocol_and_split():
    assert [r["mIoU"] for r in imagenets.published(919, "distance-matching", "test")] == [15.6]
    assert imagenets.published("50", "semi-supervised") == []
    for wrong in ({"mode": 51}, {"protocol": "unsupervised"}, {"split": "train"}):
        with pytest.raises(ValueError, match="there are"):
            imagenets.published(**wrong)


def test_own_results_stand_among_them(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        f"\ufeff{HEADER},seed\n"
        'semi-supervised,919,"Änne, & Co",,,val,50.75,,7\n'
        "free,50,other,,,test,99,,7\n"
        "semi-supervised,919,twice,a,b,val,1,c,1\n"
        "semi-supervised,919,twice,a,b,val,2,c,2\n"
        "semi-supervised,919,twice,a,b,test,3,c,2\n",
        encoding="utf-8",
    )
    rows = read_standings("919", "semi-supervised", path)
    assert len(rows) == 18 + 3
    values = [row.val for row in rows]
    assert values == sorted(values, reverse=True)
    assert [(row.method, row.val, row.test) for row in rows if row.own] == [
        ("Änne, & Co", 50.75, pytest.approx(math.nan, nan_ok=True)),
        ("twice", 2, pytest.approx(math.nan, nan_ok=True)),
        ("twice", 1, 3),
    ]
    done = in_process("evaluation/published.py", "--mode", 919, "--results", path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "Änne" in line]
    assert line.split()[-3:] == ["50.75", "-", "-"] and "Änne, & Co *" in line
    assert "* not published" in done.stdout and "comparable only within a protocol" in done.stdout
    assert "fully-unsupervised" in done.stdout
    assert "fully" not in in_process("evaluation/published.py", "--mode", 919, "--protocol", "free").stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "mine.csv: no such file"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        ("protocol,mode,method\n", "no column split, mIoU"),
        ("", "no column protocol"),
        (f"{HEADER}\nfree,919,A,,,val,101,\n", "line 2: mIoU '101' is not a percentage"),
        (f"{HEADER}\nfree,919,A,,,val,nan,\n", "line 2: mIoU 'nan' is not a percentage"),
        (f"{HEADER}\nfree,100,A,,,val,1,\n", "line 2: mode '100' is not one of 50, 300, 919"),
        (f"{HEADER}\nfree,50,,,,val,1,\n", "line 2: no method"),
        (f"{HEADER}\nfree,50,A,,,validation,1,\n", "line 2: split 'validation' is not one of val, test"),
        (f"{HEADER}\nfree,50\n", "line 2: split '' is not one of"),
    ],
)
def test_what_is_no_table_of_results(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_results(path)
