"""A receiver with the standard library alone. From the root of the repository:

    WEBHOOK_SECRETS=whsec_… python3 examples/receivers/receiver.py
"""

import base64
import hashlib
import hmac
import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = [s for s in os.environ.get("WEBHOOK_SECRETS", "").split(",") if s]  # during a rotation: the old and the new one
MAX_BODY = 1 << 20  # bytes; walhook sends 256 KiB of payload at most, and little around it
TOLERANCE = 300  # seconds that webhook-timestamp may be off
BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")

seen = set()  # of delivery ids; in real life a unique key in your database
seen_lock = threading.Lock()


def standard_key(secret):
    """The key of Standard Webhooks: strip whsec_ and decode base64. A secret that is not base64 is its own key."""
    text = secret.removeprefix("whsec_")
    return base64.b64decode(text) if text and BASE64.fullmatch(text) else secret.encode()


def equal(a, b):
    return hmac.compare_digest(a.encode(), b.encode())


def verified(headers, body):
    sent = headers.get("webhook-timestamp", "")
    if not re.fullmatch(r"[0-9]{1,12}", sent) or abs(time.time() - int(sent)) > TOLERANCE:
        return False
    signed = f"{headers.get('webhook-id', '')}.{sent}.".encode() + body
    for secret in SECRETS:
        want = "v1," + base64.b64encode(hmac.digest(standard_key(secret), signed, hashlib.sha256)).decode()
        if any(equal(given, want) for given in headers.get("webhook-signature", "").split(" ")):
            return True
    return False


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
        event = json.loads(body)
        delivery = self.headers.get("X-Webhook-Delivery-ID")
        with seen_lock:
            if delivery not in seen:
                seen.add(delivery)
                print(f"received {event['event']} of {event['organizationId']}: {json.dumps(event['data'])}", flush=True)
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass  # one line for each webhook is enough


if __name__ == "__main__":
    if not SECRETS:
        sys.exit("set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned")
    ThreadingHTTPServer(("", int(os.environ.get("PORT") or 3000)), Receiver).serve_forever()
