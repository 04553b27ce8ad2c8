"""The public data sets: where each is at home, its licence, what it holds, and how it comes into the data folder, verified.

`sources.json` holds digests of the decoded content of every data set, row by row, at two levels:

    text      every row's fields, without the duration
    exact     also the decoded pixels, the samples (FLAC) or the bytes of the file (other sound), and the duration

Sound is converted from its home's format, and resamplers and encoders of other versions differ in the last bit. So sound that was fetched
and converted here is held to `text`, its length and its readability; everything else, and everything copied from a folder, to `exact`.
A home may hold more than was released; the digests also say which of its rows were, and in which order.

To record the digests of what FOLDER holds anew: `python -m omni.data.sources FOLDER NAME …`
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image, UnidentifiedImageError

from omni.data import conversions
from omni.data.fetching import Debian, GitHub, Home, Made, Npm
from omni.errors import DataError

Row = dict[str, Any]
Convert = Callable[[Sequence[Path], Path, conversions.Keep], None]
Progress = Callable[[str], None]

DIGESTS = Path(__file__).with_name("sources.json")
WORK = ".get"  # in the data folder: downloads, and what is being made
TEXT_MARK, EXACT_MARK = 8, 4  # hexadecimal digits that are kept of each row's digest
DURATION_S = 0.02  # a sound may be so much longer or shorter than its row says
TOTAL_DURATION = 0.005  # and a converted data set by this fraction


@dataclass(frozen=True)
class Source:
    """One data set. `files` are its paths in the data folder: folders first, manifests (JSONL) last."""

    name: str
    about: str
    size: str
    licence: str
    homes: tuple[Home, ...]
    convert: Convert
    files: tuple[str, ...]

    @property
    def manifests(self) -> tuple[str, ...]:
        return tuple(file for file in self.files if ".jsonl" in file)

    @property
    def is_sound(self) -> bool:
        return self.files[0].startswith("speech/")


SOURCES = {
    source.name: source
    for source in (
        Source(
            "kathleen",
            "one female US reader, sentences of CMU ARCTIC; split by sentence_id, for there are several takes",
            "1,384 clips, 70 minutes",
            "CC0",
            (GitHub("rhasspy/dataset-voice-kathleen", "c51cb97", ("data",)),),
            conversions.kathleen,
            ("speech/kathleen", "speech/kathleen.jsonl"),
        ),
        Source(
            "lj",
            "part of LJ Speech, one female US reader",
            "192 clips, 21 minutes",
            "public domain",
            (GitHub("PrernaSocity/lj_speech_dataset_part_1", "328134a", ("LJSpeech-1.1",)),),
            conversions.lj,
            ("speech/lj", "speech/lj.jsonl"),
        ),
        Source(
            "heart",
            "teacher speech: synthetic, one clear female voice (Kokoro-82M, af_heart)",
            "2,700 clips, 112 minutes",
            "Apache-2.0 (the synthesizer)",
            (Made("it is synthetic speech and has no public home; docs/data.md tells how it is made"),),
            conversions.teacher,
            ("speech/heart", "speech/heart.jsonl"),
        ),
        Source(
            "voices",
            "style vectors of the synthesizer Kokoro-82M, for `muomni data voices`",
            "7 voices, 4 MB",
            "Apache-2.0",
            (GitHub("hexgrad/kokoro", "dfb907a", ("kokoro.js/voices",)),),
            conversions.voices,
            ("voices/kokoro",),
        ),
        Source(
            "crowd",
            "style vectors of its other English voices, who only ask about pictures",
            "21 voices, 11 MB",
            "Apache-2.0",
            (Npm("kokoro-js", "1.2.1", ("voices",)),),
            conversions.crowd,
            ("voices/crowd",),
        ),
        Source(
            "dialogues",
            "task dialogues between a user and an assistant (Schema-Guided Dialogue)",
            "14,272 dialogues",
            "CC BY-SA 4.0",
            (GitHub("google-research-datasets/dstc8-schema-guided-dialogue", "e852981", ("train", "dev")),),
            conversions.dialogues,
            ("text/dialogues.train.jsonl.gz", "text/dialogues.dev.jsonl.gz"),
        ),
        Source(
            "stories",
            "short stories for children, in simple English",
            "658 stories",
            "CC BY (one: public domain); each row names its author",
            (GitHub("global-asp/asp-source", "99e0223", ("en",)), GitHub("global-asp/pb-source", "9ea530d", ("en",))),
            conversions.stories,
            ("text/stories.jsonl",),
        ),
        Source(
            "novels",
            "fifteen novels",
            "7 MB of text",
            "public domain",
            (GitHub("computationalstylistics/100_english_novels", "143e601", ("corpus",)),),
            conversions.novels,
            ("text/novels",),
        ),
        Source(
            "nlvr",
            "pictures of coloured shapes, each with a sentence about them that is true or false; split by identifier",
            "5,922 pictures",
            "CC BY 4.0",
            (GitHub("lil-lab/nlvr", "1892484", ("nlvr/dev", "nlvr/hidden")),),
            conversions.nlvr,
            ("images/nlvr", "images/nlvr.dev.jsonl.gz", "images/nlvr.hidden.jsonl.gz"),
        ),
        Source(
            "emoji",
            "drawings of emoji in two styles, with their names",
            "3,987 pictures",
            "Apache-2.0 (Noto Emoji) and CC BY-SA 4.0 (OpenMoji)",
            (
                Npm("emoji-datasource-google", "16.0.0", ("emoji.json", "img/google/64")),
                Npm("openmoji", "17.0.0", ("data/openmoji.json", "color/svg")),
            ),
            conversions.emoji,
            ("images/emoji", "images/emoji.jsonl"),
        ),
        Source(
            "clipart",
            "stamps of a painting program for children (Tux Paint), with captions",
            "932 pictures",
            "GPL-2",
            (Debian("tuxpaint-stamps-default", "2022.06.04-1", ("share/tuxpaint/stamps",)),),
            conversions.clipart,
            ("images/clipart", "images/clipart.jsonl"),
        ),
    )
}


# --- getting


def get(name: str, out: Path, *, source: Path | None = None, on_progress: Progress = print) -> None:
    """Bring one data set into the folder `out`, from its public home or from `source`, a folder of the same layout.

    What is there whole is verified and left alone; what is there in part is replaced. Nothing appears under its final name before all of
    it is verified. Raises DataError.
    """
    chosen = find(name)
    if all((out / file).exists() for file in chosen.files):
        try:
            verify(chosen, out)
        except DataError as error:
            raise DataError(f"{name}: {error}; remove {' and '.join(str(out / file) for file in chosen.files)} to get it anew") from None
        on_progress(f"{name}: is there and verified")
        return
    origin = str(source) if source is not None else " and ".join(map(str, chosen.homes))
    on_progress(f"{name}: {chosen.about}; {chosen.size}; licence {chosen.licence}; from {origin}")
    work = out / WORK / name
    try:
        _make(chosen, work, source)
        for file in chosen.files:
            _place(work / "made" / file, out / file)
        shutil.rmtree(work)
    except DataError as error:
        advice = "" if source is not None else "; or take it from a folder that has it with --source DIR"
        raise DataError(f"{name}: {str(error).replace(f'{work}/made/', '').replace(f'{work}/', '')}{advice}") from None
    except OSError as error:
        raise DataError(f"{name}: {error.filename or out}: cannot be written ({error.strerror or error})") from None
    finally:
        _remove_empty(work, out / WORK)
    on_progress(f"{name}: verified and in {out}")


def get_all(out: Path, *, source: Path | None = None, on_progress: Progress = print) -> None:
    """`get` every data set; what `source` has nothing of comes from its public home. Raises DataError at the end if some could not be had."""
    failed = []
    for name, chosen in SOURCES.items():
        has_some = source is not None and any((source / file).exists() for file in chosen.files)
        try:
            get(name, out, source=source if has_some else None, on_progress=on_progress)
        except DataError as error:
            failed.append(name)
            on_progress(str(error))
    if failed:
        raise DataError(f"{len(failed)} of {len(SOURCES)} data sets could not be had: {', '.join(failed)}")


def find(name: str) -> Source:
    """The data set called `name`. Raises DataError that names the nearest."""
    if name not in SOURCES:
        nearest = difflib.get_close_matches(name, SOURCES, 1)
        raise DataError(f"no data set {name!r}; " + (f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(SOURCES)}"))
    return SOURCES[name]


def _make(chosen: Source, work: Path, source: Path | None) -> None:
    """Make and verify a data set in work/made. Of a failure nothing stays, but the part of a download that was cut."""
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    homes = [] if source is not None else [home.fetch(work) for home in chosen.homes]
    try:
        if source is not None:
            _copy(chosen, source, made)
        else:
            chosen.convert(homes, made, _keeper(chosen))
        verify(chosen, made, exact=source is not None)
    except DataError:
        shutil.rmtree(work)
        raise
    except (KeyError, TypeError, ValueError) as error:
        shutil.rmtree(work)
        raise DataError(f"not of the expected form ({error!r})") from None


def _keeper(chosen: Source) -> conversions.Keep:
    """Chooses the released rows of a manifest, in their order, from those that a home has."""

    def keep(manifest: str, rows: Iterable[Row]) -> list[Row]:
        marks = _marks(chosen.name, manifest, "text")
        found: dict[str, Row] = {}
        for row in rows:
            found.setdefault(_text_digest(row)[:TEXT_MARK], row)
        missing = [number for number, mark in enumerate(marks, 1) if mark not in found]
        if missing:
            raise DataError(f"{manifest}: its home lacks {len(missing)} of {len(marks)} rows, the first of them row {missing[0]}")
        return [found[mark] for mark in marks]

    return keep


def _copy(chosen: Source, source: Path, made: Path) -> None:
    """Copy a data set, and of its folder of media only what a manifest names."""
    for file in chosen.files:
        if not (source / file).exists():
            raise DataError(f"{source / file}: no such file or folder")
    for manifest in chosen.manifests:
        _copy_file(source / manifest, made / manifest)
        for _, row in _rows(made / manifest):
            medium = _medium(row)
            if medium is not None:
                _copy_file((source / manifest).parent / medium, (made / manifest).parent / medium)
    if not chosen.manifests:
        for path in _files(chosen, source):
            _copy_file(path, made / path.relative_to(source))


def _copy_file(source: Path, target: Path) -> None:
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _place(made: Path, final: Path) -> None:
    """Rename into place, over what is left of an earlier attempt."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir():
        shutil.rmtree(final)
    made.replace(final)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        for inner in (folder / "made", folder):
            if inner.is_dir() and not any(inner.iterdir()):
                inner.rmdir()


# --- verifying


@dataclass(frozen=True)
class Digest:
    """The digests of one row, or of one file of a data set without a manifest."""

    file: str  # of `Source.files`
    where: str
    text: str
    exact: str
    duration_s: float = 0.0


def verify(source: Source, folder: Path, *, exact: bool = False) -> None:
    """Compare what `folder` holds of a data set with the recorded digests; sound may differ in its samples, unless `exact`.

    Raises DataError that names the first row that differs.
    """
    recorded = _recorded()[source.name]
    found = list(digests(source, folder))
    if _total(found, "exact") == recorded["exact"]:
        return
    level = "text" if source.is_sound and not exact else "exact"
    if _total(found, level) == recorded[level]:
        duration_s = sum(row.duration_s for row in found)
        if abs(duration_s - recorded["duration_s"]) < TOTAL_DURATION * recorded["duration_s"]:
            return
        raise DataError(f"{source.manifests[0]}: {duration_s:.0f} s of sound, but {recorded['duration_s']:.0f} s were released")
    for file in recorded["marks"]:
        rows = [row for row in found if row.file == file]
        marks = _marks(source.name, file, level)
        for row, mark in zip(rows, marks, strict=False):
            if not getattr(row, level).startswith(mark):
                raise DataError(f"{folder / row.where}: is not what was released")
        if len(rows) != len(marks):
            raise DataError(f"{folder / file}: has {len(rows)} rows, but {len(marks)} were released")
    raise DataError(f"{folder / source.files[-1]}: is not what was released")


def digests(source: Source, folder: Path) -> Iterator[Digest]:
    """What `folder` holds of a data set, row by row."""
    for file in source.files:
        if not (folder / file).exists():
            raise DataError(f"{folder / file}: no such file or folder")
    for manifest in source.manifests:
        for number, row in _rows(folder / manifest):
            medium = _medium(row)
            content = [] if medium is None else [_decoded((folder / manifest).parent / medium, row)]
            where = f"{manifest}:{number}" + (f" ({medium})" if medium else "")
            yield Digest(manifest, where, _text_digest(row), _sha256([_canonical(row), *content]), row.get("duration_s", 0.0))
    if not source.manifests:
        for path in _files(source, folder):
            digest = _sha256([path.name, path.read_bytes()])
            yield Digest(source.files[0], str(path.relative_to(folder)), digest, digest)


def record(folder: Path, names: Sequence[str]) -> None:
    """Write the digests of what `folder` holds into `sources.json`."""
    recorded = json.loads(DIGESTS.read_text(encoding="utf-8")) if DIGESTS.exists() else {}
    for name in names:
        rows = list(digests(find(name), folder))
        assert len({(row.file, row.text[:TEXT_MARK]) for row in rows}) == len(rows), "two rows with one mark"
        marks: dict[str, dict[str, str]] = {row.file: {"text": "", "exact": ""} for row in rows}
        for row in rows:
            marks[row.file]["text"] += row.text[:TEXT_MARK]
            marks[row.file]["exact"] += row.exact[:EXACT_MARK]
        duration_s = round(sum(row.duration_s for row in rows), 3)
        recorded[name] = {"text": _total(rows, "text"), "exact": _total(rows, "exact"), "duration_s": duration_s, "marks": marks}
        ordered = {known: recorded[known] for known in SOURCES if known in recorded}
        DIGESTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    _recorded.cache_clear()


@cache
def _recorded() -> dict[str, Any]:
    return json.loads(DIGESTS.read_text(encoding="utf-8"))


def _marks(name: str, file: str, level: str) -> list[str]:
    """The beginnings of the digests of a file's rows."""
    marks = _recorded()[name]["marks"][file][level]
    width = TEXT_MARK if level == "text" else EXACT_MARK
    return [marks[i : i + width] for i in range(0, len(marks), width)]


def _total(rows: Sequence[Digest], level: str) -> str:
    return _sha256([getattr(row, level) for row in rows])


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a manifest with their line numbers."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: expected an object, found {type(row).__name__}")
                yield number, row
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _files(source: Source, folder: Path) -> list[Path]:
    """The files of a data set that has no manifest."""
    return sorted(path for file in source.files for path in (folder / file).iterdir() if path.is_file())


def _medium(row: Row) -> str | None:
    """The picture or sound that a row names, as a path beside the manifest."""
    path = row.get("image", row.get("audio"))
    if path is not None and (not isinstance(path, str) or path.startswith("/") or ".." in Path(path).parts):
        raise DataError(f"{path!r} is not a path beside the manifest")
    return path


def _decoded(path: Path, row: Row) -> bytes:
    """What a medium holds, as bytes. Raises DataError if it cannot be read or a sound is not as long as its row says."""
    if "image" in row:
        try:
            with Image.open(path) as picture:
                return f"{picture.mode} {picture.size}".encode() + picture.tobytes()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path}: not a readable picture ({error})") from None
    try:
        sound = soundfile.info(path)
        samples = soundfile.read(path, dtype="int16")[0] if sound.format == "FLAC" else None
        content = path.read_bytes() if samples is None else f"{sound.samplerate}".encode() + samples.tobytes()
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"{path}: not a readable sound ({error})") from None
    if abs(sound.duration - row["duration_s"]) > DURATION_S:
        raise DataError(f"{path}: lasts {sound.duration:.3f} s, but its row says {row['duration_s']} s")
    return content


def _text_digest(row: Row) -> str:
    return _sha256([_canonical({name: value for name, value in row.items() if name != "duration_s"})])


def _canonical(row: Row) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _sha256(parts: Sequence[str | bytes]) -> str:
    """Of the parts with their lengths, so that nothing can move from one part to the next."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        whole.update(f"{len(content)}:".encode() + content)
    return whole.hexdigest()


if __name__ == "__main__":
    record(Path(sys.argv[1]), sys.argv[2:])
