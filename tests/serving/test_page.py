"""The page, in a headless Chromium: it types, waits, sees a picture, and no text ever becomes a script."""

import base64
import importlib.util
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
assert _spec is not None and _spec.loader is not None
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

pytestmark = pytest.mark.skipif(browser.PATH is None, reason=f"needs one of {', '.join(browser.NAMES)}")

ENTER = ("Enter", 13)
PAYLOADS = [  # in prompts and in the settings of pictures
    "<script>hacked=1</script>",
    "<img src=x onerror=hacked=1>",
    '"><svg onload=hacked=1>',
    "javascript:hacked=1",
    "</textarea><script>hacked=1</script>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'>",
    "${hacked=1}",
    "{{constructor.constructor('hacked=1')()}}",
    "' onmouseover='hacked=1",
    "<a href=javascript:hacked=1>x</a>",
    "<style>@import 'http://evil.example'</style>",
    "<math><mi xlink:href='data:x,<script>hacked=1</script>'>",
    "<body onload=hacked=1>",
    "<details open ontoggle=hacked=1>",
    "<video><source onerror=hacked=1>",
    "<SCRIPT SRC=data:,hacked=1></SCRIPT>",
    "<object data=data:text/html,<script>parent.hacked=1</script>>",
    "<embed src=javascript:hacked=1>",
    "<input autofocus onfocus=hacked=1>",
    "<form action=javascript:hacked=1><button>x</button></form>",
    "<link rel=stylesheet href=http://evil.example/x.css>",
    "<base href=http://evil.example/>",
    "<meta http-equiv=refresh content='0;url=javascript:hacked=1'>",
    "</title><script>hacked=1</script>",
    "<!--><script>hacked=1</script-->",
    "<template><script>hacked=1</script></template>",
    "&lt;script&gt;hacked=1&lt;/script&gt;",
    "\\u003cscript\\u003ehacked=1\\u003c/script\\u003e",
    "';hacked=1;//",
    "<img src=`x` onerror=`hacked=1`>",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    opened = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def quiet(page: Any) -> Iterator[None]:
    page.events.clear()
    yield
    assert page.complaints() == []


def png(parameters: str) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    text = chunk(b"tEXt", b"parameters\0" + parameters.encode("latin-1"))
    return (
        b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")
    )


def pictures(page: Any) -> list[str]:
    return page.do("[...document.querySelectorAll('#gallery img')].map(picture => picture.alt)")


def values(page: Any, *fields: str) -> list[str]:
    return [page.do(f"document.getElementById('{field}').value") for field in fields]


def test_a_prompt_becomes_a_picture_that_survives_a_reload_and_gives_its_settings_back(
    page: Any, pretended: Any
) -> None:
    page.open(pretended.url)
    assert page.do("document.activeElement.id") == "prompt"
    for field, text in (
        ("#prompt", "a cat"),
        ("#steps", "7"),
        ("#guidance", "2.5"),
        ("#seed", "41"),
        ("#count", "2"),
    ):
        page.fill(field, text)
    page.do("document.getElementById('ratio').value = '3:2'; document.getElementById('ratio')"
            ".dispatchEvent(new Event('change'))")  # fmt: skip
    size = page.do("document.getElementById('pixels').value")
    page.fill("#prompt", "a red apple")
    page.press(*ENTER, control=True)
    page.until("document.querySelectorAll('#gallery img').length === 2 && !document.querySelector('.run')")
    assert pictures(page) == ["a red apple"] * 2
    page.fill("#prompt", "something else")
    page.open(pretended.url)
    assert pictures(page) == ["a red apple"] * 2
    page.do("document.querySelector('#gallery .picture').click()")
    assert values(page, "prompt", "steps", "guidance", "seed", "count", "ratio") == [
        "a red apple", "7", "2.5", "42", "1", "3:2"
    ]  # fmt: skip
    assert page.do("document.getElementById('pixels').value") == size
    content = page.do(
        "(async () => { const data = await new Promise(done => { const opening = indexedDB.open('lineardit');"
        "opening.onsuccess = () => { opening.result.transaction('pictures').objectStore('pictures').getAll()"
        ".onsuccess = event => done(event.target.result); }; }); const reader = new FileReader();"
        "return await new Promise(done => { reader.onload = () => done(reader.result);"
        "reader.readAsDataURL(data[0].blob); }); })()"
    )
    answer = pretended.post("/sdapi/v1/png-info", {"image": content})
    assert answer.json["lineardit"]["seed"] == 41 and answer.json["lineardit"]["num_inference_steps"] == 7
    assert page.do("document.querySelector('#gallery a').download") == "a-red-apple-42.png"


SLOW_COMMITS = """
    const add = IDBObjectStore.prototype.add;
    IDBObjectStore.prototype.add = function (...given) {
        const end = performance.now() + 500;
        const linger = () => { if (performance.now() < end) this.count().onsuccess = linger; };
        const asked = add.apply(this, given);
        asked.addEventListener("success", linger);
        return asked;
    };
"""
"""Browsers may take their time between what was asked for and what is on the disk."""


def test_a_picture_that_is_seen_is_kept_even_if_the_page_is_left_at_once(page: Any, pretended: Any) -> None:
    page.open(pretended.url)
    before = len(pictures(page))
    page.do(SLOW_COMMITS)
    page.fill("#prompt", "a quick pear")
    page.fill("#count", "1")
    page.press(*ENTER, control=True)
    page.until(f"document.querySelectorAll('#gallery img').length === {before + 1}")
    page.open(pretended.url)
    assert pictures(page).count("a quick pear") == 1


def test_cancelling_stops_the_work(page: Any, pretended: Any) -> None:
    page.open(pretended.url)
    for field, text in (("#prompt", "slow"), ("#steps", "1000"), ("#count", "1")):
        page.fill(field, text)
    page.do("document.querySelector('#form .main').click()")
    page.until("document.querySelector('.run-state').textContent.startsWith('Step')")
    page.until("document.querySelector('.run img').src.startsWith('data:image/png')")
    assert 0 < page.do("document.querySelector('.run progress').value") < 1
    page.do(
        "document.getElementById('prompt').value = 'slow two'; document.querySelector('#form .main').click()"
    )
    page.until("document.querySelector('.run-state').textContent === 'Next in the queue'")
    page.do("document.querySelectorAll('.run-line button').forEach(button => button.click())")
    page.until("!document.querySelector('.run')")
    pretended.until(lambda: pretended.metric("lineardit_pictures_drawing") == 0)
    assert page.do("document.getElementById('news').textContent") == "Cancelled"


def test_a_png_gives_its_settings_when_chosen_or_dropped(page: Any, pretended: Any, tmp_path: Path) -> None:
    place = tmp_path / "cat.png"
    told = "Steps: 9, Sampler: euler, CFG scale: 7, Seed: 3, Size: 16x16"
    place.write_bytes(png(f"an old cat\nNegative prompt: fog\n{told}"))
    page.open(pretended.url)
    page.choose_file("#file", place)
    page.until("document.getElementById('prompt').value === 'an old cat'")
    assert values(page, "negative", "steps", "guidance", "seed", "sampler") == ["fog", "9", "7", "3", "euler"]
    assert page.do("document.getElementById('pixels').value") == "16 × 16 pixels"
    encoded = base64.b64encode(png("dropped\nSteps: 4, Sampler: heun, Seed: 1")).decode()
    page.do(
        "(() => { const carried = new DataTransfer(); carried.items.add(new File([Uint8Array.from("
        f"atob('{encoded}'),"
        "letter => letter.charCodeAt(0))], 'x.png')); document.dispatchEvent(new DragEvent('drop',"
        "{dataTransfer: carried, cancelable: true})); })()"
    )
    page.until("document.getElementById('prompt').value === 'dropped'")
    assert values(page, "sampler", "steps") == ["heun", "4"]


def test_a_picture_without_settings_is_one_to_start_from(page: Any, pretended: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (250, 120, 10)).save(file, "WEBP", lossless=True)
    encoded = base64.b64encode(file.getvalue()).decode()
    page.open(pretended.url)
    assert page.do("document.getElementById('start-shown').offsetHeight") == 0
    page.do(
        "(() => { const carried = new DataTransfer(); carried.items.add(new File([Uint8Array.from("
        f"atob('{encoded}'), letter => letter.charCodeAt(0))], 'x.webp')); document.dispatchEvent("
        "new DragEvent('drop', {dataTransfer: carried, cancelable: true})); })()"
    )
    page.until("document.getElementById('start-shown').offsetHeight > 0")
    page.until("document.getElementById('ratio').value === '4:3'")
    # The answer that it has no settings is a status that the browser writes into its log.
    page.events[:] = [each for each in page.events if "422" not in str(each) and "400" not in str(each)]
    page.do("(field => { field.value = 0.5; field.dispatchEvent(new Event('input')); })"
            "(document.getElementById('strength'))")  # fmt: skip
    assert page.do("document.getElementById('share').value") == "50 %"
    for field, text in (("#prompt", "over it"), ("#steps", "4"), ("#count", "1")):
        page.fill(field, text)
    page.press(*ENTER, control=True)
    page.until("document.querySelector('#gallery img')?.alt === 'over it'")
    colour = page.do(
        "(async () => { const picture = document.querySelector('#gallery img'); await picture.decode();"
        "const canvas = new OffscreenCanvas(1, 1).getContext('2d'); canvas.drawImage(picture, 0, 0);"
        "return [...canvas.getImageData(0, 0, 1, 1).data]; })()"
    )
    assert colour == [250, 120, 10, 255]
    page.do("document.querySelector('#gallery .picture').click()")
    assert "the picture that it started from" in page.do("document.getElementById('message').textContent")
    page.do("document.getElementById('start-off').click()")
    page.do("document.querySelector('#gallery [data-do=start]').click()")
    page.until("document.getElementById('start-shown').offsetHeight > 0")


def test_one_of_several_models_can_be_chosen(page: Any, pretended: Any) -> None:
    page.open(pretended.url)
    assert page.do("[...document.getElementById('models').options].map(each => each.value)") == [
        "emoji",
        "second",
    ]
    page.do("(field => { field.value = 'second'; field.dispatchEvent(new Event('change')); })"
            "(document.getElementById('models'))")  # fmt: skip
    page.fill("#prompt", "by the second")
    page.press(*ENTER, control=True)
    page.until("document.querySelector('#gallery img')?.alt === 'by the second'")
    page.open(pretended.url)
    assert values(page, "models") == ["emoji"]
    page.do("document.querySelector('#gallery .picture').click()")
    page.until("document.getElementById('models').value === 'second'")


def test_a_mistake_is_said_and_nothing_is_lost(page: Any, pretended: Any) -> None:
    page.open(pretended.url)
    page.fill("#prompt", "fail OutOfMemory")
    page.do("document.querySelector('#form .main').click()")
    page.until("document.querySelector('.run.failed')")
    assert "too little memory" in page.do("document.querySelector('.run-state').textContent")
    assert values(page, "prompt") == ["fail OutOfMemory"]
    page.do("document.querySelector('.run-line button').click()")
    page.until("!document.querySelector('.run')")


def test_no_text_becomes_a_script(page: Any, pretended: Any, tmp_path: Path) -> None:
    page.open(pretended.url)
    for number, payload in enumerate(PAYLOADS):
        page.fill("#count", "1")
        page.fill("#steps", "1")
        page.fill("#prompt", payload)
        page.do("document.querySelector('#form .main').click()")
        page.until(f"document.querySelector('#gallery img')?.alt === {json.dumps(payload)}")
        page.do("document.querySelector('[data-do=large]').click(); document.getElementById('large').close()")
        place = tmp_path / f"{number}.png"
        place.write_bytes(
            png(f"{payload} \nNegative prompt: {payload}\nSteps: 1, Sampler: {payload}, Seed: 1")
        )
        page.choose_file("#file", place)
        page.until(f"document.getElementById('negative').value.trim() === {json.dumps(payload)}")
    page.open(pretended.url)
    assert page.do("typeof hacked") == "undefined"
    assert all(address.startswith((pretended.url, "data:", "blob:")) for address in page.visited())


@pytest.mark.parametrize("width", [320, 390, 820, 1600])
def test_nothing_sticks_out_at_any_width(page: Any, pretended: Any, width: int) -> None:
    page.open(pretended.url, width=width)
    assert page.do("document.documentElement.scrollWidth") <= width
    fields = "#form button, #form select, #form input:not([type=checkbox])"
    shown = ".filter(each => each.offsetParent).map(each => each.offsetHeight)"
    heights = page.do(f"[...document.querySelectorAll('{fields}')]{shown}")
    assert min(heights) >= 24  # pixels that a finger finds


def test_everything_has_a_name_for_screen_readers(page: Any, pretended: Any) -> None:
    page.open(pretended.url)
    page.do("document.getElementById('negative-part').open = true")
    names = page.controls()
    assert len(names) >= 14 and all(name.strip() for name in names.values()), names


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(page: Any, pretended: Any, theme: str) -> None:
    page.open(pretended.url)
    page.do(f"document.getElementById('theme').value = '{theme}'; document.getElementById('theme')"
            ".dispatchEvent(new Event('change'))")  # fmt: skip
    page.open(pretended.url)
    assert values(page, "theme") == [theme]
    for selector in (".help", "#model", ".actions .main", "label", "#prompt"):
        ink, ground = page.do(
            f"(() => {{ const place = document.querySelector('{selector}'); let behind = place, ground;"
            "do { ground = getComputedStyle(behind).backgroundColor; behind = behind.parentElement; }"
            "while (ground === 'rgba(0, 0, 0, 0)'); return [getComputedStyle(place).color, ground]; })()"
        )
        assert contrast(ink, ground) >= 4.5, (selector, ink, ground)


def contrast(one: str, other: str) -> float:
    """Of two colours, by WCAG 2.2."""
    levels = []
    for colour in (one, other):
        shares = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(levels) + 0.05) / (min(levels) + 0.05)
