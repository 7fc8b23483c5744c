"""WebSocket frames (RFC 6455, section 5.2), also such as no library sends."""


def frame(
    opcode: int, data: bytes = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0
) -> bytes:
    """Return a client's frame; its mask changes nothing."""
    size, mask = len(data), 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | reserved | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 65536:
        head += bytes([mask | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([mask | 127]) + size.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + data


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Return the opcodes and contents of a server's frames."""
    found = []
    while data:
        opcode, size, data = data[0] & 15, data[1], data[2:]
        if size > 125:
            width = 2 if size == 126 else 8
            size, data = int.from_bytes(data[:width], "big"), data[width:]
        assert len(data) >= size
        found.append((opcode, data[:size]))
        data = data[size:]
    return found


def close_code(data: bytes) -> int:
    """Return the code with which a server closed, which must be the last that it sent."""
    opcode, content = frames(data)[-1]
    assert opcode == 8
    return int.from_bytes(content[:2], "big")
