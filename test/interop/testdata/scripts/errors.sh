case "$1" in
  get_size) echo 1M ;;
  pread) case $4 in
     0) echo "ENOSPC no room" >&2; exit 1;;
     512) echo "plain text" >&2; exit 1;;
     1024) kill -9 $$;;
     1536) head -c 100 /dev/zero;;
     2048) exit 2;;
     2560) exit 3;;
     3072) exit 77;;
     3584) echo eperm >&2; exit 1;;
     *) head -c $3 /dev/zero;;
   esac;;
  can_write) ;;
  pwrite) cat > /dev/null; echo EROFS >&2; exit 1;;
  can_zero) ;;
  zero) echo ENOTSUP >&2; exit 1;;
  *) exit 2;;
esac
