"""Start images: lossless where they fit, fitted where they do not, refused in clear words."""

import io

import numpy as np
import pytest
import torch
from pack.nodes.core.errors import InputError
from pack.nodes.core.media import images
from PIL import Image, JpegImagePlugin

LIMIT = 6 << 20


def noise(height, width, channels=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((height, width, channels), generator=generator)


def encode(image, max_bytes=LIMIT):
    return images.encode(images.check(image, "start_image"), max_bytes=max_bytes)


def decoded(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded.data)))


def test_a_picture_that_fits_arrives_pixel_for_pixel():
    image = noise(300, 400)
    encoded = encode(image)
    assert (encoded.content_type, encoded.width, encoded.height) == ("image/png", 400, 300)
    assert encoded.notes == ()
    assert np.array_equal(decoded(encoded), np.rint(image.numpy() * 255).astype(np.uint8))


def test_values_are_rounded_and_clamped_not_truncated():
    image = torch.full((300, 300, 3), 0.5)
    image[0, 0] = torch.tensor([1.004, -0.2, 254.6 / 255])
    pixels, _ = images.to_pixels(image)
    assert pixels[1, 1].tolist() == [128, 128, 128]
    assert pixels[0, 0].tolist() == [255, 0, 255]


def test_the_given_tensor_is_left_alone():
    image = noise(300, 300, 4)
    before = image.clone()
    encode(image)
    assert torch.equal(image, before)


def test_grey_becomes_rgb():
    encoded = encode(noise(300, 300, 1))
    assert decoded(encoded).shape == (300, 300, 3)


def test_alpha_is_flattened_on_white_and_said():
    image = torch.zeros((300, 300, 4))
    image[:, :, 3] = 0.5
    encoded = encode(image)
    assert decoded(encoded)[0, 0].tolist() == [128, 128, 128]
    assert encoded.notes == ("start_image: its transparent parts are sent on white.",)


def test_opaque_alpha_changes_nothing_and_is_not_mentioned():
    image = torch.ones((300, 300, 4))
    assert encode(image).notes == ()


def test_alpha_above_one_counts_as_opaque():
    image = torch.full((300, 300, 4), 0.5)
    image[0, 0, 3], image[1, 1, 3] = 2.0, 0.0
    pixels, _ = images.to_pixels(image)
    assert pixels[0, 0].tolist() == [128, 128, 128]
    assert pixels[1, 1].tolist() == [255, 255, 255]


def test_a_png_that_just_fits_is_sent_as_png():
    image = noise(600, 400)
    size = len(encode(image).data)
    assert encode(image, size).content_type == "image/png"
    assert encode(image, size * 99 // 100).content_type == "image/jpeg"


def test_a_repeating_pattern_is_packed_by_its_repeats_if_it_does_not_fit_otherwise():
    image = noise(8, 8).repeat(100, 100, 1)
    size = len(encode(image).data)
    encoded = encode(image, size // 4)
    assert encoded.content_type == "image/png"
    assert np.array_equal(decoded(encoded), np.rint(image.numpy() * 255).astype(np.uint8))


def test_a_picture_far_too_large_is_not_encoded_as_png_just_to_be_thrown_away(monkeypatch):
    heights, png = [], images._png

    def noted(pixels, way):
        heights.append(len(pixels))
        return png(pixels, way)

    monkeypatch.setattr(images, "_png", noted)
    assert encode(noise(900, 600), 400_000).content_type == "image/jpeg"
    assert max(heights) < 100


@pytest.mark.parametrize("quality", [98, 95, 90, 85, 80, 75])
def test_the_best_jpeg_that_fits_is_sent_with_fine_colours_while_it_is_good(quality):
    image = 0.4 + 0.2 * noise(400, 400)
    pixels = Image.fromarray(images.check(image, "x").pixels)
    subsampling = 0 if quality >= 90 else 2
    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=quality, subsampling=subsampling)
    encoded = encode(image, len(file.getvalue()))
    assert f"sent as JPEG quality {quality}, " in encoded.notes[0]
    sent = Image.open(io.BytesIO(encoded.data))
    assert JpegImagePlugin.get_sampling(sent) == subsampling


def test_a_picture_too_large_as_png_is_sent_as_jpeg_and_said():
    encoded = encode(noise(2000, 2000))
    assert encoded.content_type == "image/jpeg"
    assert len(encoded.data) <= LIMIT
    assert (encoded.width, encoded.height) == (2000, 2000)
    assert "2000 × 2000 PNG would be 12" in encoded.notes[0]
    assert "sent as JPEG quality" in encoded.notes[0]


def test_a_picture_too_large_even_as_jpeg_is_shrunk_and_said():
    encoded = encode(noise(1200, 1600), 150_000)
    assert len(encoded.data) <= 150_000
    assert encoded.width < 1600
    assert encoded.width / encoded.height == pytest.approx(4 / 3, rel=0.02)
    assert f"at {encoded.width} × {encoded.height}" in encoded.notes[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_not_numbers_are_refused(bad):
    image = noise(300, 300)
    image[7, 7, 1] = bad
    with pytest.raises(InputError, match="start_image has pixels that are not numbers"):
        encode(image)


@pytest.mark.parametrize("shape", [(0, 300, 3), (300, 300, 2), (300, 300), (1, 300, 300, 3)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(InputError, match="has the shape"):
        encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (299, 400, "400 × 299 px; Kling wants each side at least 300 px"),
        (1, 4000, "at least 300 px"),
        (300, 751, "751:300; Kling takes 1:2.5 to 2.5:1"),
        (751, 300, "751:300; Kling takes"),
    ],
)
def test_what_is_below_klings_floor_is_refused(height, width, said):
    with pytest.raises(InputError, match=said):
        encode(torch.zeros((height, width, 3)))


@pytest.mark.parametrize(("height", "width"), [(300, 300), (300, 750), (750, 300)])
def test_klings_floor_itself_is_taken(height, width):
    assert encode(torch.zeros((height, width, 3))).width == width


def test_half_precision_is_taken():
    assert encode(noise(300, 300).half()).content_type == "image/png"


def test_a_fingerprint_tells_pixels_and_size_and_nothing_else():
    def of(image):
        return images.check(image, "x").fingerprint()

    image = noise(300, 400)
    assert of(image) == of((image * 255).round() / 255)
    assert of(image) == of(image.double())
    other = image.clone()
    other[0, 0, 0] = 1 - other[0, 0, 0]
    assert of(image) != of(other)
    flat = torch.zeros((300, 400, 3))
    assert of(flat) != of(flat.reshape(400, 300, 3))
