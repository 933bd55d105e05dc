#!/bin/sh
# sh environment.sh FOLDER ARGUMENT...
#
# Install into the virtual environment FOLDER with `pip install ARGUMENT...`; make FOLDER first if it is missing.
# A new environment that is not finished, for whatever reason, is removed.  One that was finished before is kept.
# PYTHON may name the interpreter.  Without make or sh, use the commands in README.
set -eu
folder=$1
shift

version='import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))'

# Print the first of the named interpreters that will do, or say why there is none.
choose() {
  seen=""
  for python in "$@"; do
    if found=$("$python" -c "$version" 2>/dev/null); then
      if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python"
        return
      fi
      seen="$seen
  $python is Python $found, but its module venv or ensurepip is missing (Debian, Ubuntu: apt install python$found-venv)"
    elif [ -n "$found" ]; then
      seen="$seen
  $python is Python $found"
    fi
  done
  echo "Python 3.11 or newer is needed, with its module venv.  Looked for: $*${seen:-
  found none}
If it is elsewhere, say so: make solve PYTHON=/path/to/python" >&2
  return 1
}

[ ! -e "$folder/.unfinished" ] || rm -rf "$folder" # left by a set-up that was killed
if [ ! -e "$folder" ]; then
  if [ -n "${PYTHON-}" ]; then
    python=$(choose "$PYTHON")
  else
    python=$(choose python3 python3.14 python3.13 python3.12 python3.11 python)
  fi
  echo "Setting up $folder for Python $("$python" -c "$version").  This takes a few minutes, once." >&2
  trap 'rm -rf "$folder"; echo "The set-up failed; $folder was removed.  The next make starts anew." >&2' EXIT
  trap 'exit 130' HUP INT TERM
  mkdir "$folder"
  : >"$folder/.unfinished"
  "$python" -m venv "$folder"
fi

if ! found=$("$folder/bin/python" -c "$version" 2>/dev/null); then
  echo "Python 3.11 or newer is needed; $folder holds ${found:-none that runs}.  Remove $folder and try again." >&2
  exit 1
fi
"$folder/bin/python" -c 'import pip' 2>/dev/null || "$folder/bin/python" -m ensurepip >/dev/null # uv leaves pip out
"$folder/bin/python" -m pip install -q --disable-pip-version-check "$@"
rm -f "$folder/.unfinished"
trap - EXIT
