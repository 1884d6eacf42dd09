"""Drive Label Studio's editor in a real Chromium: gestures of an annotator, and the pixels shown."""

from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from backend.demo.processes import LOOPBACK, Account
from tests.support.editor_gestures import Mask
from tests.support.paths import ROOT

ARTIFACTS = ROOT / "tests" / "e2e" / "artifacts"
# Also for root, without a GPU, and without a word to hosts outside.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
TIMEOUT_MS = 60_000.0  # enough on a busy machine
expect.set_options(timeout=TIMEOUT_MS)
SMART_TOOLS = {"KeyPoint": "key-point-tool", "Rectangle": "rectangle-tool"}

_IMAGE_SIZE = """() => {
    const image = document.querySelector("img[alt=image]")
    return image && image.naturalWidth > 0 && [image.naturalWidth, image.naturalHeight]
}"""


# Two, since the first may be one that began before the regions were added.
_TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def config(labels: str, outputs: str, *, width: int) -> str:
    """Return a labeling config whose labels stand above an image that is shown `width` pixels wide.

    `outputs` is the XML of the output controls, with {labels} where the labels go. They are not smart, for
    the smart brush and bitmask tools of 1.23.2 send nothing, and would be the first that Auto-Detect offers.
    """
    return (
        f"<View>{outputs.format(labels=labels)}"
        f'<KeyPointLabels name="click" toName="image" smart="true">{labels}</KeyPointLabels>'
        f'<RectangleLabels name="box" toName="image" smart="true">{labels}</RectangleLabels>'
        f'<Image name="image" value="$image" maxWidth="{width}px"/></View>'
    )


def shared_labels_config(labels: str, tool: str, *, width: int) -> str:
    """Return the same with one list of labels for all tools. `tool` is the tag that takes the regions."""
    return (
        f'<View><Labels name="label" toName="image">{labels}</Labels>'
        f'<{tool} name="mask" toName="image" smart="false"/>'
        '<KeyPoint name="click" toName="image" smart="true"/>'
        '<Rectangle name="box" toName="image" smart="true"/>'
        f'<Image name="image" value="$image" maxWidth="{width}px"/></View>'
    )


class Editor:
    """A task that is open in the editor. Coordinates are pixels of the image as it is shown upright."""

    def __init__(self, browser: Browser, url: str, account: Account) -> None:
        """Log in. Only loopback can be reached: the editor's page asks for hosts outside, too."""
        self._url = url
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        context.set_default_timeout(TIMEOUT_MS)
        context.route("**/*", _only_loopback)
        self.page: Page = context.new_page()
        self.page.goto(f"{url}/user/login/")
        self.page.fill("input[name=email]", account.email)
        self.page.fill("input[name=password]", account.password)
        self.page.press("input[name=password]", "Enter")
        self.page.wait_for_url(lambda address: "/login" not in address)
        self._tools: dict[str, tuple[str, int]] = {}  # by control: its tag, and which list of labels it has
        self._size = (0, 0)
        self._keep_label = False  # as a new browser has it

    def open(
        self,
        project: int,
        task: int,
        label_config: str,
        *,
        regions: int,
        auto_accept: bool = False,
        keep_label: bool = False,
    ) -> None:
        """Open a task with Auto-Annotation on and wait for so many regions."""
        tags = list(ElementTree.fromstring(label_config).iter())
        lists = [tag.get("name") for tag in tags if tag.tag.endswith("Labels")]
        self._tools = {
            name: (tag.tag.removesuffix("Labels"), lists.index(name) if name in lists else 0)
            for tag in tags
            if (name := tag.get("name")) is not None
        }
        self.go_to(project, task)
        self.wait_for_image(regions)
        self._toggle("bottombar-auto-annotation-toggle", True)
        self._toggle("bottombar-auto-accept-toggle", auto_accept)
        if keep_label != self._keep_label:
            self._set_keep_label(keep_label)

    def wait_for_image(self, regions: int) -> None:
        """Wait until an image and so many regions are shown."""
        self.reload_until(self._items.nth(regions - 1))
        expect(self._items).to_have_count(regions)

    def reload_until(self, shown: Locator) -> None:
        """Reload until an image and its prediction are shown.

        1.23.2 builds the editor twice when a task opens, and on a busy machine it often loses the
        predictions on the way; then an annotator reloads the page.
        """
        for loads in range(1, 9):
            self._size = self.page.wait_for_function(_IMAGE_SIZE).json_value()
            self._stage.wait_for()
            try:
                shown.wait_for(timeout=5000)
                return
            except PlaywrightTimeout:
                if loads == 8:
                    raise
            self.page.reload()

    def go_to(self, project: int, task: int) -> None:
        self.page.goto(f"{self._url}/projects/{project}/data?task={task}")

    def click(
        self, x: float, y: float, control: str, label: str, *, negative: bool = False, inside: bool = False
    ) -> list[dict[str, Any]]:
        """Make a smart click and return the regions of its answer. `inside` a region, hold Ctrl."""
        self._pick(control, label)
        return self.click_again(x, y, negative=negative, inside=inside)

    def click_again(
        self, x: float, y: float, *, negative: bool = False, inside: bool = False
    ) -> list[dict[str, Any]]:
        """Click with the tool and the label that are selected."""
        held = [key for key, pressed in (("Control", inside), ("Alt", negative)) if pressed]
        return self._answered(lambda: self.press(held, lambda: self.page.mouse.click(*self.at(x, y))))

    def type(self, text: str, placeholder: str) -> list[dict[str, Any]]:
        """Submit a text in the TextArea with this placeholder and return the regions of its answer."""
        field = self.page.get_by_placeholder(placeholder)
        field.fill(text)
        return self._answered(lambda: field.press("Enter"))

    def drag(
        self, x0: float, y0: float, x1: float, y1: float, control: str, label: str
    ) -> list[dict[str, Any]]:
        """Draw a smart box from corner to corner and return the regions of its answer."""

        def gesture() -> None:
            self.page.mouse.move(*self.at(x0, y0))
            self.page.mouse.down()
            self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2))
            self.page.mouse.move(*self.at(x1, y1))
            self.page.mouse.up()

        self._pick(control, label)
        return self._answered(gesture)

    def accept(self) -> None:
        """Take over all suggestions; the prompts vanish."""
        button = self.page.get_by_test_id("bottombar-accept-suggestions-button")
        button.click()
        button.wait_for(state="detached")

    def reject(self) -> None:
        button = self.page.get_by_test_id("bottombar-reject-suggestions-button")
        button.click()
        button.wait_for(state="detached")

    def submit(self) -> int:
        """Submit or update the annotation and return its id."""
        button = self.page.locator(
            "[data-testid=bottombar-submit-button], [data-testid=bottombar-update-button]"
        )
        with self.page.expect_response(
            lambda r: "/annotations" in r.url and r.request.method in ("POST", "PATCH")
        ) as answer:
            button.click()
        return int(answer.value.json()["id"])

    def draft(self) -> None:
        """Wait until the editor has saved a draft, which it does some seconds after a change."""
        with self.page.expect_response(
            lambda r: "/drafts" in r.url and r.request.method in ("POST", "PATCH")
        ):
            pass

    def status(self) -> Locator:
        """Return the text of the TextArea that shows failures."""
        return self.page.get_by_test_id("textarea-control")

    def labels(self) -> list[str]:
        """Return the labels of all regions, as in the list beside the image."""
        return self._items.all_inner_texts()

    def drawn(self) -> Mask:
        """Return the mask (height, width) of shown pixels that change when all regions are hidden."""
        shown = self._screenshot()
        self.page.get_by_role("button", name="Hide all regions").click()
        hidden = self._screenshot()
        self.page.get_by_role("button", name="Show all regions").click()
        mask: Mask = np.abs(shown.astype(int) - hidden).max(axis=2) > 2
        return mask

    def see(self, expected: Mask, least: float) -> None:
        """Wait until the drawn regions cover the `expected` pixels of the image to an IoU of `least`."""
        overlap = 0.0
        for _ in range(40):
            drawn = self.drawn()
            height, width = drawn.shape
            wanted = np.asarray(Image.fromarray(expected).resize((width, height), Image.Resampling.NEAREST))
            overlap = iou(drawn, wanted)
            if overlap >= least:
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"what is drawn overlaps with what is expected by {overlap:.3f} only")

    def save_picture(self, name: str) -> None:
        """Save a picture of the whole page as an artifact."""
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(300)  # until tooltips are gone
        self.page.screenshot(path=ARTIFACTS / f"{name}.png")

    @property
    def _stage(self) -> Locator:
        return self.page.locator(".konvajs-content").first

    @property
    def _items(self) -> Locator:
        return self.page.locator(".lsf-outliner-item__title")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place on the page of the centre of a pixel of the image."""
        box, (width, height) = self._stage.bounding_box(), self._size
        assert box is not None
        return box["x"] + box["width"] * (x + 0.5) / width, box["y"] + box["height"] * (y + 0.5) / height

    def press(self, keys: list[str], gesture: Callable[[], None]) -> None:
        """Make a gesture while keys are held."""
        for key in keys:
            self.page.keyboard.down(key)
        try:
            gesture()
        finally:
            for key in keys:
                self.page.keyboard.up(key)

    def _pick(self, control: str, label: str) -> None:
        """Choose the smart tool, then the label: a label chosen under another tool selects the plain tool."""
        tag, index = self._tools[control]
        tools = self.page.locator("button.lsf-tool_smart")
        tools.first.hover()
        self.page.locator(f"button.lsf-tool_smart[aria-label={SMART_TOOLS[tag]}]").click()
        self.page.locator(".lsf-labels").nth(index).get_by_text(label, exact=True).click()

    def _answered(self, gesture: Callable[[], None]) -> list[dict[str, Any]]:
        with self.page.expect_response(lambda r: "/interactive-annotating" in r.url) as answer:
            gesture()
        regions: list[dict[str, Any]] = answer.value.json()["data"]["result"]
        # The editor drops a click if a region appears between its mouse down and its mouse up.
        expect(self.page.locator(".lsf-requesting")).to_have_count(0)
        self.page.evaluate(_TWO_FRAMES)
        return regions

    def _toggle(self, test_id: str, on: bool) -> None:
        switch = self.page.get_by_test_id(test_id)
        switch.set_checked(on, force=True)
        expect(switch).to_be_checked(checked=on)

    def _set_keep_label(self, on: bool) -> None:
        """Change the setting, which the browser remembers."""
        self.page.get_by_test_id("bottombar-settings-button").click()
        settings = self.page.locator(".ant-modal", has_text="Labeling Interface Settings")
        field = settings.locator("label", has_text="Keep label selected after creating a region")
        switch = field.locator("input[type=checkbox]")
        for _ in range(5):
            if switch.is_checked() == on:
                break
            # A click while the window still opens may be lost.
            field.get_by_text("Allows continuous region creation").click()
            self.page.wait_for_timeout(1000)
        expect(switch).to_be_checked(checked=on)
        settings.get_by_role("button", name="Close").click()
        settings.wait_for(state="hidden")
        self._keep_label = on

    def _screenshot(self) -> NDArray[np.uint8]:
        png = self._stage.screenshot(animations="disabled")
        return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _only_loopback(route: Route) -> None:
    if urlsplit(route.request.url).hostname == LOOPBACK:
        route.continue_()
    else:
        route.abort()
