"""Draws slices of a volume before and after normalization, side by side, as one PNG.

    python3 data/draw_slices.py data/mr_head.npy normalized.npy slices.png --slabs 6

Both volumes are [1, slices, height, width]. The picture has a column for each slab, its middle
slice: above from the first volume, below from the second. All slices of a row share one grey scale,
from the 1st to the 99.5th percentile of the row, so that differences between slabs show.
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw

_SCALE = 2  # pixels of the picture for each pixel of a slice
_TITLE = 16  # pixels above each row


def _row(volume: np.ndarray, slabs: int) -> np.ndarray:
    """The middle slices of the slabs as 8-bit grey, [height, slabs * width]."""
    thickness = len(volume) // slabs
    row = np.hstack([volume[slab * thickness + thickness // 2] for slab in range(slabs)])
    low, high = np.percentile(row, [1, 99.5])
    grey = 255 * (row - low) / max(high - low, 1e-12)
    return grey.clip(0, 255).astype(np.uint8)


def draw(before: np.ndarray, after: np.ndarray, slabs: int) -> Image.Image:
    """The picture of two volumes [slices, height, width]."""
    rows = [Image.fromarray(_row(volume, slabs)) for volume in (before, after)]
    width, height = (_SCALE * size for size in rows[0].size)
    picture = Image.new("L", (width, 2 * (height + _TITLE)), 255)
    pen = ImageDraw.Draw(picture)
    titles = ("before", f"after: {slabs} slabs, each with mean 0 and standard deviation 1")
    for i, (row, title) in enumerate(zip(rows, titles, strict=True)):
        top = i * (height + _TITLE)
        pen.text((4, top + 2), title, fill=0)
        picture.paste(row.resize((width, height)), (0, top + _TITLE))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", help=".npy")
    parser.add_argument("after", help=".npy")
    parser.add_argument("picture", help=".png")
    parser.add_argument("--slabs", type=int, required=True, help="groups of slices")
    options = parser.parse_args()
    before, after = (np.load(path)[0].astype("float32") for path in (options.before, options.after))
    draw(before, after, options.slabs).save(options.picture)


if __name__ == "__main__":
    main()
