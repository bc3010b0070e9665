#!/usr/bin/env python3
"""Takes the protobuf schema out of an Envoy binary.

Envoy carries the descriptor of every .proto file that is linked into it, options included. This finds them all and
writes them, sorted by file name, as one FileDescriptorSet. See README.md beside this file.

    extract.py path/to/envoy > envoy-1.40.binpb
"""

import mmap
import re
import sys

from google.protobuf import descriptor_pb2

# A FileDescriptorProto starts with its name: field 1, one byte of length, the name; then the package or a dependency.
START = re.compile(rb"\n([\x01-\x7f])([A-Za-z0-9_/.\-]+\.proto)(?=[\x12\x1a\x22])", re.S)
# The fields of FileDescriptorProto that protoc writes.
FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14}
LONGEST_FIELD = 5_000_000


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def end_of_descriptor(data, start):
    """Where the records stop looking like those of a FileDescriptorProto: nothing says how long it is."""
    at = start
    while True:
        record = at
        try:
            tag, at = varint(data, at)
            number, wire_type = tag >> 3, tag & 7
            if number not in FIELDS or wire_type not in (0, 2) or (number == 1 and record != start):
                return record
            value, at = varint(data, at)
        except IndexError:
            return record
        if wire_type == 2:
            if value > LONGEST_FIELD:
                return record
            at += value


def descriptors(data):
    """Every descriptor by file name; the first of a name counts."""
    found = {}
    for match in START.finditer(data):
        name = match[2].decode()
        if match[1][0] != len(name) or name in found:
            continue
        raw = data[match.start() : end_of_descriptor(data, match.start())]
        try:
            descriptor_pb2.FileDescriptorProto.FromString(raw)
        except Exception:  # Bytes that only look like a descriptor.
            continue
        found[name] = raw
    return found


def main():
    with open(sys.argv[1], "rb") as binary:
        found = descriptors(mmap.mmap(binary.fileno(), 0, access=mmap.ACCESS_READ))
    schema = descriptor_pb2.FileDescriptorSet()
    for name in sorted(found):
        schema.file.add().ParseFromString(found[name])
    missing = {needed for file in schema.file for needed in file.dependency} - set(found)
    if missing:
        sys.exit(f"not in the binary, but needed: {', '.join(sorted(missing))}")
    sys.stdout.buffer.write(schema.SerializeToString(deterministic=True))
    print(f"{len(found)} files", file=sys.stderr)


if __name__ == "__main__":
    main()
