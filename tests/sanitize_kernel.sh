#!/bin/sh
# Run the kernel's tests on a kernel built with AddressSanitizer and UndefinedBehaviorSanitizer. Needs gcc.
# The package is copied, so the installed kernel stays as it is. Usage: tests/sanitize_kernel.sh [pytest arguments]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-"$root/.venv/bin/python"}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root/src" "$copy/src"
gcc -std=c11 -g -O1 -Wall -Wextra -Werror -ffp-contract=off -fno-omit-frame-pointer \
  -fsanitize=address,undefined -fno-sanitize-recover=undefined -shared -fPIC \
  -o "$copy/src/headrace/features/_kernel.so" "$root/src/headrace/features/kernel.c" -lm
cd "$root"
# Python never frees all it has at exit, so leaks are not looked for; freed and foreign memory is.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  PYTHONDONTWRITEBYTECODE=1 PYTHONMALLOC=malloc PYTHONPATH="$copy/src" \
  "$python" -m pytest -q tests/unit/features/test_windows.py tests/unit/features/test_sketches.py tests/unit/features/test_texts.py \
  tests/properties/test_kernel*.py "$@"
