#!/bin/sh
# requirements/install.sh PYTHON ARGUMENTS...: `pip install ARGUMENTS` in the environment of PYTHON.
#
# uv comes first, because it takes seconds where pip takes minutes. pip follows when uv cannot be fetched or fails.
# torch's CPU wheel (2.13.0+cpu) is not on PyPI, but the sources that are configured here may have it. So PyTorch's own
# index is asked only after they turn out not to have it.
# Every error is shown, and the last one decides the exit status.
set -eu
torch_index=https://download.pytorch.org/whl/cpu
here=$(dirname "$0")
python=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM

say() { echo "install: $*" >&2; }

# uv does not read pip's settings.
pip_setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
UV_FIND_LINKS=${UV_FIND_LINKS-$(echo ${PIP_FIND_LINKS-$(pip_setting find-links)} | tr " " ,)}
UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX-${PIP_INDEX_URL-$(pip_setting index-url)}}
export UV_FIND_LINKS UV_DEFAULT_INDEX

uv() { "$python" -m uv pip install --quiet --python "$python" "$@"; }
pip() { "$python" -m pip install --quiet "$@"; }

attempt() { # WHAT COMMAND...
    what=$1
    shift
    "$@" >"$log" 2>&1 && return
    status=$?
    say "$what failed:"
    cat "$log" >&2
    return $status
}

torch_is_missing() {
    grep -Eq '(no version of|No matching distribution found for) torch==|torch==[^ ]+ has no wheels' "$log"
}

tools="uv pip"
"$python" -m uv --version >/dev/null 2>&1 ||
    attempt "fetching uv" pip --constraint "$here/cpu.txt" "${UV_PACKAGE:-uv}" || tools=pip

for tool in $tools; do
    [ $tool = uv ] || say "pip installs the same versions; this may take minutes"
    attempt "$tool" $tool "$@" && exit
    status=$?
    torch_is_missing || continue
    say "the configured sources have no CPU build of torch for this Python; asking $torch_index as well"
    strategy=
    [ $tool = pip ] || strategy=--index-strategy=unsafe-best-match
    attempt "$tool with PyTorch's index" $tool "$@" --extra-index-url $torch_index $strategy && exit
    status=$?
done
say "$tools: all of them failed, the errors are above; make the same call again once the cause is gone"
exit $status
