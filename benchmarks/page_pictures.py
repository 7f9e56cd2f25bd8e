"""Pictures of the page for the documentation: light, dark and on a phone, with the bundled model at work.

    python benchmarks/page_pictures.py docs/pictures

Needs a headless Chromium. The prompts are drawn by `lineardit serve` on loopback.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMPTS = (
    "a red apple left of a cat on a sky blue background",
    "two dogs in front of green hills",
    "a rocket above a house at night",
)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tests" / "serving" / "browser.py")
    assert spec is not None and spec.loader is not None
    browser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browser)
    start = "import sys; from lineardit.cli.app import main; sys.exit(main(['serve', '--port', '0']))"
    server = subprocess.Popen([sys.executable, "-c", start], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    url = server.stderr.readline().split()[0]
    page = browser.Browser(Path(tempfile.mkdtemp()))
    try:
        page.open(url, 1280, 860)
        for number, prompt in enumerate(PROMPTS, start=1):
            page.fill("#prompt", prompt)
            page.fill("#count", "2")
            page.fill("#seed", str(number))
            page.press("Enter", 13, control=True)
            page.until(f"document.querySelectorAll('#gallery img').length === {2 * number}", 1800)
        page.fill("#prompt", PROMPTS[0])
        page.fill("#steps", "60")
        page.press("Enter", 13, control=True)
        page.until("document.querySelector('.run progress')?.value > 0.2", 1800)
        for theme in ("light", "dark"):
            page.do(
                f"document.getElementById('theme').value = '{theme}';"
                "document.getElementById('theme').dispatchEvent(new Event('change'))"
            )
            (folder / f"page-{theme}.png").write_bytes(page.screenshot())
        page.until("!document.querySelector('.run')", 1800)
        page.open(url, 390, 844)
        (folder / "page-phone.png").write_bytes(page.screenshot())
    finally:
        page.close()
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
