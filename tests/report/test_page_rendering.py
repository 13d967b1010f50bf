"""The report page as text: what it holds, what it forbids, and that no name gets out of its place."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sample_payload import HOSTILE, sample_payload

from fspmu.errors import InputError
from fspmu.report import page

ASSETS = Path(page.__file__).parent / "assets"
SMALL = {"suspects": 8, "others": 4, "points": 20, "pictures": False}


class Parsed(HTMLParser):
    """The elements of a page, and the text of its scripts and styles."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.raw, self.text, self.inside = [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else self.inside
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        (self.raw[-1][2] if self.inside else self.text).append(data)

    def block(self, identity):
        return next("".join(text) for _, attrs, text in self.raw if attrs.get("id") == identity)


def policy_of(parsed):
    content = next(attrs["content"] for tag, attrs in parsed.elements if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    return {name: values for name, *values in (part.split() for part in content.split(";"))}


def hashed(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("hostile", [False, True])
def test_the_data_comes_back_from_the_page_unchanged(hostile):
    payload = sample_payload(**SMALL, hostile=hostile)
    payload["items"]["path"][0] = "bad-\udcff-name"
    html = page.render_page(payload, plotly=False)
    html.encode("utf-8")
    assert json.loads(Parsed(html).block("payload")) == payload


def test_the_same_payload_gives_the_same_bytes():
    assert page.render_page(sample_payload(**SMALL)) == page.render_page(sample_payload(**SMALL))


def test_no_name_becomes_markup():
    plain, hostile = (Parsed(page.render_page(sample_payload(**SMALL, hostile=bad), plotly=False)) for bad in (False, True))
    assert [tag for tag, _ in hostile.elements if tag in ("script", "style", "img", "b", "iframe")] == [
        tag for tag, _ in plain.elements if tag in ("script", "style", "img", "b", "iframe")
    ]
    assert not [name for _, attrs in hostile.elements for name in attrs if name.startswith("on") or name in ("style", "srcdoc")]
    text = "".join(hostile.text)
    assert all(name in text for name in HOSTILE)


@pytest.mark.parametrize("plotly", [False, True])
def test_the_policy_allows_these_scripts_and_styles_and_nothing_else(plotly):
    parsed = Parsed(page.render_page(sample_payload(**SMALL), plotly=plotly))
    policy = policy_of(parsed)
    runs = ["".join(text) for tag, attrs, text in parsed.raw if tag == "script" and "type" not in attrs]
    if plotly:
        runs.append(zlib.decompress(base64.b64decode(parsed.block("plotly-packed"))).decode())
    assert policy["default-src"] == policy["connect-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert sorted(policy["script-src"]) == sorted(map(hashed, runs))
    assert set(policy["style-src"]) == {hashed("".join(text)) for tag, _, text in parsed.raw if tag == "style"} | ({hashed("")} if plotly else set())
    assert policy["img-src"] == ["data:", "'self'"]
    first = next(place for place, (tag, _) in enumerate(parsed.elements) if tag in ("script", "style", "link"))
    assert any(attrs.get("http-equiv") for _, attrs in parsed.elements[:first])
    assert not [attrs for _, attrs in parsed.elements if re.match(r"(https?:)?//", attrs.get("src") or attrs.get("href") or "")]


def test_served_pages_may_talk_to_their_server_alone():
    parsed = Parsed(page.render_page(sample_payload(**SMALL), plotly=False, server={"token": "</script>&", "save": "/review"}))
    assert policy_of(parsed)["connect-src"] == ["'self'"]
    assert json.loads(parsed.block("server")) == {"token": "</script>&", "save": "/review"}


def test_files_are_linked_where_they_can_be_had():
    payload = sample_payload(**SMALL) | {"settings": [["lr", "1", ""]]}
    alone, served = (Parsed(page.render_page(payload, plotly=False, server=server)) for server in (None, {"token": "t", "save": "/review"}))
    links = [attrs.get("href") for _, attrs in alone.elements]
    assert all(address in links for *_, address in payload["files"])
    assert not any(attrs.get("href") == address for _, attrs in served.elements for *_, address in payload["files"])
    assert "Files of this run" not in "".join(served.text) and "1 setting" in alone.text and "1 settings" not in alone.text


def test_panels_of_which_there_is_nothing_are_left_out():
    payload = sample_payload(0, 0, 0, known=False, pictures=False)
    payload |= {
        "warnings": [],
        "flips": None,
        "curves": [],
        "audit": [],
        "compare": [],
        "settings": [],
        "glossary": [],
        "files": [],
        "matrix": [],
        "reviewable": False,
    }
    payload["scores"] |= {"edges": [], "counts": [], "noise_at": [], "curves": [], "total": 0}
    parsed = Parsed(page.render_page(payload, plotly=False))
    sections = {attrs.get("id") for tag, attrs in parsed.elements if tag == "section"}
    assert sections == {"run", "verdict", "classes", "matrix", "review", "settings", "downloads"}
    assert {attrs["data-panel"] for tag, attrs in parsed.elements if tag == "a" and "data-panel" in attrs} == sections


def test_without_plotly_tables_say_what_its_charts_would():
    payload = sample_payload(**SMALL)
    text = "".join(Parsed(page.render_page(payload, plotly=False)).text)
    assert all(str(edge) in text for edge in payload["scores"]["edges"])
    assert all(str(value) in text for curve in payload["curves"] for series in curve["series"] for value in series["y"])


def test_ids_are_unique_and_labels_lead_somewhere():
    elements = Parsed(page.render_page(sample_payload(**SMALL))).elements
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in elements:
        for name in ("aria-labelledby", "aria-controls", "aria-describedby", "for"):
            assert attrs.get(name, ids[0]) in ids


def test_bad_payloads_are_refused_in_a_sentence():
    with pytest.raises(InputError, match="schema 2"):
        page.render_page(sample_payload(**SMALL) | {"schema": 2})
    with pytest.raises(InputError, match="None"):
        page.render_page(sample_payload(**SMALL) | {"key": float("nan")}, plotly=False)


def test_all_assets_are_part_of_the_page_and_short():
    assert {path.stem for path in ASSETS.glob("*.js")} == set(page.MODULES)
    assert {path.name for path in ASSETS.glob("*.css")} == set(page.STYLES)
    for path in ASSETS.iterdir():
        assert path.read_text("utf-8").count("\n") < 300, path.name
    script = page.page_script()
    assert not re.search(r"\binnerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)


def luminance(red, green, blue):
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def linear(colour):
    """Return the light (3,) of a colour #rrggbb."""
    value = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


# Oklab as CSS mixes in it: light to the cube of cone answers, their roots to lightness and two hues (Ottosson 2020).
CONES = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]])
OKLAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]])


def test_numbers_in_the_matrix_can_be_read_at_every_depth():
    deep = int(re.search(r"const DEEP = (\d+);", page.page_script())[1])
    style = page.page_style()
    themes = re.findall(r"--sunk: (#\w+).*?--deep: (#\w+); --ink-low: (#\w{6}); --ink-deep: (#\w{6})", style, re.DOTALL)
    assert len(themes) == 4, "light, dark by itself, dark as chosen, print"
    assert "color-mix(in oklab, var(--deep) var(--depth), var(--sunk)); color: var(--ink-low)" in style and ".deep { color: var(--ink-deep); }" in style
    for sunk, shade, low, above in themes:
        full = f"#{''.join(sign * 2 for sign in sunk[1:])}" if len(sunk) == 4 else sunk
        first, last = (OKLAB @ np.cbrt(CONES @ linear(colour)) for colour in (full, shade))
        for depth in range(10, 101):
            mixed = first + (last - first) * depth / 100
            paper = luminance(*np.clip(np.linalg.solve(CONES, np.linalg.solve(OKLAB, mixed) ** 3), 0, 1))
            ink = luminance(*linear(above if depth > deep else low))
            assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5, (shade, depth)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"a": "export const x = 1;", "b": "const x = 2;"}, "declared by both"),
        ({"a": 'import { x } from "./b.js";', "b": "export const x = 1;"}, "imports"),
        ({"a": "const x = 1;", "b": 'import { x } from "./a.js";'}, "imports"),
        ({"a": "export default 1;"}, "cannot be joined"),
        ({"a": 'import { x as y } from "./b.js";'}, "imports"),
        ({"a": 'import x from "./b.js";'}, "cannot be joined"),
        ({"a": 'const x = "</script>";'}, "end or nest"),
    ],
)
def test_modules_that_do_not_fit_are_refused(sources, words):
    with pytest.raises(ValueError, match=words):
        page.join_modules(sources)


def test_joined_modules_are_one_classic_script():
    script = page.join_modules(
        {"a": "export function one() {\n  return 1;\n}", "b": 'import { one } from "./a.js";\n\nexport const two = one() + 1;\nglobalThis.found = two;'}
    )
    assert "import" not in script and "export" not in script
    assert script.count("use strict") == 1


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_scripts_pass_their_own_tests():
    done = subprocess.run(
        ["node", "--test", *map(str, sorted((Path(__file__).parent / "js").glob("*.test.mjs")))], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
