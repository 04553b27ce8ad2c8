"""From the files of a public home to the layout of the data folder: manifests beside the folder of their media.

speech/NAME.jsonl        {"audio", "text", "speaker", "sentence_id", "duration_s"}; 16 kHz mono
text/…                   {"messages"} of dialogues, {"title", "text"} of stories, novels as they are
images/NAME.jsonl        {"image", "caption", "name", "set"} of drawings; NLVR {"image", "sentence", "label", "identifier"}
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from omni.errors import DataError

Row = dict[str, Any]
Keep = Callable[[str, Iterable[Row]], list[Row]]

SPEECH_RATE_HZ = 16_000
NOVELS = [
    "Burnett_Garden_1911",
    "Burnett_Lord_1886",
    "Burnett_Princess_1905",
    "Cbronte_Jane_1847",
    "Chesterton_Innocence_1911",
    "Dickens_Expectations_1861",
    "Dickens_Oliver_1839",
    "Doyle_Hound_1902",
    "Doyle_Lost_1912",
    "Forster_View_1908",
    "Haggard_Mines_1885",
    "Kipling_Captains_1896",
    "Stevenson_Arrow_1888",
    "Stevenson_Treasure_1883",
    "Ward_Milly_1881",
]
VOICES = ["af_bella", "af_heart", "af_nicole", "am_fenrir", "am_michael", "bf_emma", "bm_george"]
STRAIGHT = str.maketrans({"…": "...", "’": "'"})
STRAIGHT_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'"})
NLVR_ORDERS = 3  # of the six orders of the boxes that each example is drawn in

DRAWING_SIZE = 224  # pixels of the longer side at most
OPENMOJI_EXTRAS = [
    "animals-nature",
    "food-drink",
    "gardening",
    "healthcare",
    "objects",
    "travel-places",
    "climate-environment",
    "technology",
]
FIRST_SENTENCE = re.compile(r"[\w“].*?(?:(?<!St)[.!?]”?(?=\s|$)|$)")
ARTICLE = re.compile(r"(?:an?|the|some) ", re.IGNORECASE)


class UndrawableError(DataError):
    """An SVG that the renderer does not take."""


# --- speech


def kathleen(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """48 kHz stereo WAV, each with its text beside it; a sentence has several takes. Becomes FLAC."""

    def rows() -> Iterator[Row]:
        for text in sorted((homes[0] / "data").glob("*.txt")):
            sentence_id = text.stem.rpartition("_")[0]
            yield _clip(f"kathleen/{text.stem}.flac", _read(text).strip(), "kathleen", sentence_id)

    _write_speech(out / "speech/kathleen.jsonl", keep("speech/kathleen.jsonl", rows()), homes[0] / "data", format="FLAC", subtype="PCM_16")


def lj(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """22 kHz WAV; the table gives each text as printed and as read. Becomes Opus."""
    folder = homes[0] / "LJSpeech-1.1"
    table = csv.reader(_read(folder / "metadata.csv").splitlines(), delimiter="|", quoting=csv.QUOTE_NONE)
    rows = (_clip(f"lj/{fields[0]}.opus", fields[-1], "lj", fields[0]) for fields in table if fields)
    _write_speech(out / "speech/lj.jsonl", keep("speech/lj.jsonl", rows), folder / "wavs", format="OGG", subtype="OPUS")


def teacher(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Speech that was made, not fetched; its home raises before this."""
    raise AssertionError(homes)


def voices(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Style vectors of a synthesizer, as they are."""
    for name in VOICES:
        _write(out / f"voices/kokoro/{name}.bin", _read_bytes(homes[0] / f"kokoro.js/voices/{name}.bin"))


def crowd(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Style vectors of the synthesizer's other English voices: American and British, female and male."""
    for style in sorted((homes[0] / "voices").glob("[ab][fm]_*.bin")):
        if style.stem not in VOICES:
            _write(out / "voices/crowd" / style.name, _read_bytes(style))


def _clip(audio: str, text: str, speaker: str, sentence_id: str) -> Row:
    return {"audio": audio, "text": text, "speaker": speaker, "sentence_id": sentence_id}


def _write_speech(manifest: Path, rows: Sequence[Row], sounds: Path, **encoding: str) -> None:
    for row in rows:
        path = manifest.parent / row["audio"]
        waveform = _waveform(sounds / f"{path.stem}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, SPEECH_RATE_HZ, **encoding)
        row["duration_s"] = round(len(waveform) / SPEECH_RATE_HZ, 3)
    write_rows(manifest, rows)


# --- text


def dialogues(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Schema-guided dialogues, of which only the words are taken."""
    roles = {"USER": "user", "SYSTEM": "assistant"}
    for split in ("train", "dev"):

        def rows(files: Sequence[Path]) -> Iterator[Row]:
            for dialogue in (dialogue for file in files for dialogue in _read_json(file)):
                messages = [{"role": roles[turn["speaker"]], "content": turn["utterance"]} for turn in dialogue["turns"]]
                yield {"id": dialogue["dialogue_id"], "services": dialogue["services"], "messages": messages}

        manifest = f"text/dialogues.{split}.jsonl.gz"
        write_rows(out / manifest, keep(manifest, rows(sorted((homes[0] / split).glob("dialogues_*.json")))))


def stories(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Picture books: one Markdown file each, whose pages begin with `##` and whose last lines are the licence and the author."""
    repositories = ("global-asp/asp-source", "global-asp/pb-source")

    def rows() -> Iterator[Row]:
        for repository, home in zip(repositories, homes, strict=True):
            for file in sorted((home / "en").glob("*.md")):
                text = _read(file).translate(STRAIGHT)
                story = parse_story(text.translate(STRAIGHT_QUOTES) if repository.endswith("asp-source") else text)
                yield {**story, "source": f"{repository}:en/{file.name}"}

    write_rows(out / "text/stories.jsonl", keep("text/stories.jsonl", rows()))


def parse_story(markdown: str) -> Row:
    """Title, text (a page a line), licence and author of a picture book."""
    book, _, imprint = markdown.partition("* License:")
    title, *pages = book.strip().split("\n##\n")
    lines = [" ".join(page.split()) for page in pages]
    author = re.search(r"^\* Text: *(.*?) *$", imprint, re.MULTILINE)
    return {
        "title": title.strip("# \n"),
        "text": "\n".join(line for line in lines if line),
        "license": imprint.partition("\n")[0].strip(" []"),
        "author": author[1] if author else "",
    }


def novels(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Plain texts."""
    for name in NOVELS:
        _write(out / f"text/novels/{name}.txt", _read_bytes(homes[0] / f"corpus/{name}.txt"))


# --- pictures


def nlvr(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Pictures of coloured shapes, each with a sentence about them that is true or false."""
    for split in ("dev", "hidden"):
        folder = homes[0] / "nlvr" / split
        pictures = {file.name: file for file in folder.rglob("*.png")}

        def rows(files: Sequence[Path], split: str = split) -> Iterator[Row]:
            for example in (json.loads(line) for file in files for line in _read(file).splitlines() if line.strip()):
                for order in range(NLVR_ORDERS):
                    yield {
                        "image": f"nlvr/{split}/{split}-{example['identifier']}-{order}.png",
                        "sentence": example["sentence"],
                        "label": str(example.get("label")).lower() == "true",
                        "identifier": example["identifier"],
                        **({"objects": example["structured_rep"]} if order == 0 else {}),
                    }

        manifest = f"images/nlvr.{split}.jsonl.gz"
        released = keep(manifest, rows(sorted(folder.glob("*.json"))))
        for row in released:
            name = Path(row["image"]).name
            if name not in pictures:
                raise DataError(f"{split}: has no picture {name}")
            _write(out / "images" / row["image"], pictures[name].read_bytes())
        write_rows(out / manifest, released)


def emoji(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Two sets of drawings of the same things; both take the Unicode short name, so that one name is one concept."""
    google, openmoji = homes
    described = _read_json(openmoji / "data/openmoji.json")
    names = {_code(row["hexcode"]): row["annotation"] for row in described}

    def drawings() -> Iterator[tuple[Row, Image.Image]]:
        for row in _read_json(google / "emoji.json"):  # skin tones are nested in the rows
            if row["has_img_google"] and row["category"] != "Component":
                name = names.get(_code(row["unified"]), row["name"].lower())
                picture = _picture(google / "img/google/64" / row["image"])
                yield _drawing(f"emoji/google-{Path(row['image']).stem}.png", name, emoji_caption(name), "google"), picture
        for row in described:
            standard = not row["group"].startswith("extras") and row["group"] != "component"
            extra = row["group"] == "extras-openmoji" and row["subgroups"] in OPENMOJI_EXTRAS
            if (standard or extra) and not row["skintone"]:
                name = row["annotation"]
                picture = _render(openmoji / f"color/svg/{row['hexcode']}.svg")
                yield _drawing(f"emoji/openmoji-{row['hexcode'].lower()}.png", name, emoji_caption(name), "openmoji"), picture

    _write_drawings(out / "images/emoji.jsonl", drawings())


def clipart(homes: Sequence[Path], out: Path, keep: Keep) -> None:
    """Stamps of a painting program for children; the first line of the text beside each is English."""
    stamps = homes[0] / "share/tuxpaint/stamps"

    def drawings() -> Iterator[tuple[Row, Image.Image]]:
        for text in sorted(stamps.rglob("*.txt")):
            sentence = FIRST_SENTENCE.match(_read(text).partition("\n")[0].strip())
            files = [file for file in (text.with_suffix(".png"), text.with_suffix(".svg")) if file.exists()]
            if sentence is not None and files:
                caption = sentence[0] if sentence[0][-1] in ".!?”" else f"{sentence[0]}."
                try:
                    picture = _picture(files[0]) if files[0].suffix == ".png" else _render(files[0])
                except UndrawableError:  # 16 of the stamps state no size
                    continue
                image = "-".join(text.relative_to(stamps).with_suffix(".png").parts)
                yield _drawing(f"clipart/{image}", ARTICLE.sub("", caption, count=1).rstrip(".!?”"), caption, "tuxpaint"), picture

    _write_drawings(out / "images/clipart.jsonl", drawings())


def emoji_caption(name: str) -> str:
    """A Unicode short name as a caption: `flag: Egypt` is "Flag of Egypt.", `man: red hair` "Man, red hair."."""
    natural = name.replace("flag: ", "flag of ").replace(": ", ", ")
    return f"{natural[:1].upper()}{natural[1:]}."


def _drawing(image: str, name: str, caption: str, drawn_by: str) -> Row:
    return {"image": image, "caption": caption, "name": name, "set": drawn_by}


def _code(hexcode: str) -> str:
    """Code points without the variation selector, which the two sets write differently."""
    return hexcode.upper().replace("-FE0F", "")


def _render(svg: Path) -> Image.Image:
    """An SVG on white. Fonts of the machine are left out: they would draw differently elsewhere."""
    try:
        import resvg_py
    except ImportError:
        raise DataError("drawing SVG needs resvg-py; install it with: pip install -c constraints.txt -e .[train]") from None
    try:
        drawn = resvg_py.svg_to_bytes(svg_path=str(svg), width=DRAWING_SIZE, background="#ffffff", skip_system_fonts=True)
        return Image.open(io.BytesIO(drawn)).convert("RGB")
    except ValueError as error:
        raise UndrawableError(f"{svg}: cannot be drawn ({error})") from None


def _write_drawings(manifest: Path, drawings: Iterable[tuple[Row, Image.Image]]) -> None:
    rows = []
    for row, picture in drawings:
        picture.thumbnail((DRAWING_SIZE, DRAWING_SIZE), Image.Resampling.LANCZOS, reducing_gap=None)
        _write(manifest.parent / row["image"], _png(picture))
        rows.append(row)
    write_rows(manifest, rows)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


# --- files


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """`rows` as JSONL, gzipped if the name says so; the same rows make the same bytes."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    _write(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _waveform(path: Path) -> np.ndarray:
    """(n,) at SPEECH_RATE_HZ, mono."""
    from omni.audio import load_audio  # imports torch, which is slow and not needed for what else is here

    return load_audio(path, SPEECH_RATE_HZ)


def _picture(path: Path) -> Image.Image:
    from omni.image import load_image  # imports torch

    return load_image(path)


def _read(path: Path) -> str:
    try:
        return _read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error})") from None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
