# No hashbang: the shell runs it. It refuses clients before they have said a word.
case "$1" in
  preconnect) echo "ENOMEM not today" >&2; exit 1 ;;
  get_size) echo 1M ;;
  pread) head -c $3 /dev/zero ;;
  *) exit 2 ;;
esac
