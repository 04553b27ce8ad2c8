"""Public data: the same rows from a home as from a folder, every digest holds, and every failure is one line that leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from omni.cli.app import main
from omni.data import conversions, fetching, sources
from omni.data.sources import SOURCES, get, get_all, record, verify
from omni.errors import DataError

Files = dict[str, bytes]


def wav(rate_hz: int, channels: int, seconds: float = 0.3, pitch_hz: float = 220.0) -> bytes:
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    file = io.BytesIO()
    wave = 0.3 * np.sin(2 * np.pi * pitch_hz * time_s)
    soundfile.write(file, np.stack([wave] * channels, axis=1), rate_hz, format="WAV")
    return file.getvalue()


def png(colour: str, size: tuple[int, int] = (8, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def dialogue(number: int) -> dict[str, Any]:
    turns = [
        {"speaker": "USER", "utterance": f"A table for {number}?", "frames": []},
        {"speaker": "SYSTEM", "utterance": "Yes.", "frames": []},
    ]
    return {"dialogue_id": f"1_{number:05d}", "services": ["Restaurants_1"], "turns": turns}


def example(identifier: str, label: str) -> bytes:
    shapes = [[{"x_loc": 1, "y_loc": 2, "type": "circle", "color": "Yellow", "size": 10}], [], []]
    return json.dumps({"identifier": identifier, "sentence": "A circle.", "label": label, "structured_rep": shapes, "evals": {}}).encode()


def book(title: str, licence: str = "CC-BY") -> bytes:
    pages = ["She said,\n“Hello…”", "It’s the\nend."]
    imprint = f"* License: [{licence}]\n* Text: Ann Author\n* Illustration: Bob\n* Language: en\n"
    return (f"# {title}\n\n##\n" + "".join(f"{page}\n\n##\n" for page in pages) + imprint).encode()


HOMES: dict[str, list[Files]] = {
    "kathleen": [
        {
            f"data/arctic_a000{n}_159{n}.{kind}": content
            for n in (1, 2)
            for kind, content in (("wav", wav(48_000, 2)), ("txt", b"Hello there.\n"))
        }
    ],
    "lj": [
        {
            "LJSpeech-1.1/metadata.csv": b'LJ001-0001|in 1455, "so"|in fourteen fifty-five, "so"\nLJ001-0002|b|b\n',
            "LJSpeech-1.1/wavs/LJ001-0001.wav": wav(22_050, 1),
            "LJSpeech-1.1/wavs/LJ001-0002.wav": wav(22_050, 1),
        }
    ],
    "dialogues": [
        {f"{split}/dialogues_00{n}.json": json.dumps([dialogue(n), dialogue(n + 2)]).encode() for split in ("train", "dev") for n in (1, 2)}
        | {"test/dialogues_001.json": b"[]", "train/schema.json": b"[]"}
    ],
    "stories": [{"en/0001_one.md": book("One"), "en/0002_two.md": book("Two", "CC-BY-NC")}, {"en/0001_three.md": book("Three")}],
    "novels": [{f"corpus/{name}.txt": f"\ufeff{name}".encode() for name in [*conversions.NOVELS, "Other_Novel_1900"]}],
    "voices": [{f"kokoro.js/voices/{name}.bin": name.encode() for name in [*conversions.VOICES, "af_other"]}],
    "nlvr": [
        {f"nlvr/{split}/{split}.json": example("7-0", "true") + b"\n" + example("7-1", "false") + b"\n" for split in ("dev", "hidden")}
        | {f"nlvr/{s}/images/0/{s}-7-{n}-{k}.png": png("red", (8 + k, 4 + n)) for s in ("dev", "hidden") for n in (0, 1) for k in range(6)}
    ],
}
LEFT_OUT = {  # of what a home has
    "kathleen": lambda row: row["sentence_id"] == "arctic_a0002",
    "lj": lambda row: row["sentence_id"] == "LJ001-0002",
    "dialogues": lambda row: row["id"] == "1_00003",
    "stories": lambda row: row["license"] == "CC-BY-NC",
    "nlvr": lambda row: row["identifier"] == "7-1",
}


def write_files(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def archive(path: Path, files: Files, top: str = "repository-1234567") -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(autouse=True)
def _own_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test records its own; those that are committed are not touched."""
    monkeypatch.setattr(sources, "DIGESTS", tmp_path / "digests.json")
    sources._recorded.cache_clear()
    yield
    sources._recorded.cache_clear()


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a data set into its (pretended) public home and releases part of it; returns a folder that holds the release."""
    monkeypatch.setattr(fetching, "ARCHIVE", f"file://{tmp_path}/{{commit}}.tar.gz")

    def publish(name: str) -> Path:
        homes = [write_files(tmp_path / "homes" / name / str(i), files) for i, files in enumerate(HOMES[name])]
        for home, files in zip(SOURCES[name].homes, HOMES[name], strict=True):
            assert isinstance(home, fetching.GitHub)
            archive(tmp_path / f"{home.commit}.tar.gz", files)
        left_out = LEFT_OUT.get(name, lambda row: False)
        release = tmp_path / "release"
        SOURCES[name].convert(homes, release, lambda manifest, rows: [row for row in reversed(list(rows)) if not left_out(row)])
        record(release, [name])
        return release

    return publish


def contents(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines()]


def spoil(path: Path) -> None:
    """Another sample or another pixel, in a file of the same length."""
    if path.suffix == ".flac":
        samples, rate_hz = soundfile.read(path, dtype="int16")
        samples[100] += 1
        soundfile.write(path, samples, rate_hz)
    else:
        path.write_bytes(path.read_bytes() + b"x")


# --- what is got


@pytest.mark.parametrize("name", HOMES)
def test_a_public_home_and_a_folder_give_the_same(name: str, public: Callable[[str], Path], tmp_path: Path) -> None:
    release = public(name)
    get(name, tmp_path / "fetched")
    get(name, tmp_path / "copied", source=release)
    assert contents(tmp_path / "copied") == contents(release)
    if name != "lj":  # an Ogg stream has a random number
        assert contents(tmp_path / "fetched") == contents(release)
    assert not (tmp_path / "fetched" / sources.WORK).exists()


def test_of_the_packaged_styles_the_english_ones_that_are_not_had_already_are_the_crowd(tmp_path: Path) -> None:
    packaged = ["af_sky", "bm_lewis", "am_adam", *conversions.VOICES, "zf_xiaoni", "em_alex"]
    home = write_files(tmp_path / "package", {f"voices/{name}.bin": name.encode() for name in packaged})
    conversions.crowd([home], tmp_path / "out", lambda manifest, rows: list(rows))
    assert contents(tmp_path / "out") == {f"voices/crowd/{name}.bin": name.encode() for name in ("af_sky", "bm_lewis", "am_adam")}


def test_the_rows_have_the_fields_that_the_stages_read(public: Callable[[str], Path]) -> None:
    for name in HOMES:
        release = public(name)
    (take,) = rows_of(release / "speech/kathleen.jsonl")
    sound = soundfile.info(release / "speech/kathleen/arctic_a0001_1591.flac")
    assert (sound.samplerate, sound.channels, sound.subtype) == (16_000, 1, "PCM_16")
    clip = {"audio": "kathleen/arctic_a0001_1591.flac", "text": "Hello there.", "speaker": "kathleen", "sentence_id": "arctic_a0001"}
    assert take == {**clip, "duration_s": 0.3}
    (read,) = rows_of(release / "speech/lj.jsonl")
    assert (read["audio"], read["text"]) == ("lj/LJ001-0001.opus", 'in fourteen fifty-five, "so"')
    assert rows_of(release / "text/dialogues.dev.jsonl.gz")[-1] == {
        "id": "1_00001",
        "services": ["Restaurants_1"],
        "messages": [{"role": "user", "content": "A table for 1?"}, {"role": "assistant", "content": "Yes."}],
    }
    told = {row["title"]: row for row in rows_of(release / "text/stories.jsonl")}
    imprint = {"license": "CC-BY", "author": "Ann Author"}
    assert told["One"] == {
        "title": "One",
        "text": 'She said, "Hello..."\nIt\'s the end. ##',
        **imprint,
        "source": "global-asp/asp-source:en/0001_one.md",
    }
    assert told["Three"]["text"].startswith("She said, “Hello...”")
    assert len(list((release / "text/novels").iterdir())) == len(conversions.NOVELS) == 15
    seen = rows_of(release / "images/nlvr.dev.jsonl.gz")[::-1]
    assert [row["image"] for row in seen] == [f"nlvr/dev/dev-7-0-{k}.png" for k in range(3)]
    assert [row["label"] for row in seen] == [True] * 3
    assert ["objects" in row for row in seen] == [True, False, False]


def test_what_is_there_is_verified_and_left_alone(public: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, said = public("novels"), []
    monkeypatch.setattr(fetching, "ARCHIVE", "file:///nowhere")
    get("novels", release, on_progress=said.append)
    assert said == ["novels: is there and verified"]


def test_what_is_there_in_part_is_replaced(public: Callable[[str], Path], tmp_path: Path) -> None:
    release = public("kathleen")
    write_files(tmp_path / "out", {"speech/kathleen/left-over.flac": b"", ".get/kathleen/made/half": b""})
    get("kathleen", tmp_path / "out", source=release)
    assert contents(tmp_path / "out") == contents(release)


def test_the_licence_is_told_before_anything_is_fetched(
    public: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public("novels")
    said: list[str] = []
    monkeypatch.setattr(fetching, "ARCHIVE", "file:///nowhere")
    with pytest.raises(DataError):
        get("novels", tmp_path / "out", on_progress=said.append)
    assert "licence public domain" in said[0] and "computationalstylistics/100_english_novels @ 143e601" in said[0]


def test_sound_that_was_converted_here_may_differ_in_its_samples_but_a_copy_may_not(public: Callable[[str], Path], tmp_path: Path) -> None:
    release = public("kathleen")
    spoil(release / "speech/kathleen/arctic_a0001_1591.flac")
    verify(SOURCES["kathleen"], release)
    with pytest.raises(DataError, match=re.escape("speech/kathleen.jsonl:1 (kathleen/arctic_a0001_1591.flac): is not what was released")):
        get("kathleen", tmp_path / "out", source=release)
    assert contents(tmp_path / "out") == {}


def test_every_committed_data_set_has_digests_of_as_many_rows_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, source in SOURCES.items():
        count = sum(len(sources._marks(name, file, "text")) for file in sources._recorded()[name]["marks"])
        stated = int(source.size.split()[0].replace(",", "")) if name != "novels" else len(conversions.NOVELS)
        assert count == stated, name


# --- pictures from packages


def test_emoji_of_both_sets_share_their_names(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    cat = {"name": "CAT FACE", "unified": "1F431-FE0F", "image": "1f431.png", "category": "Animals & Nature", "has_img_google": True}
    described = [{"hexcode": "1F431", "annotation": "cat face", "group": "animals-nature", "subgroups": "animal-mammal", "skintone": ""}]
    described += [{"hexcode": "1F44B-1F3FB", "annotation": "waving hand", "group": "people-body", "subgroups": "hand", "skintone": "1"}]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect width="36" height="72" fill="#ff0000"/></svg>'
    google = write_files(tmp_path / "g", {"emoji.json": json.dumps([cat]).encode(), "img/google/64/1f431.png": png("blue", (64, 64))})
    openmoji = write_files(tmp_path / "o", {"data/openmoji.json": json.dumps(described).encode(), "color/svg/1F431.svg": svg})
    conversions.emoji([google, openmoji], tmp_path / "out", lambda manifest, rows: [])
    rows = rows_of(tmp_path / "out/images/emoji.jsonl")
    assert [(row["set"], row["name"], row["caption"]) for row in rows] == [(s, "cat face", "Cat face.") for s in ("google", "openmoji")]
    drawn = Image.open(tmp_path / "out/images" / rows[1]["image"])
    assert (drawn.size, drawn.mode) == ((224, 224), "RGB")
    assert [drawn.getpixel((x, 100)) for x in (50, 200)] == [(255, 0, 0), (255, 255, 255)]


def test_the_first_english_sentence_is_a_stamps_caption(tmp_path: Path) -> None:
    texts = {
        "a/owl": "An owl.\nde.utf8=Eine Eule.\n",
        "b/king": "King. Can move one step.\n",
        "b/mouse_mirror": None,
        "c/tag": "– no sentence\n",
    }
    files = {f"share/tuxpaint/stamps/{name}.png": png("green", (500, 100)) for name in texts}
    files |= {f"share/tuxpaint/stamps/{name}.txt": text.encode() for name, text in texts.items() if text}
    conversions.clipart([write_files(tmp_path / "home", files)], tmp_path / "out", lambda manifest, rows: [])
    rows = rows_of(tmp_path / "out/images/clipart.jsonl")
    assert [(row["caption"], row["name"]) for row in rows] == [("An owl.", "owl"), ("King.", "King")]
    assert Image.open(tmp_path / "out/images" / rows[0]["image"]).size == (224, 45)


@pytest.mark.parametrize(
    ("name", "caption"), [("flag: Egypt", "Flag of Egypt."), ("man: red hair", "Man, red hair."), ("red apple", "Red apple.")]
)
def test_a_short_name_becomes_a_caption(name: str, caption: str) -> None:
    assert conversions.emoji_caption(name) == caption


# --- failures


def fails(name: str, out: Path, source: Path | None = None) -> str:
    """The one line of the failure; nothing may be left but the part of a download."""
    with pytest.raises(DataError) as caught:
        get(name, out, source=source)
    assert "\n" not in str(caught.value)
    assert {path for path in contents(out) if not path.endswith(".part")} == set()
    return str(caught.value)


def test_offline_is_one_line_that_names_the_way_out(public: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public("novels")
    monkeypatch.setattr(fetching, "ARCHIVE", "http://localhost:9/{commit}")
    said = fails("novels", tmp_path / "out")
    assert said.startswith("novels: http://localhost:9/143e601: cannot be fetched (") and said.endswith("with --source DIR")


@pytest.mark.parametrize("name", ["kathleen", "nlvr", "novels", "stories"])
def test_a_home_with_other_content_names_what_differs(name: str, public: Callable[[str], Path], tmp_path: Path) -> None:
    public(name)
    changed = {file: content.replace(b"Hello", b"Hallo").replace(b"A circle", b"No circle") for file, content in HOMES[name][0].items()}
    changed |= {file: b"other" for file in changed if name == "novels"}
    archive(tmp_path / f"{SOURCES[name].homes[0].commit}.tar.gz", changed)  # type: ignore[attr-defined]
    said = fails(name, tmp_path / "out")
    expected = "text/novels/Burnett_Garden_1911.txt: is not what was released" if name == "novels" else "its home lacks"
    assert expected in said and SOURCES[name].files[-1].split("/")[0] in said


def test_a_home_of_another_form_is_one_line(public: Callable[[str], Path], tmp_path: Path) -> None:
    public("dialogues")
    archive(tmp_path / "e852981.tar.gz", {"train/dialogues_001.json": b'[{"dialogue": 1}]', "dev/dialogues_001.json": b"[]"})
    assert "not of the expected form (KeyError('turns'))" in fails("dialogues", tmp_path / "out")


def test_a_picture_that_changed_is_named(public: Callable[[str], Path], tmp_path: Path) -> None:
    release = public("nlvr")
    (release / "images/nlvr/dev/dev-7-0-1.png").write_bytes(png("blue", (9, 4)))
    said = fails("nlvr", tmp_path / "out", release)
    assert "images/nlvr.dev.jsonl.gz:2 (nlvr/dev/dev-7-0-1.png): is not what was released" in said and "--source" not in said


def test_a_changed_text_of_sound_is_found_at_either_level(public: Callable[[str], Path], tmp_path: Path) -> None:
    release = public("kathleen")
    manifest = release / "speech/kathleen.jsonl"
    manifest.write_text(manifest.read_text().replace("Hello", "Hallo"))
    with pytest.raises(DataError, match="kathleen.jsonl:1 .* is not what was released; remove .* to get it anew"):
        get("kathleen", release)
    manifest.write_text("")
    with pytest.raises(DataError, match="has 0 rows, but 1 were released"):
        get("kathleen", release)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "speech/kathleen/arctic_a0001_1591.flac").unlink(), "arctic_a0001_1591.flac: no such file"),
        (lambda folder: (folder / "speech/kathleen/arctic_a0001_1591.flac").write_text("no sound"), "not a readable sound"),
        (
            lambda folder: (folder / "speech/kathleen/arctic_a0001_1591.flac").write_bytes(wav(16_000, 1, 1.0)),
            "lasts 1.000 s, but its row says 0.3",
        ),
        (lambda folder: (folder / "speech/kathleen.jsonl").unlink(), "speech/kathleen.jsonl: no such file or folder"),
        (lambda folder: (folder / "speech/kathleen.jsonl").write_text("{"), "speech/kathleen.jsonl: cannot be read"),
        (lambda folder: (folder / "speech/kathleen.jsonl").write_text("[]"), "speech/kathleen.jsonl:1: expected an object, found list"),
        (lambda folder: (folder / "speech/kathleen.jsonl").write_text('{"audio": "../x"}'), "'../x' is not a path beside the manifest"),
    ],
)
def test_a_damaged_folder_names_the_file(
    damage: Callable[[Path], object], expected: str, public: Callable[[str], Path], tmp_path: Path
) -> None:
    release = public("kathleen")
    damage(release)
    assert expected in fails("kathleen", tmp_path / "out", release)


def test_a_damaged_archive_is_removed(public: Callable[[str], Path], tmp_path: Path) -> None:
    public("nlvr")
    path = tmp_path / "1892484.tar.gz"
    path.write_bytes(path.read_bytes()[:-200])
    assert "lil-lab_nlvr.tar.gz: arrived damaged" in fails("nlvr", tmp_path / "out")
    archive(path, {"README": b"elsewhere"})
    assert "holds none of nlvr/dev, nlvr/hidden" in fails("nlvr", tmp_path / "out")
    archive(path, {"nlvr/dev/../../../x": b"elsewhere"})
    assert "nlvr/dev/../../../x: leads out of its folder" in fails("nlvr", tmp_path / "out")


def test_a_cut_download_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = b"0123456789", []

    class Response(io.BytesIO):
        status = 206

    def server(request: urllib.request.Request, timeout: float) -> Response:
        asked.append(request.get_header("Range"))
        start = int(asked[-1][6:-1]) if asked[-1] else 0
        response = Response(whole[start:])
        response.status = 206 if start else 200
        return response

    monkeypatch.setattr(urllib.request, "urlopen", server)
    (tmp_path / "file.part").write_bytes(whole[:4])
    fetching.download("https://example.org/x", tmp_path / "file", max_bytes=100)
    assert (tmp_path / "file").read_bytes() == whole and asked == ["bytes=4-"]
    with pytest.raises(DataError, match="more than the 0 MB"):
        fetching.download("https://example.org/x", tmp_path / "other", max_bytes=5)
    fetching.download("https://example.org/x", tmp_path / "file", max_bytes=5)  # is there: nothing is asked
    assert asked == ["bytes=4-", None]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a pretended package client first on the path."""
    (tmp_path / "bin").mkdir()

    def install(name: str, script: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    return install


def test_a_package_comes_by_its_client(client: Callable[[str, str], None], tmp_path: Path) -> None:
    archive(tmp_path / "package.tgz", {"emoji.json": b"[]", "img/google/64/a.png": b"", "img/sheet.png": b"large"}, "package")
    client("npm", f'[ "$1 $2 $3" = "pack --silent some@1.0.0" ] && cp {tmp_path}/package.tgz some-1.0.0.tgz')
    folder = fetching.Npm("some", "1.0.0", ("emoji.json", "img/google")).fetch(tmp_path)
    assert set(contents(folder)) == {"emoji.json", "img/google/64/a.png"}


def test_a_client_that_fails_or_is_missing_is_one_line(
    client: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digests.json").write_text("{}")
    client("apt-get", "echo 'W: a warning' >&2; echo 'E: Version not found' >&2; exit 100")
    said = fails("clipart", tmp_path / "out")
    assert "`apt-get download tuxpaint-stamps-default=2022.06.04-1` failed: E: Version not found; or take it from" in said
    monkeypatch.setenv("PATH", "")
    assert "emoji: fetching it needs the program 'npm', which is not installed" in fails("emoji", tmp_path / "out")


def test_teacher_speech_tells_how_it_is_made(tmp_path: Path) -> None:
    assert "docs/data.md tells how it is made" in fails("heart", tmp_path / "out")
    assert "`heart`" in (Path(__file__).parents[1] / "docs/data.md").read_text()


def test_all_gets_what_it_can_and_names_the_rest(public: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOMES:
        release = public(name)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(fetching, "ARCHIVE", "file:///nowhere")
    said: list[str] = []
    with pytest.raises(DataError, match="4 of 11 data sets could not be had: heart, crowd, emoji, clipart"):
        get_all(tmp_path / "out", source=release, on_progress=said.append)
    assert contents(tmp_path / "out") == contents(release)
    assert len([line for line in said if line.endswith(f"verified and in {tmp_path / 'out'}")]) == len(HOMES)


# --- the command


def test_an_unknown_name_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "get", "kathlen", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: no data set 'kathlen'; did you mean 'kathleen'?\n"
    assert main(["data", "get", "xyz"]) == 1
    assert "no data set 'xyz'; there are: kathleen, lj, heart" in capsys.readouterr().err


def test_the_command_gets_from_a_folder(public: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = public("stories")
    assert main(["data", "get", "stories", "--source", str(release), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"stories: verified and in {tmp_path / 'out'}"
    assert contents(tmp_path / "out") == contents(release)


def test_the_list_shows_size_licence_and_home(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    for name, source in SOURCES.items():
        assert name in shown and source.size in shown and source.licence in shown and str(source.homes[0]) in shown
