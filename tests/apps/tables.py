"""Prints the names of all tables of nftables in this network namespace, one a line; makes one first, if it is given a name."""
import socket
import struct
import sys

INET, SUBSYSTEM = 1, 10
NEW_TABLE, GET_TABLE = SUBSYSTEM << 8, SUBSYSTEM << 8 | 1


def message(kind, flags, family, subsystem, attributes=b""):
    body = struct.pack("=BB", family, 0) + struct.pack(">H", subsystem) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def messages():
    """The next ones: kinds and contents."""
    rest = netlink.recv(1 << 16)
    while rest:
        length, kind = struct.unpack("=IH", rest[:6])
        yield kind, rest[16:length]
        rest = rest[length + -length % 4:]


netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
netlink.bind((0, 0))
netlink.settimeout(5)
if len(sys.argv) > 1:
    name = sys.argv[1].encode() + b"\0"
    name = struct.pack("=HH", 4 + len(name), 1) + name + bytes(-len(name) % 4)
    new = message(NEW_TABLE, 0x405, INET, 0, name)
    netlink.send(message(0x10, 1, 0, SUBSYSTEM) + new + message(0x11, 1, 0, SUBSYSTEM))
    [(_, answer)] = messages()
    assert answer[:4] == bytes(4), answer
netlink.send(message(GET_TABLE, 0x301, INET, 0))
done = False
while not done:
    for kind, contents in messages():
        if kind == NEW_TABLE:
            (length,) = struct.unpack("=H", contents[4:6])
            print(contents[8:4 + length - 1].decode())
        done = done or kind == 3
