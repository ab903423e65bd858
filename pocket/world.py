"""The pocket world: 64 x 64 scenes of emoji, and the sentences that describe them.

A scene is one caption and one picture. The captions are those of the DDPO paper ("a dog", "a llama riding a bike", "three cats";
Black et al. 2023, section 5), with unseen animals, everyday objects, backgrounds and colours beside them. Everything random is
drawn from the generator that is passed in, so a seed names a scene.

The pictures need the font "Noto Color Emoji" (Debian: ``apt-get install fonts-noto-color-emoji``). The font is needed to remake
the model, never to run it: the tables of words above the drawing code import nothing but the standard library.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = 64
"""Width and height of a scene, in pixels."""

ANIMALS = dict(
    cat="🐈", dog="🐕", horse="🐎", monkey="🐒", rabbit="🐇", zebra="🦓", spider="🕷", bird="🐦", sheep="🐑", deer="🦌", cow="🐄",
    goat="🐐", lion="🦁", tiger="🐅", bear="🐻", raccoon="🦝", fox="🦊", wolf="🐺", lizard="🦎", beetle="🪲", ant="🐜", butterfly="🦋",
    fish="🐟", shark="🦈", whale="🐋", dolphin="🐬", squirrel="🐿", mouse="🐭", rat="🐀", snake="🐍", turtle="🐢", frog="🐸",
    chicken="🐔", duck="🦆", goose="🪿", bee="🐝", pig="🐖", turkey="🦃", fly="🪰", llama="🦙", camel="🐪", bat="🦇", gorilla="🦍",
    hedgehog="🦔", kangaroo="🦘",
)  # fmt: skip
"""The 45 animals of the paper, each with its glyph."""

UNSEEN_ANIMALS = dict(
    elephant="🐘", owl="🦉", penguin="🐧", panda="🐼", crab="🦀", snail="🐌", octopus="🐙", giraffe="🦒", crocodile="🐊",
    flamingo="🦩", parrot="🦜", peacock="🦚", koala="🐨", rhinoceros="🦏",
)  # fmt: skip
"""Animals outside the paper's 45: known to the base model, kept out of finetuning, for generalisation tests."""

OBJECTS = dict(
    car="🚗", apple="🍎", house="🏠", tree="🌳", flower="🌻", umbrella="☂️", clock="⏰", guitar="🎸", boat="⛵", rocket="🚀",
    balloon="🎈", lamp="💡", book="📕", key="🔑",
)  # fmt: skip
"""Everyday objects."""

ACTIVITIES = ("washing dishes", "playing chess", "riding a bike")
"""The three activities of the paper's alignment task."""

ACTIVE_ANIMALS = (
    "cat", "horse", "rabbit", "bird", "cow", "goat", "lion", "bear", "fox", "lizard", "ant", "fish", "dolphin", "mouse", "turtle",
    "chicken", "bee", "pig", "llama", "gorilla",
)  # fmt: skip
"""The animals that the world ever shows at an activity; the other 25 pairs are for finetuning to find."""

COUNTS = dict(two=2, three=3, four=4)
PLACES = ("in the snow", "at night", "on the beach", "on the grass")
COLOURS = dict(
    red=(0.0, 0.75, 0.85), orange=(0.075, 0.8, 0.97), yellow=(0.145, 0.7, 0.97), green=(0.34, 0.6, 0.7), blue=(0.59, 0.7, 0.85),
    purple=(0.77, 0.55, 0.75), pink=(0.92, 0.4, 0.97), brown=(0.07, 0.6, 0.5), white=(0.0, 0.0, 0.97), black=(0.0, 0.0, 0.1),
    gray=(0.0, 0.0, 0.55),
)  # fmt: skip
"""Background colours as (hue, saturation, value)."""

PLURALS = dict(
    mouse="mice", wolf="wolves", fox="foxes", goose="geese", fly="flies", butterfly="butterflies", sheep="sheep", deer="deer",
    fish="fish", octopus="octopuses",
)  # fmt: skip

GLYPHS = {**ANIMALS, **UNSEEN_ANIMALS, **OBJECTS}


def article(noun: str) -> str:
    """The noun with its article: "a dog", "an ant"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


@dataclass(frozen=True)
class Scene:
    """What a caption says: a subject, and whatever else is named. What is not named is random in the picture."""

    subject: str
    count: int = 1
    activity: str = ""
    colour: str = ""
    place: str = ""

    @property
    def caption(self) -> str:
        words = [k for k, v in COUNTS.items() if v == self.count]
        text = f"{words[0]} {plural(self.subject)}" if words else article(self.subject)
        if self.activity:
            text += f" {self.activity}"
        if self.colour:
            text += f" on {article(self.colour)} background"
        if self.place:
            text += f" {self.place}"
        return text


def draw_scene(rng: random.Random) -> Scene:
    """A random scene, in the proportions that the base model is trained on.

    Activities are rare (4 %) and shown with only 20 of the 45 animals, so that the base model is weak at them and finetuning, and its
    transfer to unseen pairs, have something to show.
    """
    kind = rng.random()
    if kind < 0.50:
        return Scene(rng.choice(list(ANIMALS)))
    if kind < 0.59:
        return Scene(rng.choice(list(UNSEEN_ANIMALS)))
    if kind < 0.68:
        return Scene(rng.choice(list(OBJECTS)))
    if kind < 0.72:
        return Scene(rng.choice(ACTIVE_ANIMALS), activity=rng.choice(ACTIVITIES))
    if kind < 0.84:
        return Scene(rng.choice([*ANIMALS, *UNSEEN_ANIMALS]), count=rng.choice(list(COUNTS.values())))
    if kind < 0.93:
        return Scene(rng.choice(list(GLYPHS)), colour=rng.choice(list(COLOURS)))
    return Scene(rng.choice(list(GLYPHS)), place=rng.choice(PLACES))


# --- drawing --------------------------------------------------------------------------------------------------------------------

FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/System/Library/Fonts/NotoColorEmoji.ttf",
)
FONT_PIXELS = 109
"""The one size at which the font's bitmaps exist."""


@lru_cache(maxsize=1)
def font() -> ImageFont.FreeTypeFont:
    for path in FONT_PATHS:
        if Path(path).exists():
            return ImageFont.truetype(path, FONT_PIXELS)
    raise FileNotFoundError(
        "The font Noto Color Emoji is needed to draw the pocket world (not to run the model). "
        "Install it (Debian: apt-get install fonts-noto-color-emoji) and try again."
    )


@cache
def sprite(glyph: str) -> Image.Image:
    """One glyph as a tightly cropped RGBA picture, about 128 px on its longer side."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), glyph, font=font(), embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"The font has no picture for {glyph!r}.")
    return canvas.crop(box)


def _paste(scene: Image.Image, glyph: str, centre: tuple[float, float], size: float, angle: float = 0.0, flip: bool = False) -> None:
    """Paste a glyph whose longer side is ``size`` px at ``centre``, rotated by ``angle`` degrees."""
    picture = sprite(glyph)
    scale = size / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    scene.paste(picture, (round(centre[0] - picture.width / 2), round(centre[1] - picture.height / 2)), picture)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(1, max(0, saturation)), min(1, max(0, value)))
    return round(red * 255), round(green * 255), round(blue * 255)


def _random_colour(rng: random.Random) -> tuple[float, float, float]:
    return rng.random(), rng.uniform(0.1, 0.75), rng.uniform(0.45, 1.0)


def _near(rng: random.Random, colour: tuple[float, float, float], amount: float = 0.06) -> tuple[float, float, float]:
    hue, saturation, value = colour
    spread = amount if saturation > 0 else 0.0
    return hue + rng.uniform(-0.02, 0.02), saturation + rng.uniform(-spread, spread), value + rng.uniform(-amount, amount)


def _gradient(top: tuple[int, int, int], bottom: tuple[int, int, int], sideways: bool = False) -> Image.Image:
    line = Image.new("RGB", (1, SIZE))
    for y in range(SIZE):
        mix = y / (SIZE - 1)
        line.putpixel((0, y), tuple(round(a + (b - a) * mix) for a, b in zip(top, bottom, strict=True)))
    picture = line.resize((SIZE, SIZE))
    return picture.transpose(Image.Transpose.ROTATE_90) if sideways else picture


def _ground(rng: random.Random, sky: tuple[float, float, float], ground: tuple[float, float, float]) -> Image.Image:
    picture = _gradient(_rgb(*_near(rng, sky)), _rgb(*_near(rng, (sky[0], sky[1] * 0.6, min(1.0, sky[2] * 1.08)))))
    horizon = rng.randint(34, 46)
    lower = _gradient(_rgb(*_near(rng, ground)), _rgb(*_near(rng, (ground[0], ground[1], ground[2] * 0.85))))
    picture.paste(lower.resize((SIZE, SIZE - horizon)), (0, horizon))
    return picture


def _pattern(rng: random.Random, first: tuple[int, int, int], second: tuple[int, int, int], kind: str) -> Image.Image:
    picture = Image.new("RGB", (SIZE, SIZE), first)
    draw = ImageDraw.Draw(picture)
    width = rng.choice((6, 8, 10, 13))
    offset = rng.randrange(2 * width)
    for i in range(-2 * width - offset, 2 * SIZE, 2 * width):
        if kind == "upright stripes":
            draw.rectangle((i, 0, i + width - 1, SIZE), fill=second)
        elif kind == "level stripes":
            draw.rectangle((0, i, SIZE, i + width - 1), fill=second)
        elif kind == "slanted stripes":
            draw.polygon(((i, 0), (i + width, 0), (i + width - SIZE, SIZE), (i - SIZE, SIZE)), fill=second)
        else:
            for j in range(-2 * width - offset, SIZE + width, width):
                shift = width if ((j + 2 * width + offset) // width) % 2 else 0
                box = (i + shift, j, i + shift + width - 1, j + width - 1)
                draw.ellipse((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), fill=second) if kind == "dots" else draw.rectangle(box, fill=second)
    return picture


PATTERNS = ("upright stripes", "level stripes", "slanted stripes", "checks", "dots")


def _background(rng: random.Random, scene: Scene) -> Image.Image:
    if scene.colour:
        base = COLOURS[scene.colour]
        kind = rng.random()
        if kind < 0.5:
            return Image.new("RGB", (SIZE, SIZE), _rgb(*_near(rng, base)))
        if kind < 0.8:
            return _gradient(_rgb(*_near(rng, base, 0.1)), _rgb(*_near(rng, base, 0.1)), rng.random() < 0.5)
        light = (base[0], base[1] * 0.85, min(1.0, base[2] * 1.1 + 0.04))
        return _pattern(rng, _rgb(*_near(rng, base)), _rgb(*_near(rng, light)), rng.choice(PATTERNS))
    if scene.place == "in the snow":
        picture = _ground(rng, (0.57, 0.2, 0.88), (0.57, 0.04, 0.98))
        draw = ImageDraw.Draw(picture)
        for _ in range(26):
            x, y = rng.randrange(SIZE), rng.randrange(SIZE)
            draw.ellipse((x, y, x + 1, y + 1), fill=(255, 255, 255))
        return picture
    if scene.place == "at night":
        picture = _ground(rng, (0.65, 0.7, 0.22), (0.65, 0.45, 0.13))
        draw = ImageDraw.Draw(picture)
        for _ in range(14):
            x, y = rng.randrange(SIZE), rng.randrange(30)
            draw.point((x, y), fill=(255, 250, 210))
        x, y = rng.randint(4, 52), rng.randint(3, 10)
        draw.ellipse((x, y, x + 8, y + 8), fill=(250, 240, 180))
        return picture
    if scene.place == "on the beach":
        picture = _ground(rng, (0.55, 0.4, 0.95), (0.12, 0.4, 0.93))
        sea = rng.randint(26, 32)
        picture.paste(Image.new("RGB", (SIZE, 10), _rgb(*_near(rng, (0.55, 0.7, 0.75)))), (0, sea))
        return picture
    if scene.place == "on the grass":
        return _ground(rng, (0.56, 0.4, 0.95), (0.3, 0.6, 0.65))
    kind = rng.random()
    first, second = _random_colour(rng), _random_colour(rng)
    if kind < 0.25:
        return Image.new("RGB", (SIZE, SIZE), _rgb(*first))
    if kind < 0.5:
        return _gradient(_rgb(*first), _rgb(*second), rng.random() < 0.3)
    if kind < 0.75:
        return _ground(rng, first, second)
    second = (first[0] + rng.uniform(-0.1, 0.1), first[1], first[2] * rng.uniform(0.7, 0.9)) if rng.random() < 0.6 else second
    return _pattern(rng, _rgb(*first), _rgb(*second), rng.choice(PATTERNS))


def _chess_board(scene: Image.Image, rng: random.Random) -> None:
    """A small chess board in perspective along the lower edge, with a few pawns on it."""
    draw = ImageDraw.Draw(scene)
    top, bottom, rows, columns = 44, 63, 4, 8
    for row in range(rows):
        y0, y1 = top + (bottom - top) * row / rows, top + (bottom - top) * (row + 1) / rows
        inset0, inset1 = 10 * (1 - row / rows), 10 * (1 - (row + 1) / rows)
        for column in range(columns):
            corners = []
            for y, inset, c in ((y0, inset0, column), (y0, inset0, column + 1), (y1, inset1, column + 1), (y1, inset1, column)):
                corners.append((2 + inset + (59 - 2 * inset) * c / columns, y))
            draw.polygon(corners, fill=(240, 220, 180) if (row + column) % 2 else (120, 75, 45))
    for column in rng.sample(range(6), 3):
        x, y = 9 + column * 9 + rng.uniform(-1, 1), rng.choice((47, 52))
        fill = rng.choice(((25, 25, 30), (250, 250, 245)))
        draw.ellipse((x - 2.5, y - 5, x + 2.5, y), fill=fill)
        draw.polygon(((x, y - 2), (x - 4, y + 6), (x + 4, y + 6)), fill=fill)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw a scene: RGB, ``SIZE`` x ``SIZE``."""
    picture = _background(rng, scene)
    glyph, flip = GLYPHS[scene.subject], rng.random() < 0.5
    if scene.count > 1:
        spots = {2: ((17, 32), (47, 32)), 3: ((17, 19), (47, 19), (32, 47)), 4: ((17, 17), (47, 17), (17, 47), (47, 47))}[scene.count]
        turn = scene.count == 2 and rng.random() < 0.3
        for x, y in spots:
            centre = (y if turn else x) + rng.uniform(-3, 3), (x if turn else y) + rng.uniform(-3, 3)
            _paste(picture, glyph, centre, rng.uniform(23, 28), rng.uniform(-8, 8), rng.random() < 0.5)
    elif scene.activity == "riding a bike":
        _paste(picture, "🚲", (32 + rng.uniform(-3, 3), 46), rng.uniform(40, 46), 0, flip)
        _paste(picture, glyph, (32 + rng.uniform(-4, 4), 21 + rng.uniform(-2, 2)), rng.uniform(32, 38), rng.uniform(-8, 8), flip)
    elif scene.activity == "playing chess":
        _paste(picture, glyph, (32 + rng.uniform(-6, 6), 23 + rng.uniform(-2, 2)), rng.uniform(36, 42), rng.uniform(-8, 8), flip)
        _chess_board(picture, rng)
    elif scene.activity == "washing dishes":
        side = rng.choice((-1, 1))
        _paste(picture, glyph, (32 - side * rng.uniform(6, 10), 24 + rng.uniform(-2, 2)), rng.uniform(34, 40), rng.uniform(-8, 8), flip)
        _paste(picture, "🍽️", (32 + side * 8, 50), 24)
        _paste(picture, "🧽", (32 - side * 17, 53), 17, rng.uniform(-15, 15))
        _paste(picture, "🫧", (32 + side * 21, 26 + rng.uniform(-4, 4)), 18)
    else:
        centre = 32 + rng.uniform(-8, 8), 33 + rng.uniform(-7, 7)
        _paste(picture, glyph, centre, rng.uniform(38, 56), math.copysign(rng.uniform(0, 14), rng.random() - 0.5), flip)
    return picture


def sample(seed: int) -> tuple[str, Image.Image]:
    """The scene that ``seed`` names: its caption and its picture."""
    rng = random.Random(seed)
    scene = draw_scene(rng)
    return scene.caption, render(scene, rng)


@cache
def captions() -> tuple[str, ...]:
    """Every sentence of the world, seen in training or not, for the tokenizer."""
    scenes = [Scene(s) for s in GLYPHS]
    scenes += [Scene(s, activity=a) for s in GLYPHS for a in (*ACTIVITIES, "taking an exam")]
    scenes += [Scene(s, count=n) for s in GLYPHS for n in COUNTS.values()]
    scenes += [Scene(s, colour=c) for s in GLYPHS for c in COLOURS] + [Scene(s, place=p) for s in GLYPHS for p in PLACES]
    return tuple(scene.caption for scene in scenes)
