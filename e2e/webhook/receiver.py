"""Takes webhooks as the Standard Webhooks specification has them, with nothing but Python's own hmac: what is not signed with
the secret, or is too old, is answered with 401; what is new with 204; what was seen before with 200.

    receiver.py PORT SECRET
"""
import base64
import hashlib
import hmac
import http.server
import json
import sys
import time

port, secret = int(sys.argv[1]), sys.argv[2].encode()
seen = set()


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        key, stamp = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        signed = f"{key}.{stamp}.".encode() + body
        expected = "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
        fresh = abs(time.time() - int(stamp)) < 300
        if not hmac.compare_digest(expected, self.headers["webhook-signature"]) or not fresh:
            status = 401
        elif json.loads(body)["id"] != key:
            status = 400
        else:
            status = 200 if key in seen else 204
            seen.add(key)
        print(status, key, flush=True)
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", port), Receiver).serve_forever()
