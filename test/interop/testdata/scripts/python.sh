#!/usr/bin/python3
# Not a shell script at all.
import os, sys
method, args = sys.argv[1], sys.argv[2:]
path = os.environ["tmpdir"] + "/disk"
if method == "get_ready":
    open(path, "wb").write(bytes(range(256)) * 1024)
elif method == "get_size":
    print(os.path.getsize(path))
elif method == "pread":
    with open(path, "rb") as f:
        f.seek(int(args[2]))
        sys.stdout.buffer.write(f.read(int(args[1])))
elif method == "can_cache":
    print("emulate")
elif method == "can_multi_conn":
    sys.exit(3)
elif method in ("can_write", "can_zero"):
    sys.exit(3)
else:
    sys.exit(2)
