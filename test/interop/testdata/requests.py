# Does one of everything to the export at URI, and prints what comes of it.
import os, sys, nbd

h = nbd.NBD()
h.add_meta_context("base:allocation")
try:
    h.connect_uri(sys.argv[1])
except nbd.Error as e:
    print("refused")
    sys.exit(0)
print("size", h.get_size())
for name in "is_read_only can_flush can_fua can_trim can_zero can_fast_zero is_rotational can_cache can_multi_conn".split():
    # A read-only export may always be used over several connections.
    if name != "can_multi_conn" or not h.is_read_only():
        print(name, getattr(h, name)())
sizes = [h.get_block_size(i) for i in range(3)]
print("block sizes", sizes if sizes not in ([0, 0, 0], [1, 4096, 33554432]) else "none")
for name in "get_export_description", "get_canonical_export_name":
    try:
        print(name, getattr(h, name)())
    except nbd.Error:
        print(name, "none")

# What a server does not offer libnbd would not ask for.
def do(name, f, *args):
    try:
        r = f(*args)
        print(name, bytes(r[:32]) if isinstance(r, (bytes, bytearray)) else r)
    except nbd.Error as e:
        print(name, e.errno)

for offset in range(0, 4096, 512):
    do("pread %d" % offset, h.pread, 512, offset)
do("pwrite", h.pwrite, b"x" * 512, 4096)
do("pwrite fua", h.pwrite, b"y" * 512, 4608, nbd.CMD_FLAG_FUA)
do("pread", h.pread, 16, 4600)
do("flush", h.flush)
do("trim", h.trim, 4096, 8192)
do("zero", h.zero, 256, 4352)
do("zero, no hole", h.zero, 256, 4352, nbd.CMD_FLAG_NO_HOLE)
do("zero, fast", h.zero, 4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
do("pread", h.pread, 16, 4344)
do("cache", h.cache, 4096, 0)
extents = []
def extent(context, offset, entries, error):
    # There may be more than what was asked for.
    for length, flags in zip(entries[::2], entries[1::2]):
        length = min(length, 65536 - offset)
        if length > 0:
            extents.append((offset, length, flags))
        offset += length
if "NO_EXTENTS" in os.environ:
    sys.exit(0)
do("block status", h.block_status, 65536, 0, extent)
print(extents)
h.shutdown()
