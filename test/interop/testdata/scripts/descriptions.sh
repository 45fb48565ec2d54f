#!/bin/sh
case "$1" in
  list_exports) printf 'NAMES+DESCRIPTIONS\na\nb\nfor a\nfor b\n' ;;
  default_export) echo b ;;
  open) echo "$2/$3/$4" ;;
  export_description) echo "readonly/name/tls: $2" ;;
  get_size) echo 64K ;;
  pread) printf "%$3s" "$2" ;;
  thread_model) echo SERIALIZE_CONNECTIONS ;;
  *) exit 2 ;;
esac
