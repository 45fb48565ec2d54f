#!/bin/sh
# A disk of its own for every client, gone with it.
case "$1" in
  open) d=$(mktemp -d $tmpdir/handle-XXXXXX); truncate -s 256K $d/disk; echo $d ;;
  close) rm -r "$2" ;;
  get_size) echo 512s ;;
  pread) dd if=$2/disk iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none ;;
  pwrite) [ "$5" = fua ] && touch $2/fua; dd of=$2/disk conv=notrunc oflag=seek_bytes seek=$4 status=none ;;
  can_write|can_flush) exit 0 ;;
  can_fua) echo native ;;
  is_rotational) exit 0 ;;
  thread_model) echo serialize-requests ;;
  *) exit 2 ;;
esac
