#!/bin/sh
# Stands for the daemon's own program as launcher of the layer converter: the "image" is the archive itself.
# The name of the program it is to run says how it behaves.
case "$2" in
  *'"program":"fails"'*) cat >/dev/null; echo "no such format" >&2; exit 1 ;;
  *'"program":"complains"'*) cat; echo "failed to write" >&2 ;;
  *'"program":"hangs"'*) exec sleep 60 ;;
  *'"program":"unjailed"'*) echo "make namespaces: EPERM" >&2; exit 125 ;;
  *) exec cat ;;
esac
