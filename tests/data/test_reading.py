"""Image files as they come from cameras, microscopes and scanners: read right, or refused."""

import errno
import os
import shutil
from struct import pack
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image, ImageOps

from niwaki.data import Masks, Preprocessing, open_data
from niwaki.errors import DataError, LeftOutWarning

COLOUR = Preprocessing(8, mean=(0,) * 3, std=(1,) * 3)
GREY = Preprocessing(8, mean=(0,), std=(1,), channels=1)
RED_AND_BLUE = np.full((4, 8, 3), (0, 0, 255), np.uint8)
RED_AND_BLUE[:2, :4] = (255, 0, 0)


def pixels(path, look=COLOUR):
    """Levels of 0 to 255, shape (H, W, channels)."""
    data = open_data(path, look)
    return (data[0][0].permute(1, 2, 0).numpy() * 255).round()


def exif(way):
    tags = Image.Exif()
    tags[0x0112] = way
    return tags


# Where images lie


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("way", range(1, 9))
def test_photographs_stand_upright(tmp_path, kind, way):
    file = tmp_path / f"x.{kind.lower()}"
    stored = Image.fromarray(RED_AND_BLUE.repeat(8, 0).repeat(8, 1))
    stored.save(file, kind, exif=exif(way), **({"quality": 95} if kind != "TIFF" else {}))
    with Image.open(file) as again:
        expected = np.asarray(ImageOps.exif_transpose(again).convert("RGB"))
    found = open_data(file, COLOUR).image(0)
    assert found.size == ((64, 32) if way < 5 else (32, 64))
    assert np.array_equal(np.asarray(found), expected)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1)}
    red = np.asarray(found)[corner.get(way, (-1, 0))]
    assert red[0] > 200 > 60 > red[2]


@pytest.mark.parametrize("way", [3, 6, 8])
def test_masks_lie_as_their_photographs_are_seen(tmp_path, way):
    """Drawn on what people see; with the note of the camera kept; or as the camera stores it."""
    shown = np.zeros((8, 8) if way == 3 else (8, 4), np.uint8)
    shown[:2] = 255
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}.get(
        way, Image.Transpose.ROTATE_270
    )
    seen = Image.fromarray(shown)
    stored = seen.transpose(back)
    (tmp_path / "images").mkdir()
    stored.convert("RGB").save(tmp_path / "images" / "x.png", exif=exif(way))
    images = open_data(tmp_path / "images", COLOUR)
    expected = np.zeros((8, 8), bool)
    expected[:2] = True
    assert np.array_equal(images[0][0][0].numpy() > 0.5, expected)
    kinds = {
        "shown": lambda file: seen.save(file),
        "noted": lambda f: stored.save(f, exif=exif(way)),
    }
    if way != 3:
        kinds["stored"] = lambda file: stored.save(file)
    for kind, save in kinds.items():
        (tmp_path / kind).mkdir()
        save(tmp_path / kind / "x.png")
        assert np.array_equal(Masks(images, tmp_path / kind)[0], expected), kind


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_note_of_the_camera_is_no_damaged_picture(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.jpg", exif=b"Exif\x00\x00MM\x00*garbage")
    assert pixels(tmp_path / "x.jpg")[0, 0, 0] > 250


# Grey of many levels

LEVELS = np.array([[0, 257], [32896, 65535]], np.uint16)


@pytest.mark.parametrize("kind", ["png", "tif", "jp2"])
def test_grey_of_16_bits(tmp_path, kind):
    file = tmp_path / f"x.{kind}"
    Image.fromarray(LEVELS.repeat(4, 0).repeat(4, 1)).save(file)
    assert np.array_equal(pixels(file, GREY)[::4, ::4, 0], [[0, 1], [128, 255]])


def test_grey_of_10_bits_and_of_big_endian_files(tmp_path):
    levels = np.array([[0, 1023], [512, 341]])
    (tmp_path / "x.pgm").write_bytes(b"P5 2 2 1023\n" + levels.astype(">u2").tobytes())
    found = np.asarray(GREY(open_data(tmp_path / "x.pgm", GREY).image(0)) * 255).round()[
        0, ::4, ::4
    ]
    size = Preprocessing(2, mean=(0,), std=(1,), channels=1)
    found = pixels(tmp_path / "x.pgm", size)[..., 0]
    assert np.array_equal(found, (levels / 1023 * 255).round())


def test_grey_whose_zero_is_white(tmp_path):
    whole = LEVELS.repeat(4, 0).repeat(4, 1)
    Image.fromarray(whole).save(tmp_path / "x.tif", tiffinfo={262: 0})
    assert np.array_equal(pixels(tmp_path / "x.tif", GREY)[::4, ::4, 0], [[255, 254], [127, 0]])


@pytest.mark.parametrize(
    ("dtype", "said"), [("int32", "32-bit integers"), ("float32", "32-bit floats")]
)
def test_numbers_without_a_range_are_refused_by_name(tmp_path, dtype, said):
    Image.fromarray(np.full((8, 8), 200, dtype)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif: an image of {said} has no known range"):
        open_data(tmp_path / "x.tif", GREY)[0]


# Transparency and colours


def see_through(mode):
    """Half of it fully transparent, with green below; the other half opaque red (or black)."""
    colours = np.zeros((8, 8, 4), np.uint8)
    colours[:, :4] = (0, 255, 0, 0)
    colours[:, 4:] = (255, 0, 0, 255)
    image = Image.fromarray(colours)
    if mode == "LA":
        return image.convert("LA"), 76
    if mode == "P":
        flat = Image.fromarray((colours[..., 3] > 0).astype(np.uint8)).convert("P")
        flat.putpalette([0, 255, 0, 255, 0, 0])
        flat.info["transparency"] = 0
        return flat, 255
    if mode == "RGB":
        flat = Image.fromarray(colours[..., :3])
        flat.info["transparency"] = (0, 255, 0)
        return flat, 255
    return image, 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_laid_on_white(tmp_path, mode):
    image, red = see_through(mode)
    image.save(tmp_path / "x.png", **image.info)
    found = pixels(tmp_path / "x.png")
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:, 0] == red).all()
    assert (pixels(tmp_path / "x.png", GREY)[:, :4] == 255).all()


def test_half_transparent_colours_are_mixed(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 51)).save(tmp_path / "x.png")
    assert np.array_equal(pixels(tmp_path / "x.png")[0, 0], [255, 204, 204])


def test_transparent_grey_of_16_bits(tmp_path):
    whole = LEVELS.repeat(4, 0).repeat(4, 1)
    Image.fromarray(whole).save(tmp_path / "x.png", transparency=257)
    found = open_data(tmp_path / "x.png", GREY)
    assert found[0][0][0, 0, 7] in (1, 1 / 255)  # where Pillow keeps the note, white


@pytest.mark.parametrize("kind", ["tif", "jpg"])
def test_print_colours(tmp_path, kind):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"x.{kind}")
    found = pixels(tmp_path / f"x.{kind}")[0, 0]
    assert found[0] > 200 > 80 > max(found[1:])


def test_masks_of_dark_and_of_transparent_colours(tmp_path):
    """Programs number regions by colours; grey would round the darkest to black."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "x.png")
    images = open_data(tmp_path / "images", COLOUR)
    expected = np.zeros((8, 8), bool)
    expected[:, 2:] = True
    for number, (colour, mode) in enumerate(
        [((0, 0, 1), "RGB"), ((1, 0, 0), "RGB"), (1, "L"), (700, "I;16"), (True, "1")]
    ):
        mask = Image.new(mode, (8, 8), colour)
        mask.paste(0 if mode != "RGB" else (0, 0, 0), (0, 0, 2, 8))
        (tmp_path / f"m{number}").mkdir()
        mask.save(tmp_path / f"m{number}" / "x.png")
        assert np.array_equal(Masks(images, tmp_path / f"m{number}")[0], expected), mode
    glass = np.full((8, 8, 4), (255, 255, 255, 255), np.uint8)
    glass[:, :2, 3] = 0
    (tmp_path / "glass").mkdir()
    Image.fromarray(glass).save(tmp_path / "glass" / "x.png")
    assert np.array_equal(Masks(images, tmp_path / "glass")[0], expected)


def test_two_masks_or_two_images_of_one_name_are_refused(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "x.png")
    Image.new("L", (8, 8)).save(tmp_path / "masks" / "x.PNG")
    images = open_data(tmp_path / "images", COLOUR)
    Masks(images, tmp_path / "masks")
    Image.new("L", (8, 8)).save(tmp_path / "masks" / "x.bmp")
    with pytest.raises(DataError, match="two masks of one name"):
        Masks(images, tmp_path / "masks")
    (tmp_path / "masks" / "x.bmp").unlink()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "x.JPG")
    with pytest.raises(DataError, match="differ by their suffix"):
        Masks(open_data(tmp_path / "images", COLOUR), tmp_path / "masks")


# Files of several pictures, and slides


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:])
        with pytest.warns(UserWarning, match="the first is read"):
            assert pixels(tmp_path / f"x.{kind}")[0, 0, 0] > 240


def pyramid(file, *sides):
    levels = [Image.new("RGB", (side, side // 2), "red") for side in sides]
    levels[0].save(file, "TIFF", save_all=True, append_images=levels[1:])
    return file


@pytest.mark.parametrize("name", ["x.tif", "x.TIFF"])
@pytest.mark.parametrize("sides", [(64, 32), (512, 256, 128), (4096, 1024)])
def test_pyramids_are_refused(tmp_path, name, sides):
    with pytest.raises(DataError, match=r"several sizes, as a slide does.* cut it into tiles"):
        open_data(pyramid(tmp_path / name, *sides), COLOUR)[0]


def test_pages_are_refused_and_thumbnails_are_not(tmp_path):
    with pytest.raises(DataError, match="has 3 pages; save the one"):
        open_data(pyramid(tmp_path / "x.tif", 32, 32, 32), COLOUR)[0]
    assert pixels(pyramid(tmp_path / "y.tif", 2000, 160))[0, 0, 0] == 255
    Image.new("RGB", (8, 8)).save(tmp_path / "z.tif", tiffinfo={330: 8})
    with pytest.raises(DataError, match="several resolutions"):
        open_data(tmp_path / "z.tif", COLOUR)[0]


@pytest.mark.parametrize("suffix", ["svs", "NDPI", "mrxs", "scn", "bif", "vms", "dcm"])
def test_slides_are_refused_by_their_suffix(tmp_path, suffix):
    Image.new("RGB", (8, 8)).save(tmp_path / f"x.{suffix}", "TIFF")
    with pytest.raises(DataError, match="cut it into tiles"):
        open_data(tmp_path / f"x.{suffix}", COLOUR)
    Image.new("RGB", (8, 8)).save(tmp_path / "y.png")
    with pytest.warns(LeftOutWarning, match=rf"1 slides, .* the first is .*x\.{suffix}"):
        assert len(open_data(tmp_path, COLOUR)) == 1


def test_a_medical_image_without_a_suffix(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    with pytest.raises(DataError, match="medical image"):
        open_data(tmp_path / "IM0001", COLOUR)


@pytest.mark.parametrize("name", ["slide.svs", "slide.tif"])
def test_a_real_slide(tmp_path, shared, name):
    shutil.copy(shared / "data/slides/cmu-1-small-region.svs", tmp_path / name)
    with pytest.raises(DataError, match="as a slide"):
        open_data(tmp_path / name, COLOUR)[0]


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"x\.png has too many pixels .* cut tiles"):
        open_data(tmp_path / "x.png", COLOUR)[0]


# What is in a folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("0.jfif", "1.jp2", "2.avif", "deep/3.JPE"):
        kind = "JPEG" if name[0] in "03" else None
        Image.new("RGB", (8, 8), "red").save(tmp_path / "a" / name, kind)
    (tmp_path / "a" / "notes.txt").write_text("x")
    return tmp_path


def test_every_kind_that_pillow_reads_is_read(folder):
    data = open_data(folder, COLOUR)
    assert [path.name for path in data.paths] == ["0.jfif", "1.jp2", "2.avif", "3.JPE"]
    for number in range(4):
        assert data[number][0][0, 0, 0] > 0.9


@pytest.mark.parametrize("name", [".hidden.png", ".cache/x.png", "x.heic", "x.CR2", "x.jxl"])
def test_what_is_left_out_is_counted_and_named(folder, name):
    file = folder / "a" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    with pytest.warns(LeftOutWarning, match=rf"^1 .* left out, the first is {file}"):
        assert len(open_data(folder, COLOUR)) == 4


def test_links(folder):
    (folder / "a" / "lost.png").symlink_to(folder / "nowhere.png")
    (folder / "a" / "back").symlink_to(folder / "a")  # a loop
    (folder.parent / "elsewhere").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder.parent / "elsewhere" / "4.png")
    (folder / "a" / "more").symlink_to(folder.parent / "elsewhere")
    with pytest.warns(LeftOutWarning, match=r"1 links that lead nowhere .*/lost\.png"):
        data = open_data(folder, COLOUR)
    assert [path.name for path in data.paths] == ["0.jfif", "1.jp2", "2.avif", "3.JPE", "4.png"]


def test_images_beside_the_class_folders(folder):
    Image.new("RGB", (8, 8)).save(folder / "beside.png")
    with pytest.warns(LeftOutWarning, match=r"1 images beside .* the first is beside\.png"):
        assert len(open_data(folder, COLOUR)) == 4


def test_empty_files_are_named_at_once(folder):
    (folder / "a" / "9.png").touch()
    with pytest.raises(DataError, match=r"1 image files .* are empty .*/9\.png"):
        open_data(folder, COLOUR)


def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"deep cannot be listed \(Permission denied\)"):
        open_data(folder, COLOUR)


# PNG files, chunk by chunk


def chunk(kind, content):
    return pack(">I", len(content)) + kind + content + pack(">I", crc32(kind + content))


def png(values, bits, clear):
    """A PNG of grey (H, W) or colour (H, W, 3) of so many bits, one level or colour transparent."""
    height, width = values.shape[:2]
    places = np.arange(bits - 1, -1, -1)
    rows = (values.reshape(height, -1, 1) >> places & 1).reshape(height, -1).astype(np.uint8)
    head = pack(">IIBBBBB", width, height, bits, 0 if values.ndim == 2 else 2, 0, 0, 0)
    told = pack(f">{np.size(clear)}H", *np.ravel(clear))
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    parts = [(b"IHDR", head), (b"tRNS", told), (b"IDAT", compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_level_counts_at_its_own_depth(tmp_path, bits, channels):
    if channels == 3 and bits < 8:
        pytest.skip("there are no such colours")
    rng, most = np.random.default_rng(bits), 2**bits - 1
    values = rng.integers(0, most + 1, (8, 8, 3)[: 2 + channels // 3])
    for clear in (values[0, 0], values[3, 4], values[7, 7]):
        values[:2] = clear
        (tmp_path / "x.png").write_bytes(png(values, bits, clear))
        seen = values.reshape(8, 8, -1)
        there = (seen == clear).all(-1, keepdims=True)
        found = pixels(tmp_path / "x.png", GREY if channels == 1 else COLOUR)
        assert np.abs(found - np.where(there, 255, seen * 255 / most)).max() <= 1


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_damaged_png_is_refused(tmp_path, kind):
    colours = Image.fromarray(RED_AND_BLUE.repeat(20, 0).repeat(20, 1)).convert("P")
    colours.save(tmp_path / "x.png", transparency=0)
    content = (tmp_path / "x.png").read_bytes()
    assert pixels(tmp_path / "x.png").shape == (8, 8, 3)
    start = content.index(kind) + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big")
    for place in range(start, start + size, max(1, size // 7)):
        damaged = bytearray(content)
        damaged[place] ^= 0x04
        (tmp_path / "x.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read the image .*x\.png"):
            pixels(tmp_path / "x.png")


def test_a_damaged_note_in_a_png_is_no_damaged_picture(tmp_path):
    content = png(np.arange(64).reshape(8, 8), 8, 200)
    end = content.index(b"IEND") - 4
    noted = content[:end] + chunk(b"tEXt", b"Comment\0one")[:-1] + b"\0" + content[end:]
    (tmp_path / "x.png").write_bytes(noted)
    (tmp_path / "y.png").write_bytes(content)
    assert np.array_equal(pixels(tmp_path / "x.png"), pixels(tmp_path / "y.png"))
