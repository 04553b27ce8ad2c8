"""From the files of a public home to the layout of the data folder: manifests beside the folder of their media.

speech/NAME.jsonl        {"audio", "text", "speaker", "sentence_id", "duration_s"}; 16 kHz mono
text/…                   {"messages"} of dialogues, {"title", "text"} of stories, novels as they are
images/NAME.jsonl        {"image", "caption", "name", "set"} of drawings; NLVR {"image", "sentence", "label", "identifier"}
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from omni.errors import DataError
from omni.image import decode_image, load_image

Row = dict[str, Any]

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


# --- pictures


def emoji(homes: Sequence[Path], out: Path) -> None:
    """Two sets of drawings of the same things; both take the Unicode short name, so that one name is one concept."""
    google, openmoji = homes
    described = _read_json(openmoji / "data/openmoji.json")
    names = {_code(row["hexcode"]): row["annotation"] for row in described}

    def drawings() -> Iterator[tuple[Row, Image.Image]]:
        for row in _read_json(google / "emoji.json"):  # skin tones are nested in the rows
            if row["has_img_google"] and row["category"] != "Component":
                name = names.get(_code(row["unified"]), row["name"].lower())
                picture = load_image(google / "img/google/64" / row["image"])
                yield _drawing(f"emoji/google-{Path(row['image']).stem}.png", name, emoji_caption(name), "google"), picture
        for row in described:
            standard = not row["group"].startswith("extras") and row["group"] != "component"
            extra = row["group"] == "extras-openmoji" and row["subgroups"] in OPENMOJI_EXTRAS
            if (standard or extra) and not row["skintone"]:
                name = row["annotation"]
                picture = _render(openmoji / f"color/svg/{row['hexcode']}.svg")
                yield _drawing(f"emoji/openmoji-{row['hexcode'].lower()}.png", name, emoji_caption(name), "openmoji"), picture

    _write_drawings(out / "images/emoji.jsonl", drawings())


def clipart(homes: Sequence[Path], out: Path) -> None:
    """Stamps of a painting program for children; the first line of the text beside each is English."""
    stamps = homes[0] / "share/tuxpaint/stamps"

    def drawings() -> Iterator[tuple[Row, Image.Image]]:
        for text in sorted(stamps.rglob("*.txt")):
            sentence = FIRST_SENTENCE.match(text.read_text(encoding="utf-8").partition("\n")[0].strip())
            files = [file for file in (text.with_suffix(".png"), text.with_suffix(".svg")) if file.exists()]
            if sentence is not None and files:
                caption = sentence[0] if sentence[0][-1] in ".!?”" else f"{sentence[0]}."
                try:
                    picture = load_image(files[0]) if files[0].suffix == ".png" else _render(files[0])
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
        raise DataError("drawing SVG needs resvg-py; install it with: pip install 'muomni[train]'") from None
    try:
        return decode_image(
            resvg_py.svg_to_bytes(svg_path=str(svg), width=DRAWING_SIZE, background="#ffffff", skip_system_fonts=True), str(svg)
        )
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
    """`rows` as JSONL."""
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable JSON ({error})") from None
