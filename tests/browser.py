"""Pages in a real browser, headless."""

import contextlib
import os
import shutil

import pytest


@contextlib.contextmanager
def opened(page_file, profile):
    """The page of a file in a browser whose profile lies in a folder."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        if os.environ.get("CI"):
            pytest.fail("CI has no chromium with chromedriver")
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument("--no-first-run")
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        page.set_script_timeout(60)
        page.get(page_file.as_uri())
        yield page
    finally:
        page.quit()


def played(page):
    """The width in pixels and the duration in seconds of each video, once all have begun."""
    return page.execute_async_script(
        "const done = arguments[0], videos = [...document.querySelectorAll('video')];"
        "Promise.all(videos.map(v => v.play().then(() => new Promise(r =>"
        " { const t = setInterval(() => { if (v.currentTime > 0.1)"
        " { clearInterval(t); r([v.videoWidth, v.duration]) } }, 50) }))))"
        ".then(done, e => done(String(e)))"
    )
