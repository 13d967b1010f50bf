"""The server of a review, over real sockets: what it serves, what it saves, and whom it refuses."""

import csv
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data.issue_tables import read_table
from fspmu.errors import InputError
from fspmu.experiments.report_options import Review
from fspmu.experiments.reporting import write_report
from fspmu.experiments.reviewing import review as serve
from fspmu.report import serving
from fspmu.report.reviews import COLUMNS, check_review, corrections_csv, saved_review, write_review
from repaired_digits import copy_of, repaired


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield a server on a copy of a repair."""
    folder = copy_of(repaired(), tmp_path_factory.mktemp("served") / "run")
    with serving.open_review(folder) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.02,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    """Return status, headers and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def review_of(server, count=2, **changes):
    items, classes = server.payload["items"], server.payload["classes"]
    rows = []
    for at in range(count):
        given = items["given"][at]
        row = {"id": items["id"][at], "path": "", "given_label": classes[given], "new_label": classes[given - 1], "decision": "accept"}
        rows.append(row | {"reviewer": "@x", "time": ""})
    if rows:
        rows[0] |= changes
    return {"schema": 1, "key": server.payload["key"], "decisions": rows}


def post(server, review, token=None, revision=None, **headers):
    """Post a review as a page does that knows the given revision, by default what is saved."""
    body = review if isinstance(review, bytes) else json.dumps(review).encode()
    known = served(server)["revision"] if revision is None else revision
    return ask(server, "POST", "/review", body, X_Fspmu_Token=server.token if token is None else token, X_Fspmu_Revision=known, **headers)


def served(server):
    """Return what the page is told of the server."""
    page = ask(server, "GET", f"/?token={server.token}")[2].decode()
    return json.loads(page.partition('<script type="application/json" id="server">')[2].partition("</script>")[0])


def test_the_page_needs_the_token_once(server):
    assert ask(server, "GET", "/")[0] == 403 and ask(server, "GET", "/?token=wrong")[0] == 403
    status, headers, body = ask(server, "GET", f"/?token={server.token}", Sec_Fetch_Site="none")
    assert status == 200 and server.token in body.decode() and body.startswith(b"<!")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"] and headers["Referrer-Policy"] == "no-referrer"
    assert ask(server, "GET", "/", Cookie=cookie.partition(";")[0])[0] == 200
    assert ask(server, "GET", "/", Cookie="fspmu=x; ;=;")[0] == 403


def test_only_pictures_of_the_page_are_served(server, tmp_path):
    (server.folder / "page" / "secret.txt").write_text("x")
    (tmp_path / "far.webp").write_bytes(b"x")
    link = server.folder / "page" / "link.webp"
    link.symlink_to(tmp_path / "far.webp")
    cookie = ask(server, "GET", f"/?token={server.token}")[1]["Set-Cookie"].partition(";")[0]
    status, headers, body = ask(server, "GET", "/page/thumbs-000.webp", Cookie=cookie)
    assert status == 200 and headers["Content-Type"] == "image/webp" and body == (server.folder / "page" / "thumbs-000.webp").read_bytes()
    assert ask(server, "GET", "/page/thumbs-000.webp")[0] == 403
    for path in (
        *("/page/secret.txt", "/page/link.webp", "/page/none.webp", "/record.json", "/page", "/page/", "/page/../record.json"),
        *("/page/%2e%2e/record.json", "/page/..%2frecord.json", "/page/thumbs-000.webp%00", "/page/./thumbs-000.webp", "/page/a/thumbs-000.webp", "/%"),
    ):
        assert ask(server, "GET", path, Cookie=cookie)[0] == 404, path


def test_decisions_are_saved_at_once(server):
    status, _, body = post(server, review_of(server), Origin=f"http://127.0.0.1:{server.server_port}", Sec_Fetch_Site="same-origin")
    assert status == 200 and json.loads(body) == {"revision": "1"}
    saved = json.loads((server.folder / "review.json").read_text())
    assert saved["decisions"] == review_of(server)["decisions"]
    with open(server.folder / "corrections.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == server.payload["items"]["id"][:2] and rows[0]["reviewer"] == "'@x" and tuple(rows[0]) == COLUMNS
    page = ask(server, "GET", f"/?token={server.token}")[2].decode()
    assert json.dumps(saved["decisions"][0]["id"]) in page.partition('"review":')[2]
    assert post(server, review_of(server, 0))[0] == 200 and json.loads((server.folder / "review.json").read_text())["decisions"] == []


def test_of_two_pages_neither_overwrites_the_other(server):
    post(server, review_of(server, 0))
    first, known = review_of(server, 2), served(server)["revision"]
    status, _, body = post(server, first, revision=known)
    assert status == 200 and json.loads(body)["revision"] != known
    second = review_of(server, 1, decision="keep")
    status, _, body = post(server, second, revision=known)
    told = json.loads(body)
    assert status == 409 and told["review"]["decisions"] == first["decisions"] and not server.whole
    assert json.loads((server.folder / "review.json").read_text())["decisions"] == first["decisions"]
    assert post(server, first, revision="")[0] == 200 and served(server)["revision"] == told["revision"], "the same again changes nothing, whoever sends it"
    assert post(server, second, revision=told["revision"])[0] == 200 and server.whole
    assert [row["decision"] for row in json.loads((server.folder / "review.json").read_text())["decisions"]] == ["keep"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "nobody"}, "no image of this page"),
        ({"id": 3}, "no image of this page"),
        ({"given_label": "other"}, "was made for the label 'other'"),
        ({"new_label": "none"}, "no class of this run"),
        ({"new_label": ["a"]}, "no class of this run"),
        ({"decision": "perhaps"}, "is 'perhaps'; known"),
        ({"decision": ["accept"]}, "known"),
        ({"reviewer": "x" * 300}, "up to 200"),
        ({"time": 3}, "no text"),
    ],
)
def test_reviews_that_do_not_fit_are_refused(server, change, words):
    before = (server.folder / "review.json").read_bytes() if (server.folder / "review.json").exists() else None
    status, _, body = post(server, review_of(server, **change))
    assert status == 400 and words in body.decode()
    assert before == ((server.folder / "review.json").read_bytes() if (server.folder / "review.json").exists() else None)


def test_whole_reviews_that_do_not_fit_are_refused(server):
    twice = review_of(server)
    twice["decisions"] *= 2
    for review in (b"{", b"\xff", b"[]", b"[" * 100_000, {"schema": 2, "decisions": []}, review_of(server) | {"key": "another"}, twice):
        assert post(server, review)[0] == 400, review


def test_strangers_are_refused(server):
    good = review_of(server)
    assert post(server, good, token="")[0] == post(server, good, token="wröng".encode().decode("latin-1"))[0] == 403
    cookie = ask(server, "GET", f"/?token={server.token}")[1]["Set-Cookie"].partition(";")[0]
    assert post(server, good, token="", Cookie=cookie)[0] == 403
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}):
        assert post(server, good, **headers)[0] == 403, headers
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", f"127.0.0.1:{server.server_port + 1}"):
        assert ask(server, "GET", f"/?token={server.token}", Host=host)[0] == 421, host
    opened = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask(server, "GET", f"/?token={server.token}", **opened)[0] == 200
    assert ask(server, "GET", f"/?token={server.token}", **opened | {"Sec_Fetch_Dest": "iframe"})[0] == 403


def test_other_methods_and_lengths_are_refused(server):
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "FOO"):
        assert ask(server, method, f"/?token={server.token}")[0] == 501, method
    assert ask(server, "POST", "/elsewhere", b"{}", X_Fspmu_Token=server.token)[0] == 404
    for length in (str(10**9), "-1", "x", str(10**30)):
        with socket.create_connection(("127.0.0.1", server.server_port), 20) as raw:
            head = f"POST /review HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Fspmu-Token: {server.token}\r\n"
            raw.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            assert raw.recv(100).split()[1] in (b"413", b"411"), length


def test_a_second_server_on_the_same_run_is_told_so(server):
    with pytest.raises(InputError, match="being reviewed by another"), serving.open_review(server.folder):
        pass
    with pytest.raises(InputError, match=r"--port \d+ cannot be had"), serving.open_review(repaired(), port=server.server_port):
        pass
    assert not (repaired() / ".review.lock").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(sent, tmp_path):
    folder = copy_of(repaired(), tmp_path / "run")
    command = [sys.executable, "-m", "fspmu", "review", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        try:
            address = done.stdout.readline().split()[-1]
            port = int(address.split(":")[2].partition("/")[0])
            with socket.create_connection(("127.0.0.1", port), 20):
                pass
            os.kill(done.pid, sent)
            out, err = done.communicate(timeout=60)
        finally:
            done.kill()
    assert done.returncode == 0 and "stopped; everything that the page sent is saved" in out and err == ""
    assert not (folder / ".review.lock").exists()


def test_no_token_stands_on_a_command_line_and_the_last_word_is_true(tmp_path, monkeypatch, capsys):
    folder, doors = copy_of(repaired(), tmp_path / "run"), []

    def opened(address):
        door = Path(unquote(urlsplit(address).path))
        doors.append((address, door, door.stat().st_mode & 0o777, door.read_text()))

    def loop(server):
        with pytest.raises(InputError):
            server.save(b"{", "0")

    monkeypatch.setattr(webbrowser, "open", opened)
    monkeypatch.setattr(serving.ReviewServer, "serve_forever", loop)
    serve(Review(run=folder))
    ((address, door, mode, text),) = doors
    out = capsys.readouterr().out
    told = out.splitlines()[0].removeprefix("review: ")
    assert address.startswith("file:") and told.partition("token=")[2] not in address and mode == 0o600 and f"url={told}" in text
    assert not door.exists() and list(folder.glob(".review*")) == []
    assert "could not be saved: export review.json" in out and "everything" not in out


def test_files_that_the_first_decision_would_overwrite_are_looked_at_first(tmp_path):
    folder = copy_of(repaired(), tmp_path / "run")
    with serving.open_review(folder) as server:
        payload, decided = server.payload, review_of(server)
    write_review(folder, decided)
    assert saved_review(folder, payload) == decided
    saved, table = (folder / "review.json").read_text(), (folder / "corrections.csv").read_text()
    other = json.loads(saved)
    other["decisions"][0]["given_label"] = "another"
    for damaged, words in ((saved[:-9], "no JSON"), (saved.replace('"schema": 1', '"schema": 9'), "no schema 1"), (json.dumps(other), "made for the label")):
        (folder / "review.json").write_text(damaged)
        with pytest.raises(InputError, match=rf"review.json would be overwritten .*{words}.*move it out"), serving.open_review(folder):
            pass
        assert (folder / "review.json").read_text() == damaged and write_report(folder).is_file(), "a page is worth more than decisions that nobody can read"
    (folder / "review.json").write_text(saved)
    (folder / "corrections.csv").write_text("\ufeff" + table.replace('"', ""))
    assert saved_review(folder, payload) == decided, "the same in another spelling"
    (folder / "review.json").unlink()
    with pytest.raises(InputError, match=r"corrections.csv would be overwritten and has 2 rows that review.json beside it lacks; move it out"):
        saved_review(folder, payload)
    assert not (folder / ".review.lock").exists()


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5, unique_by=lambda row: row[0]))
@settings(max_examples=60)
def test_what_is_written_is_read_again(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "decisions.csv"
    decisions = [dict(zip(COLUMNS, (name, name, given, new, "accept", given, ""), strict=True)) for name, given, new in rows]
    text = corrections_csv(decisions)
    path.write_bytes(text.encode())
    read = read_table(path)
    assert read.to_dict("records") == decisions
    assert not any(cell[:1] in "=+-@\t\r" for row in csv.reader(text.splitlines(keepends=True)) for cell in row if cell)


def test_names_that_look_like_formulas_go_through():
    page = {"key": "k", "classes": ["=1+1", "b"], "items": {"id": ["-x"], "path": ["@p"], "given": [0]}}
    row = {"id": "-x", "given_label": "=1+1", "new_label": "b", "decision": "accept"}
    found = check_review(json.dumps({"schema": 1, "key": "k", "decisions": [row]}).encode(), page)
    assert found["decisions"][0]["path"] == "@p" and "'=1+1" in corrections_csv(found["decisions"])
