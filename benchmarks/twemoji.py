"""Write a folder of captioned emoji for the recipe emoji, from an npm package.

    npm pack emoji-datasource-twitter@16.0.0
    tar xf emoji-datasource-twitter-16.0.0.tgz
    python benchmarks/twemoji.py package twemoji
    python benchmarks/twemoji.py package balanced --copies 3
    python benchmarks/twemoji.py package grey --category "Animals & Nature" --grey

The images are Twemoji of 64 px, by Twitter and other contributors, CC-BY 4.0. Each line of
metadata.jsonl has file_name, text and category. A caption is the package's name of the emoji in
lower case, without hyphens, with its skin tones. With `--copies`, images without people are there
several times.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

PEOPLE = "People & Body"
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="the unpacked package")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--copies", type=int, default=1, help="of each image without people")
    parser.add_argument("--category", help="write this one alone")
    parser.add_argument("--grey", action="store_true", help="turn the images grey")
    options = parser.parse_args()
    emoji = json.loads((options.package / "emoji.json").read_text())
    images = options.package / "img" / "twitter" / "64"
    options.out.mkdir()
    lines = []
    for row in tqdm([row for each in emoji for row in rows_of(each)], unit="image"):
        if options.category not in (None, row["category"]):
            continue
        image = Image.open(images / row["file_name"])
        if options.grey:
            image = image.convert("LA")
        for copy in range(1 if row["category"] == PEOPLE else options.copies):
            name = f"{copy}-{row['file_name']}" if copy else row["file_name"]
            image.save(options.out / name)
            lines.append(json.dumps(row | {"file_name": name}))
    (options.out / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{options.out}: {len(lines):,} images")


def rows_of(emoji: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The lines of metadata.jsonl of an emoji and of its skin tones."""
    name = " ".join(emoji["name"].lower().replace("-", " ").split())
    variations = emoji.get("skin_variations", {})
    for key, image in {"": emoji, **variations}.items():
        if image["has_img_twitter"]:
            tones = " and ".join(TONES[tone] for tone in key.split("-") if tone)
            text = f"{name}, {tones}" if tones else name
            yield {"file_name": image["image"], "text": text, "category": emoji["category"]}


if __name__ == "__main__":
    main()
