"""The page in a real browser: a picture, a typed and a spoken question (the microphone is a file), the streamed answer, and sound that plays."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Served

from omni.audio import save_audio

pytestmark = pytest.mark.browser

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    folder = tmp_path_factory.mktemp("browser")
    speech = (np.random.default_rng(0).standard_normal(48_000 * 2) * 0.1).astype(np.float32)
    save_audio(folder / "microphone.wav", speech, 48_000)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "/usr/bin/chromium"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver") or "/usr/bin/chromedriver")
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, server: Served) -> Any:
    browser.get(server.url + "/")
    wait(lambda: find(browser, "#status").text == "ready")
    return browser


def wait(condition: Any) -> Any:
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < until, "the page took too long"
        time.sleep(0.1)
    return found


def find(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def finished(page: Any, n: int) -> Any:
    """The nth answer, once it is complete."""
    done = wait(lambda: [e for e in page.find_elements("css selector", "#log li.assistant") if e.get_attribute("data-done")][n - 1 : n])
    assert done[0].get_attribute("data-done") == "yes", done[0].text
    return done[0]


def test_a_picture_a_typed_and_a_spoken_question(page: Any, media: Path) -> None:
    find(page, "#picture").send_keys(str(media / "a.png"))
    wait(lambda: page.find_elements("css selector", "#attached img"))
    find(page, "#text").send_keys("What colour is it?\n")
    answer = finished(page, 1)
    assert find(answer, ".said").text.strip()
    audio = find(answer, "audio")
    wait(lambda: audio.get_attribute("data-samples"))
    assert int(audio.get_attribute("data-samples")) > 2400
    assert float(audio.get_attribute("data-peak")) > 0.001  # it went through the element's stream
    wait(lambda: (page.execute_script("return arguments[0].duration", audio) or 0) > 0.1)  # and can be heard again
    view = find(page, "#view").text
    assert "image" in view and "first sound" in view
    assert page.find_elements("css selector", "#view img.seen")

    find(page, "#record").click()
    wait(lambda: int(find(page, "#record").get_attribute("data-samples") or 0) > 24_000)
    find(page, "#record").click()
    wait(lambda: page.find_elements("css selector", "#attached audio"))
    find(page, "#send").click()
    finished(page, 2)
    assert page.find_elements("css selector", "#view figure img:not(.seen)")  # the spectrogram of what was heard
    assert not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def test_it_can_be_used_with_the_keyboard_and_read_aloud(page: Any) -> None:
    wait(lambda: page.switch_to.active_element.get_attribute("id") == "text")
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('button, input, select, textarea, [role], img')].filter(e => !e.hidden && e.checkVisibility()"
        " && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length || e.getAttribute('alt') !== null"
        " || e.getAttribute('role'))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.execute_script("return document.documentElement.lang") == "en"
    assert find(page, "#log").get_attribute("aria-live") == "polite"


def test_nothing_comes_from_elsewhere(page: Any, server: Served) -> None:
    names = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert names
    assert all(name.startswith((server.url, "data:", "blob:")) for name in names)


def test_a_live_conversation_hears_the_microphone(page: Any) -> None:
    find(page, "#live").click()
    wait(lambda: find(page, "#status").text.startswith(("listening", "you are speaking")))
    find(page, "#live").click()
    wait(lambda: find(page, "#status").text == "ready")


def test_a_conversation_that_is_ended_during_an_answer_leaves_nothing_in_the_next(page: Any) -> None:
    page.execute_script("""
        window.bodies = [];
        window.fetch = async (url, { body, signal }) => {
          window.bodies.push(JSON.parse(body));
          const event = { choices: [{ delta: { content: "Old" } }] };
          return new Response(new ReadableStream({ start(controller) {
            controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(event)}\\n\\n`));
            signal.onabort = () => controller.error(new DOMException("", "AbortError"));
          } }));
        };""")
    find(page, "#text").send_keys("One\n")
    wait(lambda: "Old" in find(page, "#log").text)
    find(page, "#clear").click()
    wait(lambda: find(page, "#send").is_enabled())
    find(page, "#text").send_keys("Two\n")
    wait(lambda: page.execute_script("return window.bodies.length") == 2)
    messages = page.execute_script("return window.bodies[1].messages")
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "Two"}]}]


SLOW_MICROPHONE = """
    const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    window.streams = [];
    navigator.mediaDevices.getUserMedia = async (wanted) => {
      const stream = await real(wanted);
      window.streams.push(stream);
      await new Promise((resolve) => { window.allow = resolve; });
      return stream;
    };"""
TRACKS = "return window.streams.map((stream) => stream.getTracks().map((track) => track.readyState).join())"


def test_a_microphone_that_is_allowed_too_late_is_switched_off(page: Any) -> None:
    page.execute_script(SLOW_MICROPHONE)
    find(page, "#live").click()
    wait(lambda: page.execute_script(TRACKS) == ["live"])
    find(page, "#live").click()
    page.execute_script("window.allow()")
    wait(lambda: page.execute_script(TRACKS) == ["ended"])


def test_a_second_click_while_the_microphone_starts_does_nothing(page: Any) -> None:
    page.execute_script(SLOW_MICROPHONE)
    page.execute_script("for (const _ of [1, 2]) document.getElementById('record').click()")
    wait(lambda: page.execute_script(TRACKS))
    page.execute_script("window.allow()")
    wait(lambda: find(page, "#record").text == "Stop recording")
    find(page, "#record").click()
    wait(lambda: page.execute_script(TRACKS) == ["ended"])


def test_a_live_conversation_outlives_the_end_of_the_one_before(page: Any) -> None:
    find(page, "#live").click()
    wait(lambda: find(page, "#status").text.startswith(("listening", "you are speaking")))
    page.execute_script("for (const _ of [1, 2]) document.getElementById('live').click()")
    time.sleep(2)  # the first socket's end arrives
    assert find(page, "#live").get_attribute("aria-pressed") == "true"
    find(page, "#live").click()
    wait(lambda: find(page, "#status").text == "ready")


def test_the_interface_is_described(browser: Any, server: Served) -> None:
    browser.get(server.url + "/docs")
    wait(lambda: "POST /v1/chat/completions" in find(browser, "#docs").text)
    assert "curl" in find(browser, "#docs").text
    assert "-F file=@speech.wav" in find(browser, "#docs").text
