#!/bin/sh
case "$1" in
  get_size) echo lots ;;
  pread) head -c $3 /dev/zero ;;
  *) exit 2 ;;
esac
