"""Manifests of every format: the good rows, the bad ones with their place, and how little of it is in memory."""

import csv
import gzip
import json
import logging
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from omni.data.manifests import BAD_ROWS_KEPT, Manifests, open_rows
from omni.errors import DataError

TEXTS = ["first", "second, with a comma", 'third "quoted"', "fourth\nin two lines", "fünf 猫"]
ROWS = [{"text": text, "speaker": f"s{i}"} for i, text in enumerate(TEXTS)]


def write_csv(path: Path, rows: list[dict]) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_parquet(path: Path, rows: list[dict], **options) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


def write_gzip(path: str) -> str:
    packed = Path(path + ".gz")
    packed.write_bytes(gzip.compress(Path(path).read_bytes()))
    return str(packed)


WRITERS = {
    "jsonl": lambda folder, rows: folder.jsonl("m.jsonl", rows),
    "jsonl.gz": lambda folder, rows: write_gzip(folder.jsonl("m.jsonl", rows)),
    "csv": lambda folder, rows: write_csv(folder.root / "m.csv", rows),
    "csv.gz": lambda folder, rows: write_gzip(write_csv(folder.root / "m.csv", rows)),
    "parquet": lambda folder, rows: write_parquet(folder.root / "m.parquet", rows, row_group_size=2),
}


@pytest.fixture(params=WRITERS)
def write(request, folder):
    return lambda rows: WRITERS[request.param](folder, rows)


def problems(source: str, *required: str) -> list[str]:
    """`line: reason` of the bad rows."""
    return [f"{bad.line}: {bad.reason}" for bad in open_rows(source, required).bad]


# --- every format


def test_every_format_gives_the_same_rows_in_any_order(write):
    rows = open_rows(write(ROWS), ("text",))
    assert len(rows) == 5 and list(rows) == ROWS and not rows.bad
    assert [rows[i] for i in (4, 0, 3, 3, 1)] == [ROWS[i] for i in (4, 0, 3, 3, 1)]


def test_threads_may_read_the_same_rows(write):
    rows = open_rows(write([{"text": f"row {i} " + "x" * (i % 50)} for i in range(500)]), ("text",))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: rows[i % 500]["text"].split()[1], range(2000)))
    assert read == [str(i % 500) for i in range(2000)]


def test_rows_without_a_required_field_are_reported_and_the_others_keep_their_numbers(write, caplog):
    source = write([{"text": "a"}, {"text": ""}, {"text": "b"}, {"text": "  "}])
    with caplog.at_level(logging.WARNING):
        rows = open_rows(source, ("text",))
    is_table = not source.endswith((".csv", ".csv.gz"))
    lines = (2, 4) if is_table else (3, 5)
    assert [row["text"] for row in rows] == ["a", "b"]
    assert [str(bad) for bad in rows.bad] == [f"{source}:{line}: has no 'text'" for line in lines]
    assert caplog.messages == [rows.report()] and rows.report().splitlines()[0] == f"{source}: 2 rows, 2 bad"
    assert rows.where(1) == f"{source}:{3 if is_table else 4}"


def test_media_paths_are_relative_to_the_manifest_and_a_missing_file_is_a_bad_row(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    folder.clip("clips/a.wav")
    rows = [
        {"audio": "clips/a.wav", "text": "a"},
        {"audio": "clips/b.wav", "text": "b"},
        {"audio": str(folder.root / "clips/a.wav"), "text": "c"},
    ]
    for name, write_rows in WRITERS.items():
        opened = open_rows(write_rows(folder, rows), ("audio", "text"))
        assert [opened.path(row["audio"]) for row in opened] == [folder.root / "clips/a.wav"] * 2, name
        assert [bad.reason for bad in opened.bad] == [f"no such file {folder.root / 'clips/b.wav'}"], name


def test_a_manifest_without_a_good_row_is_an_error_that_shows_the_first_bad_one(write):
    with pytest.raises(DataError, match=r"no usable row; the first of 2 bad rows: .*:\d: has no 'text'"):
        open_rows(write([{"text": "", "a": "x"}, {"text": "", "a": "y"}]), ("text",))


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.jsonl.gz", "m.csv.gz"])
def test_an_empty_manifest_is_an_error(folder, name):
    path = folder.root / name
    path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    with pytest.raises(DataError, match="no usable row: it is empty"):
        open_rows(str(path), ("text",))


def test_either_of_two_fields_may_be_required(folder):
    source = folder.jsonl("m.jsonl", [{"text": "a"}, {"messages": [{"role": "assistant", "content": "b"}]}, {"other": "c"}])
    rows = open_rows(source, ("text|messages",))
    assert len(rows) == 2 and [bad.line for bad in rows.bad] == [3]


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.parquet", "a/b/c", "./gone", "/gone/away"])
def test_a_missing_source_is_an_error_without_asking_the_network(tmp_path, monkeypatch, name):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"^{name}: no such manifest"):
        open_rows(name, ("text",))


def test_another_kind_of_file_is_an_error_that_names_the_kinds(folder):
    (folder.root / "m.txt").write_text("x")
    with pytest.raises(DataError, match=r"unknown kind of manifest '.txt'; use .jsonl, .jsonl.gz, .csv or .parquet"):
        open_rows(str(folder.root / "m.txt"), ("text",))


# --- JSONL


def test_every_kind_of_bad_line_is_reported_with_its_line(folder):
    lines = [
        {"text": "good"},
        '{"text": "cut',
        "[1, 2]",
        "",
        '"text"',
        {"text": 5},
        {"text": None},
        {"text": ["a"]},
        {},
        '{"text": "lone \\ud800"}',
        "[" * 100_000,
        {"text": "also good"},
    ]
    rows = open_rows(folder.jsonl("m.jsonl", lines), ("text",))
    reasons = [f"{bad.line}: {bad.reason}" for bad in rows.bad]
    assert [row["text"] for row in rows] == ["good", "also good"] and rows.n_bad == 9
    assert reasons[0].startswith("2: not JSON: ") and reasons[-1].startswith("11: not JSON: ")
    assert reasons[1:-1] == [
        "3: expected an object, found list",
        "5: expected an object, found str",
        "6: 'text' should be text, found int",
        "7: has no 'text'",
        "8: 'text' should be text, found list",
        "9: has no 'text'",
        "10: 'text' is not Unicode text",
    ]


def test_bytes_that_are_no_text_spoil_their_line_only(folder):
    path = folder.root / "m.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "\xff\xfe"}\n{"text": "last, without newline"}')
    rows = open_rows(str(path), ("text",))
    assert [row["text"] for row in rows] == ["a", "last, without newline"]
    assert [(bad.line, bad.reason[:8]) for bad in rows.bad] == [(2, "not JSON")]


def test_of_many_bad_rows_the_first_are_kept_and_all_are_counted(folder):
    rows = open_rows(folder.jsonl("m.jsonl", [{"text": "good"}, *[{}] * 250]), ("text",))
    assert rows.n_bad == 250 and len(rows.bad) == BAD_ROWS_KEPT
    assert rows.report().endswith("and 150 more")


def test_a_gzip_file_cut_short_or_spoilt_is_an_error(folder):
    packed = gzip.compress(json.dumps({"text": "a" * 100}).encode())
    spoilt = bytearray(packed)
    spoilt[12:16] = b"\xff\xff\xff\xff"
    for content in (packed[:-12], b"no gzip", bytes(spoilt)):
        path = folder.root / "m.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"^{path}: not a complete gzip file"):
            open_rows(str(path), ("text",))


# --- conversations


def test_every_kind_of_bad_conversation_is_reported(folder):
    folder.picture("p.png")
    answer = {"role": "assistant", "content": "yes"}

    def asked(*parts):
        return {"messages": [{"role": "user", "content": list(parts)}, answer]}

    text = {"type": "text", "text": "and?"}
    good = asked({"type": "image", "image": "p.png"}, text)
    lines = [
        good,
        {"messages": []},
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"messages": [{"role": "robot", "content": "hello"}]},
        {"messages": [{"role": "user"}, answer]},
        asked({"type": "video", "video": "x.mp4"}),
        asked({"type": "image"}),
        asked({"type": "text", "text": 3}),
        asked({"type": "image", "image": "gone.png"}, text),
        asked({"type": "audio", "audio": 3}),
        {"messages": [{"role": "user", "content": "hello"}]},
        {"messages": [{"role": "assistant", "content": "\ud800"}]},
        {"messages": [answer]},
    ]
    rows = open_rows(folder.jsonl("m.jsonl", lines), ("messages",))
    assert list(rows) == [good, {"messages": [answer]}]
    expected = [
        "has no 'messages'",
        "'messages' should be a list, found str",
        "a message needs a role",
        "a message needs a role",
        "a message's content",
        "a part is",
        "a part is",
        "a text part holds text",
        f"no such file {folder.root / 'gone.png'}",
        "'audio' should be a path, found int",
        "has no assistant message",
        "'text' is not Unicode text",
    ]
    assert [bad.line for bad in rows.bad] == list(range(2, 14))
    for bad, start in zip(rows.bad, expected, strict=True):
        assert bad.reason.startswith(start)


# --- CSV


def test_every_kind_of_bad_csv_record_is_reported_with_the_line_where_it_begins(folder):
    path = folder.root / "m.csv"
    path.write_bytes(
        b"text,speaker\n"
        b'"two\nlines",a\n'  # lines 2 and 3
        b"only one field\n"
        b"\n"
        b"a,b,c\n"
        b'"closed" too early,b\n'
        b"\xff,b\n"
        b",b\n"
        b'5" disk,b\n'
        b'"never closed,b\n'
        b"swallowed,b\n"
    )
    rows = open_rows(str(path), ("text",))
    assert list(rows) == [{"text": "two\nlines", "speaker": "a"}, {"text": '5" disk', "speaker": "b"}]
    assert [rows.where(i) for i in range(2)] == [f"{path}:2", f"{path}:10"]
    assert [f"{bad.line}: {bad.reason}" for bad in rows.bad] == [
        "4: 1 fields, but the header names 2",
        "6: 3 fields, but the header names 2",
        "7: not CSV: ',' expected after '\"'",
        "8: not UTF-8 text",
        "9: has no 'text'",
        "11: not CSV: unexpected end of data (lines 11 to 12 read as one record: is a quote not closed?)",
    ]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"words,speaker", "has no column 'text'; it has: words, speaker"),
        (b"text,text", ":1: the header names a column twice"),
        (b"\xff,text", ":1: the header is not UTF-8"),
    ],
)
def test_a_csv_header_that_cannot_serve_is_an_error(folder, header, message):
    path = folder.root / "m.csv"
    path.write_bytes(header + b"\na,b\n")
    with pytest.raises(DataError, match=message):
        open_rows(str(path), ("text",))


def test_csv_with_a_byte_order_mark_and_windows_line_ends(folder):
    path = folder.root / "m.csv"
    path.write_bytes(b"\xef\xbb\xbftext,speaker\r\na,b\r\n\r\nc,d\r\n")
    rows = open_rows(str(path), ("text",))
    assert list(rows) == [{"text": "a", "speaker": "b"}, {"text": "c", "speaker": "d"}] and not rows.bad


# --- Parquet and Hugging Face


def test_a_damaged_parquet_file_is_an_error(folder):
    path = Path(write_parquet(folder.root / "m.parquet", ROWS * 50))
    whole = path.read_bytes()
    for content in (b"", b"no parquet", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"^{path}: not a readable Parquet file"):
            open_rows(str(path), ("text",))


def test_a_table_without_the_column_is_an_error_that_lists_its_columns(folder):
    with pytest.raises(DataError, match="has no column 'caption'; it has: text, speaker"):
        open_rows(write_parquet(folder.root / "m.parquet", ROWS), ("caption",))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """No network, and a cache of our own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def test_a_saved_data_set_is_read_with_its_splits(folder, hub):
    data = datasets.Dataset.from_list([*ROWS, {"text": "", "speaker": "x"}])
    data.save_to_disk(folder.root / "one")
    datasets.DatasetDict(train=data, test=data.select([1, 2])).save_to_disk(folder.root / "several")
    rows = open_rows(str(folder.root / "one"), ("text",))
    assert list(rows) == ROWS and [(bad.line, bad.reason) for bad in rows.bad] == [(6, "has no 'text'")]
    assert list(open_rows(str(folder.root / "several"), ("text",))) == ROWS
    assert list(open_rows(f"{folder.root / 'several'}:test", ("text",))) == ROWS[1:3]
    with pytest.raises(DataError, match="split 'gone'"):
        open_rows(f"{folder.root / 'several'}:gone", ("text",))


def test_a_folder_of_parquet_files_is_a_data_set(folder, hub):
    (folder.root / "set").mkdir()
    write_parquet(folder.root / "set" / "train.parquet", ROWS)
    assert list(open_rows(str(folder.root / "set"), ("text",))) == ROWS
    with pytest.raises(DataError, match="has no column 'caption'"):
        open_rows(str(folder.root / "set"), ("caption",))


def test_a_folder_that_holds_no_data_is_an_error(folder, hub):
    (folder.root / "set").mkdir()
    with pytest.raises(DataError, match="the folder cannot be read as a Hugging Face data set"):
        open_rows(str(folder.root / "set"), ("text",))


def test_a_hub_name_without_a_network_is_an_error(hub):
    with pytest.raises(DataError, match="^nobody/nothing: no such manifest, and no Hugging Face data set") as error:
        open_rows("nobody/nothing", ("text",))
    assert "\n" not in str(error.value)


def test_embedded_media_keep_their_bytes_and_rows_without_any_are_bad(folder, hub):
    content = (folder.root / folder.clip("a.wav")).read_bytes()
    values = [
        {"bytes": content, "path": None},
        {"bytes": None, "path": "a.wav"},
        {"bytes": None, "path": "gone.wav"},
        {"bytes": None, "path": None},
        None,
    ]
    rows = [{"audio": value, "text": str(i)} for i, value in enumerate(values)]
    opened = open_rows(write_parquet(folder.root / "m.parquet", rows), ("audio", "text"))
    assert [row["audio"] for row in opened] == values[:2] and [bad.line for bad in opened.bad] == [3, 4, 5]
    embedded = [rows[0], rows[4]]
    datasets.Dataset.from_list(embedded).cast_column("audio", datasets.Audio()).save_to_disk(folder.root / "set")
    opened = open_rows(str(folder.root / "set"), ("audio", "text"))
    assert [row["audio"] for row in opened] == values[:1] and [bad.line for bad in opened.bad] == [2]


# --- memory


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_rows(folder, kind):
    def held_bytes(n: int) -> int:
        source = WRITERS[kind](folder, [{"text": f"{i} " + "x" * 500} for i in range(n)])
        tracemalloc.start()
        rows = open_rows(source, ("text",))
        assert rows[n - 1]["text"].startswith(f"{n - 1} ")
        held = tracemalloc.get_traced_memory()[0] + pyarrow.total_allocated_bytes()
        tracemalloc.stop()
        return held

    held_bytes(10)
    small, large = held_bytes(1_000), held_bytes(10_000)
    assert large - small < 9_000 * 24, f"{(large - small) / 9_000:.0f} bytes a row"


# --- several manifests


def test_manifests_follow_each_other_and_rows_can_be_chosen_again_and_again(folder):
    a = open_rows(folder.jsonl("a.jsonl", ["broken", {"text": "a0"}, {"text": "a1"}]), ("text",))
    b = open_rows(folder.jsonl("b.jsonl", [{"text": "b0"}, {"text": "b1"}]), ("text",))
    both = Manifests([a, b])
    assert [both[i][0]["text"] for i in range(len(both))] == ["a0", "a1", "b0", "b1"]
    row, source, number = both[1]
    assert row == {"text": "a1"} and source.where(number) == f"{folder.root / 'a.jsonl'}:3"
    chosen = both.choose([3, 1, 0])
    assert [chosen[i][0]["text"] for i in range(len(chosen))] == ["b1", "a1", "a0"]
    assert [chosen.choose([2, 0])[i][0]["text"] for i in range(2)] == ["a0", "b1"]
    with pytest.raises(IndexError):
        both[4]
