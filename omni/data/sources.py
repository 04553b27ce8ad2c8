"""The public data sets: where each is at home, its licence, what it holds, and how it comes into the data folder, verified.

Every data set has committed digests of its decoded content, row by row, in `sources.json`. There are two levels:

    exact     every row with its decoded picture, its samples (FLAC) or its file's bytes (other sound)
    text      every row's fields without the duration; the sounds must be readable and as long as the row says

Sound is converted from its home's format, and resamplers and encoders differ in the last bit between versions, so sound that was
fetched and converted here is held to `text`; everything else, and everything copied from a folder, to `exact`.
After a change of what a data set holds, `python -m omni.data.sources FOLDER [NAME …]` records the digests of FOLDER anew.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from omni.data import conversions
from omni.data.fetching import Debian, Home, Npm
from omni.errors import DataError
from omni.image import load_image

Row = dict[str, Any]
Convert = Callable[[Sequence[Path], Path], None]
Progress = Callable[[str], None]

DIGESTS = Path(__file__).with_name("sources.json")
WORK = ".get"  # in the data folder: downloads, and what is being made
MARK = 4  # hexadecimal digits kept of each row's digest, to tell which row differs
DURATION_S = 0.02  # a sound may be so much longer or shorter than its row says


@dataclass(frozen=True)
class Source:
    """One data set. `files` are its paths in the data folder: folders of media first, manifests (JSONL) last."""

    name: str
    about: str
    size: str
    licence: str
    homes: tuple[Home, ...]
    convert: Convert
    files: tuple[str, ...]
    sound: bool = False

    @property
    def manifests(self) -> tuple[str, ...]:
        return tuple(name for name in self.files if ".jsonl" in name)


SOURCES = {
    source.name: source
    for source in (
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
            "stamps of a painting program for children, with captions",
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

    What is there already is verified and left alone; what is there in part is replaced. Nothing appears under its final name before all
    of it is verified. Raises DataError.
    """
    chosen = find(name)
    present = [(out / file).exists() for file in chosen.files]
    if all(present):
        verify(chosen, out)
        on_progress(f"{name}: is there and verified")
        return
    on_progress(f"{name}: {chosen.about}; {chosen.size}; licence {chosen.licence}; from {source or ' and '.join(map(str, chosen.homes))}")
    work = out / WORK / name
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        if source is not None:
            _copy(chosen, source, made)
        else:
            chosen.convert([home.fetch(work) for home in chosen.homes], made)
        verify(chosen, made, exact=source is not None or not chosen.sound)
    except DataError as error:
        shutil.rmtree(made, ignore_errors=True)
        advice = "" if source is not None else "; a folder that has it can be given with --source DIR"
        raise DataError(f"{name}: {str(error).replace(f'{made}/', '')}{advice}") from None
    for file in chosen.files:
        _place(made / file, out / file)
    shutil.rmtree(work)
    if not any((out / WORK).iterdir()):
        (out / WORK).rmdir()
    on_progress(f"{name}: verified and in {out}")


def get_all(out: Path, *, source: Path | None = None, on_progress: Progress = print) -> None:
    """`get` every data set; what `source` has nothing of comes from its public home. Raises DataError at the end if some could not be had."""
    failed = []
    for name, chosen in SOURCES.items():
        try:
            get(name, out, source=source if source is not None and holds(source, chosen) else None, on_progress=on_progress)
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


def holds(folder: Path, source: Source) -> bool:
    """Whether `folder` has anything of `source`."""
    return any((folder / file).exists() for file in source.files)


def _copy(chosen: Source, source: Path, made: Path) -> None:
    """Copy the files of a data set, and of its media only those that a manifest names."""
    for file in chosen.files:
        if not (source / file).exists():
            raise DataError(f"{source / file}: no such file or folder")
    for manifest in chosen.manifests:
        _copy_file(source / manifest, made / manifest)
        for _, row in _rows(made / manifest):
            medium = _medium(row)
            if medium is not None:
                _copy_file((source / manifest).parent / medium, (made / manifest).parent / medium)
    for file in chosen.files:
        if not chosen.manifests:
            shutil.copytree(source / file, made / file)


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


# --- verifying


def verify(source: Source, folder: Path, *, exact: bool | None = None) -> None:
    """Compare what `folder` holds of `source` with the committed digests. Raises DataError that names the first row that differs.

    `exact` is the level; without it, sound may be at either.
    """
    recorded = json.loads(DIGESTS.read_text(encoding="utf-8"))[source.name]
    found = digests(source, folder)
    levels = ["exact"] if exact else ["text"] if exact is False else list(recorded)
    if any(_sha256(found[level]) == recorded[level]["sha256"] for level in levels):
        return
    level = levels[-1]
    marks = recorded[level]["marks"]
    expected = [marks[i : i + MARK] for i in range(0, len(marks), MARK)]
    for where, digest, mark in zip(found["where"], found[level], expected, strict=False):
        if not digest.startswith(mark):
            raise DataError(f"{folder / where}: is not what was released")
    raise DataError(f"{folder / source.files[-1]}: {len(found['where'])} rows, but {len(expected)} were released")


def digests(source: Source, folder: Path) -> dict[str, list[str]]:
    """Where each row of a data set is, and its digests: "where", "exact", and for sound "text"."""
    found: dict[str, list[str]] = {"where": [], "exact": [], **({"text": []} if source.sound else {})}
    for file in source.files:
        if not (folder / file).exists():
            raise DataError(f"{folder / file}: no such file or folder")
    if not source.manifests:
        for path in sorted(path for file in source.files for path in (folder / file).iterdir()):
            found["where"].append(str(path.relative_to(folder)))
            found["exact"].append(_sha256([path.name, path.read_bytes()]))
    for manifest in source.manifests:
        for number, row in _rows(folder / manifest):
            medium = _medium(row)
            content = [] if medium is None else [_decoded((folder / manifest).parent / medium, row)]
            found["where"].append(f"{manifest}:{number}" + (f" ({medium})" if medium else ""))
            found["exact"].append(_sha256([_canonical(row), *content]))
            if source.sound:
                found["text"].append(_sha256([_canonical({name: value for name, value in row.items() if name != "duration_s"})]))
    return found


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


def _medium(row: Row) -> str | None:
    """The picture or sound that a row names, as a path beside the manifest."""
    path = row.get("image", row.get("audio"))
    if path is not None and (not isinstance(path, str) or path.startswith("/") or ".." in Path(path).parts):
        raise DataError(f"{path!r} is not a path beside the manifest")
    return path


def _decoded(path: Path, row: Row) -> bytes:
    """What a medium holds, as bytes. Raises DataError if it cannot be read or a sound is not as long as its row says."""
    if "image" in row:
        picture = load_image(path)
        return repr(picture.size).encode() + picture.tobytes()
    try:
        samples, rate_hz = soundfile.read(path, dtype="int16")
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"{path}: not a readable sound ({error})") from None
    if abs(len(samples) / rate_hz - row["duration_s"]) > DURATION_S:
        raise DataError(f"{path}: lasts {len(samples) / rate_hz:.3f} s, but its row says {row['duration_s']} s")
    return repr(rate_hz).encode() + samples.tobytes() if path.suffix == ".flac" else path.read_bytes()


def _canonical(row: Row) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _sha256(parts: Sequence[str | bytes]) -> str:
    """Of the parts with their lengths, so that nothing can move from one part to the next."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        whole.update(f"{len(content)}:".encode() + content)
    return whole.hexdigest()


def record(folder: Path, names: Sequence[str]) -> None:
    """Write the digests of what `folder` holds into `sources.json`."""
    recorded = json.loads(DIGESTS.read_text(encoding="utf-8")) if DIGESTS.exists() else {}
    for name in names:
        found = digests(find(name), folder)
        recorded[name] = {
            level: {"rows": len(rows), "sha256": _sha256(rows), "marks": "".join(digest[:MARK] for digest in rows)}
            for level, rows in found.items()
            if level != "where"
        }
    DIGESTS.write_text(json.dumps({name: recorded[name] for name in SOURCES if name in recorded}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record(Path(sys.argv[1]), sys.argv[2:] or list(SOURCES))
