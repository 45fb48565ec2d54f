#!/bin/sh
# Zeroes fast or not at all; says what it was asked for.
case "$1" in
  get_ready) truncate -s 1M $tmpdir/disk ;;
  get_size) echo 1M ;;
  pread) dd if=$tmpdir/disk iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none ;;
  pwrite) dd of=$tmpdir/disk conv=notrunc oflag=seek_bytes seek=$4 status=none ;;
  can_write|can_zero|can_fast_zero|can_trim) exit 0 ;;
  zero) case "$5" in *fast*) echo EOPNOTSUPP >&2; exit 1 ;; esac; fallocate -z -o $4 -l $3 $tmpdir/disk 2>/dev/null || { echo ENOTSUP >&2; exit 1; } ;;
  trim) fallocate -p -o $4 -l $3 $tmpdir/disk ;;
  *) exit 2 ;;
esac
