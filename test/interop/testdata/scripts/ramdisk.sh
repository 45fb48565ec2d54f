#!/usr/bin/env bash
# A disk in a file of $tmpdir, with everything a disk can do.
f=$tmpdir/disk
case "$1" in
  config) [ "$2" = size ] && echo "$3" > $tmpdir/size || { echo "unknown parameter $2" >&2; exit 1; } ;;
  magic_config_key) echo size ;;
  config_complete) [ -f $tmpdir/size ] || { echo "size= is needed" >&2; exit 1; } ;;
  get_ready) truncate -s "$(cat $tmpdir/size)" $f ;;
  thread_model) echo parallel ;;
  open) echo "handle of $3" ;;
  get_size) stat -Lc %s $f ;;
  pread) dd if=$f iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none ;;
  pwrite) dd of=$f conv=notrunc oflag=seek_bytes seek=$4 status=none ;;
  flush) sync -d $f ;;
  trim|zero) fallocate -p -o $4 -l $3 -n $f ;;
  can_write|can_flush|can_trim|can_zero|can_extents|can_multi_conn) exit 0 ;;
  can_fua) echo emulate ;;
  can_cache) echo native ;;
  cache) : ;;
  block_size) echo 512 4K 1M ;;
  extents) echo "0 64K hole,zero"; echo "64K $(stat -Lc %s $f)" ;;
  export_description) echo "a disk of $2" ;;
  list_exports) printf 'INTERLEAVED\none\nthe first\ntwo\nthe second\n' ;;
  default_export) echo two ;;
  *) exit 2 ;;
esac
