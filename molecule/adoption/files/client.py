"""Write and read on a port until told to stop; print what was acknowledged, lost and refused, as JSON.

echo PASSWORD | python3 client.py PORT      a line more on standard input ends it
"""

import json
import socket
import sys
import threading
import time
from typing import BinaryIO

port, password = int(sys.argv[1]), sys.stdin.readline().strip()
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()


def connect() -> BinaryIO:
    """Return a connection that is logged in; raises OSError."""
    link = socket.create_connection(("127.0.0.1", port), timeout=60)
    file = link.makefile("rwb")
    if ask(file, "AUTH", password) != b"+OK":
        raise OSError("no login")
    return file


def ask(file: BinaryIO, *words: str) -> bytes:
    """Return the reply to a command; raises OSError for an error, or when the connection ends."""
    text = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
    file.write(b"*%d\r\n" % len(words) + text)
    file.flush()
    line = file.readline().rstrip()
    if not line:
        raise OSError("closed")
    if line.startswith(b"$") and line != b"$-1":
        return file.read(int(line[1:]) + 2)[:-2]
    if line.startswith(b"-") and line[:7] != b"-LOADIN":
        raise OSError(line.decode())
    return line


acknowledged, errors, connections, number, longest, last = [], 0, 0, 0, 0.0, time.monotonic()
file = None
print("running", flush=True)
while not stop.is_set():
    try:
        if file is None:
            file = connect()
            connections += 1
        if ask(file, "SADD", "client", str(number)) in (b":1", b":0"):
            acknowledged.append(number)
            number += 1
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
    except OSError:
        errors += 1
        file = None
        time.sleep(0.02)
    time.sleep(0.005)
file = file or connect()
lost = [n for n in acknowledged if ask(file, "SISMEMBER", "client", str(n)) != b":1"]
print(
    json.dumps(
        {
            "acknowledged": acknowledged,
            "lost": lost,
            "errors": errors,
            "reconnected": connections - 1,
            "longest_gap": round(longest, 2),
        }
    )
)
