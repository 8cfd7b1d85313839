"""A receiver with the standard library alone. From the root of the repository:

    WEBHOOK_SECRETS=whsec_… python3 examples/receivers/receiver.py
"""

import base64
import hashlib
import hmac
import json
import os
import re
import sqlite3
import sys
import threading
import time
import traceback
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = [s for s in os.environ.get("WEBHOOK_SECRETS", "").split(",") if s]  # during a rotation: the old and the new one
STORE = os.environ.get("WEBHOOK_STORE", "webhooks.sqlite")
MAX_BODY = 1 << 20  # bytes; walhook sends 256 KiB of payload at most, and little around it
TOLERANCE = 300  # seconds that webhook-timestamp may be off
BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
# work_at is when to work on it; null: done. Keep what is done for 30 days: so long walhook can send it again.
TABLE = "CREATE TABLE IF NOT EXISTS received (delivery_id TEXT PRIMARY KEY, body TEXT, received_at REAL, work_at REAL)"

wake = threading.Event()


def standard_key(secret):
    """The key of Standard Webhooks: strip whsec_ and decode base64. A secret that is not base64 is its own key."""
    text = secret.removeprefix("whsec_")
    return base64.b64decode(text) if text and BASE64.fullmatch(text) else secret.encode()


def verified(headers, body):
    sent = headers.get("webhook-timestamp", "")
    if not re.fullmatch(r"[0-9]{1,12}", sent) or abs(time.time() - int(sent)) > TOLERANCE:
        return False
    signed = f"{headers.get('webhook-id', '')}.{sent}.".encode() + body
    for secret in SECRETS:
        want = b"v1," + base64.b64encode(hmac.digest(standard_key(secret), signed, hashlib.sha256))
        if any(hmac.compare_digest(given.encode(), want) for given in headers.get("webhook-signature", "").split(" ")):
            return True
    return False


def connect():
    return sqlite3.connect(STORE, isolation_level=None)  # no open transactions: each statement is on the disk when it returns


def store(delivery, body):
    """A delivery that is here already changes nothing, whether it has been worked on or not."""
    now = time.time()
    with closing(connect()) as db:
        db.execute("INSERT INTO received VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (delivery, body.decode(), now, now))
    wake.set()


def work(event):
    time.sleep(float(os.environ.get("WORK_SECONDS", "0")))  # yours takes its time here
    print(f"received {event['event']} of {event['organizationId']}: {json.dumps(event['data'])}", flush=True)


def work_off():
    """A crash between work and UPDATE does the work twice: give it the delivery's id, or let it write into this database."""
    db = connect()
    while True:
        due = "SELECT delivery_id, body FROM received WHERE work_at <= ? ORDER BY work_at LIMIT 1"
        row = db.execute(due, (time.time(),)).fetchone()
        if row is None:
            wake.wait(1)
            wake.clear()
            continue
        again = None
        try:
            work(json.loads(row[1]))
        except Exception:
            traceback.print_exc()
            again = time.time() + 60  # meanwhile the others
        db.execute("UPDATE received SET work_at = ? WHERE delivery_id = ?", (again, row[0]))


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    timeout = 60  # seconds of silence that a connection may have

    def do_POST(self):
        size = int(self.headers.get("Content-Length", "-1"))
        if not 0 <= size <= MAX_BODY:
            self.close_connection = True  # the body is not read
            return self.answer(413)
        body = self.rfile.read(size)  # the raw bytes: parsing and printing would change them
        if len(body) < size or not verified(self.headers, body):
            return self.answer(401)
        store(self.headers["webhook-id"], body)  # the delivery's id, which is signed, unlike X-Webhook-Delivery-ID
        self.answer(204)  # an exception in front of it closes the connection, and walhook tries again

    def answer(self, status):
        self.send_response(status)
        if self.close_connection:
            self.send_header("Connection", "close")
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass  # one line for each webhook is enough


if __name__ == "__main__":
    if not SECRETS:
        sys.exit("set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned")
    with closing(connect()) as setup:
        setup.execute(TABLE)
    server = ThreadingHTTPServer(("", int(os.environ.get("PORT") or 3000)), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    work_off()  # an exception ends the process, and does not leave it receiving without working: whoever starts it starts it again
