"""The web page as its users meet it: a real camera, the real model, in a browser."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from streamer.service import Service
from tests.support.browser import open_page, serious_problems, take_picture
from tests.support.installation import Up, has_demo_model
from tests.support.staged_camera import StagedCamera

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not has_demo_model(), reason="the demo checkpoint has not been trained yet"),
]

PATIENCE = 400_000
"""Milliseconds for what the model has to do first, on a machine that is busy."""


def test_from_an_address_to_an_incident_that_is_over(
    browser: "Browser",
    installation: Up,
    street: StagedCamera,
    eventually: Callable[..., None],
) -> None:
    with (
        Service(installation.settings) as client,
        open_page(browser, installation.api_url, expected="snapshot|frames|queries") as page,
    ):
        page.set_default_timeout(PATIENCE)
        # attach the camera by its address, step by step, until its first caption
        page.goto("/attach")
        page.get_by_label("Address").fill(street.url)
        page.get_by_label("Name").fill("street")
        page.get_by_role("button", name="Attach", exact=True).click()
        page.get_by_text("Receive a picture").wait_for()
        page.locator(".step.ok", has_text="First caption").wait_for()
        take_picture(page, "journey-attached")
        page.get_by_role("link", name="Open street").click()

        # add an alert in place
        page.get_by_role("button", name="Add", exact=True).click()
        page.get_by_label("Question about every window").fill("Is there a car?")
        page.get_by_role("button", name="Alert").click()
        page.get_by_label("Title of an incident").fill("A car is on the street")
        page.get_by_label("Seconds of one window").fill("4")
        page.locator(".watch-form").get_by_role("button", name="Add").click()
        page.get_by_text("A car is on the street:").wait_for()

        # what the model saw, with its tiles
        page.keyboard.press("t")
        page.locator(".tiles path").first.wait_for(state="attached")
        take_picture(page, "journey-seen")

        # drag a range, and ask about it
        page.keyboard.press("l")
        box = page.get_by_role("slider").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.985 * box["width"], box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9995 * box["width"], box["y"] + 20, steps=4)
        page.mouse.up()
        page.get_by_placeholder("Ask about this range").fill("Describe the scene.")
        page.keyboard.press("Enter")
        page.locator(".answer footer", has_text="tokens").wait_for()
        take_picture(page, "journey-asked")

        # an incident opens on the wall; it is snoozed, taken care of, and over when the car leaves
        page.goto("/")
        street.show("car")
        page.locator("[data-stream=street].alert").wait_for()
        take_picture(page, "journey-wall")
        page.locator(".alarm").click()
        page.wait_for_url("**/incidents/*")
        assert serious_problems(page) == []
        page.keyboard.press("s")
        page.wait_for_selector(".menu .list button:focus")
        page.keyboard.press("Enter")
        page.get_by_text("No messages about this for 15 minutes").wait_for()
        page.keyboard.press("a")
        page.get_by_role("button", name="Taken care of").wait_for()
        take_picture(page, "journey-incident")
        street.show("empty")
        page.get_by_text("it cleared").wait_for()

        # the camera dies, and the wall says so
        page.goto("/")
        street.stop()
        tile = page.locator("[data-stream=street]")
        tile.get_by_text("Connection lost").first.wait_for()
        assert "ago" in tile.inner_text()

        # detached, and gone
        client.detach("street")
        tile.wait_for(state="detached")
        eventually(lambda: "street" not in {stream.name for stream in client.streams()})
