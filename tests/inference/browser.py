"""A page as a browser renders it: headless chromium."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1200,1600"),
)


def find_browser() -> str:
    """The browser; without one the test is skipped, or fails where DEFLECT_REQUIRE_BROWSER=1 is set."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        message = f"none of {', '.join(NAMES)} is installed, which renders the page for this test"
        if os.environ.get("DEFLECT_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


def rendered(browser: str, page: Path, profile: Path) -> str:
    """The document as it is once the page's scripts have run."""
    done = subprocess.run(
        [browser, *QUIET, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
    )
    return done.stdout


def asked(browser: str, page: Path, folder: Path, script: str) -> dict[str, Any]:
    """What the body of a function finds in the rendered page, whose own policy lets this one script run besides."""
    code = (
        f"const found = (() => {{ {script} }})(); const told = document.createElement('pre'); told.id = 'found'; "
        "told.textContent = JSON.stringify(found); document.body.append(told);"
    )
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    assert text.count("script-src '") == 1 and text.count("</body>") == 1
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '")
    copy = folder / f"asked-{page.name}"
    copy.write_text(text.replace("</body>", f"<script>{code}</script></body>"), encoding="utf-8")
    dom = rendered(browser, copy, folder / "profile")
    told = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert told is not None, dom[-2000:]
    answer: dict[str, Any] = json.loads(told[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return answer
