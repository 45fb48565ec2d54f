#!/bin/sh
# Errors with and without names, in every method that may fail.
case "$1" in
  get_size) echo 1M ;;
  can_write|can_flush|can_trim|can_zero|can_extents) exit 0 ;;
  can_cache) echo native ;;
  pread) echo "EIOX is no name" >&2; exit 1 ;;
  pwrite) cat >/dev/null; echo "edquot: no" >&2; exit 16 ;;
  flush) echo "EDQUOT over quota" >&2; exit 255 ;;
  trim) echo "efbig" >&2; exit 1 ;;
  zero) echo "EINVAL" >&2; exit 1 ;;
  extents) echo "0 64K nonsense" ;;
  cache) echo "ENOMEM" >&2; exit 9 ;;
  *) exit 2 ;;
esac
