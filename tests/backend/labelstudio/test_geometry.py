import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from backend.labelstudio import geometry, outlines
from model.segmentation.mask_cleanup import innermost_pixel
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask
from tests.support.detections import disc, ellipse_mask, ring_mask

masks = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))).filter(
    lambda mask: bool(mask.any())
)


def back(mask: Mask) -> Mask:
    return ring_mask(outlines.ring_of(mask), (mask.shape[0], mask.shape[1]))


def crossed(ring: outlines.Ring, shape: tuple[int, int]) -> Mask:
    """Fill a ring by the even-odd rule itself: count the edges to the left of each centre."""
    mask = np.zeros(shape, bool)
    rows, columns = np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1])[None] + 0.5
    for (xa, ya), (xb, yb) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        between = (rows >= min(ya, yb)) & (rows < max(ya, yb))
        if between.any():  # the slope of an edge of next to no height is no number
            mask ^= between & (xa + (rows - ya) * ((xb - xa) / (yb - ya)) <= columns)
    return mask


def winding(ring: outlines.Ring, x: float, y: float) -> int:
    """Return how often a ring runs around a point: by the nonzero rule, anything but 0 is inside."""
    (xa, ya), (xb, yb) = ring.T, np.roll(ring, -1, axis=0).T
    side = (xb - xa) * (y - ya) - (yb - ya) * (x - xa)
    up, down = (ya <= y) & (yb > y) & (side > 0), (ya > y) & (yb <= y) & (side < 0)
    return int(up.sum()) - int(down.sum())


@given(masks)
@example(np.ones((1, 1), bool))
@example(np.eye(9, dtype=bool))
def test_any_mask_has_a_ring_within_the_image(mask: Mask) -> None:
    ring = outlines.ring_of(mask)
    assert 3 <= len(ring) <= outlines.MAX_POINTS
    assert (ring >= 0).all()
    assert (ring <= (mask.shape[1], mask.shape[0])).all()


@pytest.mark.parametrize("radius", [3, 8, 25])
def test_a_ring_follows_the_outline(radius: int) -> None:
    mask = disc(40, 30, radius)
    assert iou(back(mask), mask) > (0.8 if radius == 3 else 0.9)


def test_no_pixel_farther_from_the_outline_than_the_tolerance_changes_sides() -> None:
    mask = disc(200, 150, 120, width=400, height=300) & ~disc(150, 150, 30, width=400, height=300)
    changed = back(mask) ^ mask
    inside, outside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for side in (mask, ~mask)
    )
    # Of a pixel beside the outline the centre is half a pixel away, and its distance is 1.
    assert (inside + outside)[changed].max() <= outlines.TOLERANCE + 1
    assert iou(back(mask), mask) > 0.99
    assert len(outlines.ring_of(mask)) < 80


def painted(rings: list[outlines.Ring], shape: tuple[int, int]) -> Mask:
    """Return the pixels that COCO's own code fills for rings."""
    coded = coco.frPyObjects([ring.ravel().tolist() for ring in rings], *shape)
    return np.asarray(coco.decode(coco.merge(coded)), bool)


@given(masks)
@example(np.ones((1, 1), bool))
@example(np.eye(9, dtype=bool))
def test_any_mask_has_rings_that_coco_takes(mask: Mask) -> None:
    rings = outlines.rings_of(mask)
    assert rings
    assert all(len(ring) >= 3 for ring in rings)
    height, width = mask.shape
    assert painted(rings, (height, width)).shape == (height, width)


@given(masks)
@example(np.ones((1, 1), bool))
@example(np.eye(9, dtype=bool))
@example(disc(40, 30, 25) & ~disc(40, 30, 20) | disc(40, 30, 12) & ~disc(36, 30, 3))
def test_exact_rings_hold_any_mask_to_the_pixel_with_every_hole_and_part(mask: Mask) -> None:
    rings = outlines.exact_rings_of(mask)
    assert rings is not None
    height, width = mask.shape
    assert (painted(rings, (height, width)) == mask).all()  # as pycocotools does it
    assert (np.logical_or.reduce([ring_mask(ring, (height, width)) for ring in rings]) == mask).all()
    parts, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(rings) == parts - 1


def test_masks_full_of_holes_have_no_exact_rings() -> None:
    holes = np.ones((100, 100), bool)
    holes[1::3, 1::3] = False
    assert outlines.exact_rings_of(holes) is None
    assert outlines.exact_rings_of(~holes) is not None


@pytest.mark.slow
def test_long_outlines_are_joined_to_their_holes() -> None:
    ring = disc(1500, 1500, 1400, width=3000, height=3000) & ~disc(1500, 1500, 900, width=3000, height=3000)
    (exact,) = outlines.exact_rings_of(ring) or []
    assert len(exact) > 3000  # of which not every pair of points is compared
    assert (painted([exact], (3000, 3000)) == ring).all()


@pytest.mark.slow
def test_many_ragged_holes_are_joined_with_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing all pairs would take a minute for a mask of 300 holes."""
    holes = np.ones((200, 200), bool)
    for y in range(5, 185, 20):
        for x in range(5, 185, 20):
            holes[y, x : x + 15] = holes[y : y + 9, x : x + 15 : 2] = False  # a comb
    compared: list[int] = []
    nearest = outlines.nearest_points

    def counted(
        one: outlines.Ring, other: outlines.Ring, pairs: int
    ) -> tuple[float, tuple[float, float], int]:
        compared.append(min(pairs, len(one) * len(other)))
        return nearest(one, other, pairs)

    monkeypatch.setattr(outlines, "nearest_points", counted)
    monkeypatch.setattr(outlines, "MAX_PAIRS", 5_000)
    rings = outlines.exact_rings_of(holes)
    assert rings is not None
    assert sum(compared) <= 81 * 5_000
    assert (painted(rings, (200, 200)) == holes).all()


def test_rings_keep_parts_apart_and_leave_holes_out() -> None:
    ring = disc(60, 60, 40, width=300, height=120) & ~disc(60, 60, 20, width=300, height=120)
    beside, within = disc(200, 60, 15, width=300, height=120), disc(60, 60, 10, width=300, height=120)
    rings = outlines.rings_of(ring | beside | within)
    for one, part in zip(rings, (ring, beside, within), strict=True):
        assert iou(painted([one], (120, 300)), part) > 0.9
    whole = painted(rings, (120, 300))
    assert not whole[60, 75]  # in the hole
    assert not whole[60, 110:180].any()  # between the parts: no bridge


def test_a_square_is_exact() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    assert (back(mask) == mask).all()
    assert len(outlines.ring_of(mask)) == 4


@pytest.mark.parametrize("rule", ["even-odd", "nonzero"])
def test_parts_and_holes_are_in_the_ring_by_either_rule(rule: str) -> None:
    ring_and_islands = (disc(25, 30, 20) & ~disc(25, 30, 10)) | disc(25, 30, 4) | disc(65, 40, 8)
    mask = ring_and_islands | (disc(65, 10, 9) & ~disc(65, 10, 4))
    mask[15, 19:32] = False  # so thin a hole that what is left of it is a line
    ring = outlines.ring_of(mask)
    if rule == "even-odd":
        filled = ring_mask(ring, (60, 80))
    else:
        filled = np.array([[winding(ring, x + 0.5, y + 0.5) != 0 for x in range(80)] for y in range(60)])
    assert iou(filled, mask) > 0.93
    for x, y in ((25, 30), (25, 23), (10, 30), (25, 15), (65, 40), (65, 10), (45, 30)):
        assert filled[y, x] == mask[y, x]


def test_specks_and_pinholes_are_left_out() -> None:
    mask = disc(40, 30, 28)
    clean = outlines.ring_of(mask)
    mask[30, 40] = False
    mask[2, 2] = True
    assert np.array_equal(outlines.ring_of(mask), clean)


def test_a_ring_of_noise_has_no_more_points_than_an_editor_can_show() -> None:
    noise = np.random.default_rng(0).random((600, 800)) < 0.3
    assert len(outlines.ring_of(noise)) <= outlines.MAX_POINTS


def test_a_ring_that_crosses_itself_is_filled_even_odd() -> None:
    twice = np.array([[1, 1], [7, 1], [7, 5], [1, 5]] * 2, float)
    assert not ring_mask(twice, (6, 8)).any()
    once = ring_mask(twice[:4], (6, 8))
    assert once.sum() == 24
    assert once[1:5, 1:7].all()


coordinates = st.integers(-8, 100).map(lambda number: number / 8) | st.floats(-5, 20)


@pytest.mark.slow
@given(
    arrays.arrays(float, st.tuples(st.integers(3, 30), st.just(2)), elements=coordinates),
    st.sampled_from([1, 40, 1 << 18]),
)
def test_a_ring_is_filled_by_the_even_odd_rule_however_many_rows_at_a_time(
    ring: outlines.Ring, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "BLOCK", block)
        assert (ring_mask(ring, (9, 11)) == crossed(ring, (9, 11))).all()


def test_edges_and_rows_are_counted_as_often_as_they_meet() -> None:
    """The number of points that the rings of a request may have depends on this count."""
    zigzag = np.array([[x, 0.0 if x % 2 else 60.0] for x in range(80)])
    window = geometry.window_of(zigzag, (60, 80))
    assert geometry.crossings(zigzag, window) == pytest.approx(80 * 60, rel=0.05)
    assert geometry.crossings(zigzag + np.array([0, 1000]), window) == 80
    assert geometry.crossings(zigzag * np.array([1, 1000]) - np.array([0, 30_000]), window) == pytest.approx(
        80 * 60, rel=0.05
    )


@given(arrays.arrays(float, st.tuples(st.integers(3, 8), st.just(2)), elements=st.floats(-1e5, 1e5)))
def test_a_ring_may_lie_anywhere(ring: outlines.Ring) -> None:
    assert ring_mask(ring, (6, 8)).shape == (6, 8)


def test_a_ring_beyond_the_image_covers_all_of_it() -> None:
    assert ring_mask(np.array([[-9, -9], [99, -9], [99, 99], [-9, 99]], float), (6, 8)).all()


@pytest.mark.parametrize("turned", [0, 30, 90, 135])
@pytest.mark.parametrize(("long", "short"), [(40, 20), (30, 29), (45, 8)])
def test_the_ellipse_of_an_ellipse_is_itself(long: float, short: float, turned: float) -> None:
    drawn = ellipse_mask((60, 55, long, short, turned), (110, 120))
    x, y, along, aside, degrees = outlines.ellipse_of(drawn)
    assert (x, y) == pytest.approx((60, 55), abs=0.5)
    assert (along, aside) == pytest.approx((long, short), abs=0.5)
    assert long < 35 or min(abs(degrees - turned), 180 - abs(degrees - turned)) < 1
    assert iou(ellipse_mask((x, y, along, aside, degrees), (110, 120)), drawn) > 0.96


@given(st.tuples(*[st.floats(-20, 100)] * 2, *[st.floats(0.01, 200)] * 2, st.floats(-400, 400)))
def test_an_ellipse_has_the_pixels_whose_centres_are_inside(ellipse: geometry.Ellipse) -> None:
    x, y, radius_x, radius_y, degrees = ellipse
    rows, columns = np.mgrid[:60, :80]
    down, across = rows + 0.5 - y, columns + 0.5 - x
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along, aside = (across * cos + down * sin) / radius_x, (down * cos - across * sin) / radius_y
    expected = along**2 + aside**2 <= 1
    assert (ellipse_mask(ellipse, (60, 80)) != expected).sum() <= 2  # on the outline itself


def test_an_ellipse_turns_clockwise() -> None:
    mask = ellipse_mask((40, 30, 25, 5, 45), (60, 80))
    assert mask[30 + 12, 40 + 12]  # down to the right
    assert not mask[30 - 12, 40 + 12]


@given(masks)
def test_the_deepest_pixel_is_on_the_mask(mask: Mask) -> None:
    (row, column), _ = innermost_pixel(mask)
    x, y = column + 0.5, row + 0.5
    assert mask[int(y), int(x)]


def test_the_deepest_pixel_is_far_from_the_edge_of_the_image_too() -> None:
    mask = np.zeros((60, 80), bool)
    mask[:21, :41] = True
    (row, column), _ = innermost_pixel(mask)
    x, y = column + 0.5, row + 0.5
    assert y == 10.5
    assert 10 < x < 31


def test_strokes_add_and_erase() -> None:
    canvas = np.zeros((60, 80), np.uint8)
    line = np.array([[20.5, 30.5], [60.5, 30.5]])
    geometry.stroke(canvas, line, 9, add=True)
    assert canvas[26:35, 20:61].all()
    assert not canvas[:25].any()
    assert 40 * 9 <= canvas.sum() <= 50 * 9
    geometry.stroke(canvas, line, 15, add=False)
    assert not canvas.any()
    geometry.stroke(canvas, line[:1].repeat(2, axis=0), 21, add=True)
    assert iou(canvas.astype(bool), disc(20.5, 30.5, 10.5)) > 0.9
