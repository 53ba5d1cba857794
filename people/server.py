"""The page's server: one page, tasks out, what people did in. Python's http.server checks little;
what is checked here is who asks (Host, Origin, Sec-Fetch-Site, a token), how much, and how long.
"""
import errno
import itertools
import json
import os
import re
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from interop.rows import read_json
from people.desk import FLAGS, Refused
from plumbing import results

PATIENCE = 15           # seconds for which a request may be silent
LONG = 60               # seconds that a body may take
LARGEST = 2**20         # bytes of a body
TOKENS = "tokens.json"
CSP = ("default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
       "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
       "frame-ancestors 'none'")
PAGE = os.path.join(os.path.dirname(__file__), "page.html")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def tokens_of(folder, labelers):
    """{token: labeler}, of each what their link holds; the same after a restart. Raises
    ValueError."""
    path = os.path.join(folder, TOKENS)
    known = read_json(path) if os.path.exists(path) else {}
    good = isinstance(known, dict) and all(isinstance(x, str) and len(x) > 15
                                           for x in known.values())
    if not good or len(set(known.values())) < len(known):
        raise ValueError(f"{path} does not hold the tokens of labelers' links: remove it, and new "
                         f"ones are made")
    known |= {name: secrets.token_urlsafe(16) for name in labelers if name not in known}
    results.replace_file(path, lambda f: json.dump(known, f))
    os.chmod(path, 0o600)
    return {known[name]: name for name in labelers}


class Server(ThreadingHTTPServer):
    """Serves the page to the labelers of `tokens`; a thread for each request."""
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, desk, tokens, about, host, port, talk=None):
        """
        about   what the page shows on every task: {"instructions": ...}
        talk    what was sent -> the text of an answer again and again, as it grows
        Raises ValueError if the port is taken.
        """
        self.desk, self.tokens, self.talk = desk, tokens, talk
        self.about = {"flags": FLAGS, **about}
        try:
            super().__init__((host, port), Handler)
        except OSError as e:
            free = "; choose another port, or 0 for any that is free"
            raise ValueError(f"--host {host} --port {port}: {e.strerror}"
                             f"{free if e.errno == errno.EADDRINUSE else ''}") from e

    def handle_error(self, request, client):
        """A client that goes away is no error; anything else is shown by the base class."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client)


class Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE

    def do_GET(self):
        self.answered(self.get)

    def do_POST(self):
        self.answered(self.post)

    def answered(self, method):
        """Every request ends in an answer, but where nobody listens any more."""
        try:
            self.check_sender()
            method()
        except Refused as e:
            status, why = e.args
            self.reply(status, {"error": why})
        except (ConnectionError, TimeoutError):
            pass                                             # who asked is gone
        except OSError as e:
            self.reply(507, {"error": f"not saved: {e.strerror}"})
        except Exception:
            self.reply(500, {"error": "the server has an error, which its terminal shows"})
            raise

    def check_sender(self):
        """A page of another site that a labeler has open is no sender. Raises Refused."""
        own, (host, *_) = self.headers.get("Host", ""), self.server.server_address
        # the port may be another one, forwarded by ssh
        if host in LOOPBACK and re.sub(r":\d+$", "", own) not in LOOPBACK:
            raise Refused(421, "this is another host")
        # whoever follows a link in a mail comes from another site; the page itself holds nothing
        site = self.headers.get("Sec-Fetch-Site", "none")
        if self.path != "/" and site not in ("none", "same-origin"):
            raise Refused(403, "another site asks")
        if self.headers.get("Origin", f"http://{own}") != f"http://{own}":
            raise Refused(403, "another site asks")

    def labeler(self):
        """Whose token came with the request. Raises Refused."""
        sent = self.headers.get("X-Token", "")
        for token, name in self.server.tokens.items():
            if secrets.compare_digest(token.encode(), sent.encode()):
                return name
        raise Refused(403, "open the link that page.py printed")

    def get(self):
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            with open(PAGE, encoding="utf-8") as f:
                html = f.read().replace("NONCE", nonce)
            self.begin(200, "text/html; charset=utf-8", nonce)
            self.wfile.write(html.encode())
        elif self.path == "/task":
            self.reply(200, self.server.about | self.server.desk.next_task(self.labeler()))
        else:
            raise Refused(404, "there is nothing here")

    def post(self):
        labeler, sent = self.labeler(), self.body()
        if self.path == "/submit":
            self.reply(200, self.server.desk.submit(labeler, sent))
        elif self.path == "/undo":
            self.reply(200, self.server.desk.undo(labeler, sent))
        elif self.path == "/chat" and self.server.talk:
            texts = self.server.talk(sent)
            self.begin(200, "application/x-ndjson")
            # what ends without "done" was cut off
            for found in itertools.chain(({"text": text} for text in texts), [{"done": True}]):
                self.wfile.write((json.dumps(found) + "\n").encode())
                self.wfile.flush()
        else:
            raise Refused(404, "there is nothing here")

    def body(self):
        """What was sent, a JSON object. Raises Refused."""
        if self.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            raise Refused(415, "send JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "say how long it is")
        if len(length) > 9 or int(length) > LARGEST:
            raise Refused(413, f"send at most {LARGEST:,} bytes")
        raw, until = b"", time.monotonic() + LONG
        while len(raw) < int(length):
            piece = self.rfile.read1(int(length) - len(raw))
            if not piece or time.monotonic() > until:
                raise Refused(408, "it did not arrive")
            raw += piece
        try:
            sent = json.loads(raw)
            json.dumps(sent, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise Refused(400, "half a character cannot be kept") from e
        except (ValueError, RecursionError) as e:
            raise Refused(400, "that is no JSON") from e
        if not isinstance(sent, dict):
            raise Refused(400, "send a JSON object")
        return sent

    def begin(self, status, kind, nonce=""):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", CSP.format(nonce=nonce))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def reply(self, status, found):
        self.begin(status, "application/json")
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *args):
        """Nothing: a log of requests would say who works when."""
