"""A headless Chromium for tests of HTML pages, driven by real key presses; the network is cut off but for loopback."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

# Texts with less than 4.5 : 1 against the nearest filled background (WCAG 2.2, 1.4.3), disabled ones aside.
LOW_CONTRAST = """
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const channels = text => text.startsWith('color(') // color-mix() gives shares of 1, and rgb() of 255
    ? numbers(text).map((v, i) => i < 3 ? v * 255 : v) : numbers(text);
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const low = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || !one.checkVisibility() || one.closest(':disabled, [inert], script, style, kbd, option')) continue;
    let behind = one, fill;
    do {
      fill = channels(getComputedStyle(behind).backgroundColor); behind = behind.parentElement;
    } while (fill[3] === 0 && behind);
    const [a, b] = [light(channels(getComputedStyle(one).color)), light(fill)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) low.push(`${one.tagName} ${one.id} ${one.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
"""


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A Selenium driver whose profile and `downloads` lie in `folder`; skips the test where Chromium is absent."""
    browser, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver_path is None:
        pytest.skip("chromium or chromedriver is absent: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(folder), "download.prompt_for_download": False}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
    try:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        driver.downloads = folder
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int, height: int = 900, *, dark: bool = False) -> None:
    """Set the size of the viewport itself (windows can't be narrower than about 500 pixels), and the colour scheme."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def screenshot(driver: Any, path: Path, *, whole: bool = True) -> None:
    """Save a PNG of the page in its present size, the part below the fold too."""
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
    path.write_bytes(base64.b64decode(shot["data"]))


def complaints(driver: Any) -> list[str]:
    """What the browser's console says at level warning or above: script errors, policy violations, failed loads."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
