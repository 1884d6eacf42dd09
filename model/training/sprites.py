"""Cut the 40 sprites out of the Noto Color Emoji font into the sheet that ships.

Run once, on a machine with Debian's fonts-noto-color-emoji; the sheet is committed:

    python -m model.training.sprites /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""

import sys

from PIL import Image, ImageDraw, ImageFont

from model.builtin.scenes import EMOJI, SHEET, SHEET_COLUMNS, TILE_HEIGHT, TILE_WIDTH

# The one size at which the font holds bitmaps; any other is refused by FreeType.
STRIKE = 109


def main(font_path: str) -> None:
    font = ImageFont.truetype(font_path, STRIKE)
    rows = -(-len(EMOJI) // SHEET_COLUMNS)
    sheet = Image.new("RGBA", (SHEET_COLUMNS * TILE_WIDTH, rows * TILE_HEIGHT))
    for index, emoji in enumerate(EMOJI.values()):
        tile = Image.new("RGBA", (TILE_WIDTH, TILE_HEIGHT))
        ImageDraw.Draw(tile).text((0, 0), emoji, font=font, embedded_color=True, anchor="lt")
        if (box := tile.getbbox()) is None:
            raise SystemExit(f"{font_path} draws nothing for {emoji}")
        glyph = tile.crop(box)
        row, column = divmod(index, SHEET_COLUMNS)
        x = column * TILE_WIDTH + (TILE_WIDTH - glyph.width) // 2
        y = row * TILE_HEIGHT + (TILE_HEIGHT - glyph.height) // 2
        sheet.paste(glyph, (x, y))
    sheet.save(SHEET, optimize=True)
    print(f"{SHEET}: {len(EMOJI)} sprites")


if __name__ == "__main__":
    main(sys.argv[1])
