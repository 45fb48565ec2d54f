#!/bin/sh
# Every file of a directory is an export, read-only; the handle is its path.
case "$1" in
  config) [ "$2" = dir ] || { echo "EINVAL no parameter $2" >&2; exit 1; }; ln -s "$(realpath "$3")" $tmpdir/dir ;;
  list_exports) echo NAMES; ls $tmpdir/dir ;;
  default_export) ls $tmpdir/dir | head -n 1 ;;
  open) case "$3" in */*|.*) echo "EPERM no such name" >&2; exit 1 ;; esac
        [ -f "$tmpdir/dir/$3" ] || { echo "there is no export $3" >&2; exit 1; }
        echo "$tmpdir/dir/$3" ;;
  get_size) stat -Lc %s "$2" ;;
  pread) dd if="$2" iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none ;;
  can_extents) exit 0 ;;
  extents) echo "$4 $3" ;;
  *) exit 2 ;;
esac
