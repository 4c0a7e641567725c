#!/bin/sh
# requirements/install.sh PYTHON ARGUMENTS...: `pip install ARGUMENTS` in the environment of PYTHON.
#
# uv comes first, because it takes seconds where pip takes minutes. pip follows when uv cannot be fetched or fails.
# torch's CPU wheel (2.13.0+cpu) is not on PyPI, but the sources that are configured here may have it. Only when they
# do not, that one wheel is downloaded from PyTorch's index.
# Every error is shown, and the last one decides the exit status.
set -eu
torch_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
here=$(dirname "$0")
python=$1
shift
scratch=$(mktemp -d)
log=$scratch/log
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

# uv does not read pip's settings.
pip_setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
PIP_FIND_LINKS=${PIP_FIND_LINKS-$(pip_setting find-links)}
UV_FIND_LINKS=${UV_FIND_LINKS-$(echo $PIP_FIND_LINKS | tr " " ,)}
UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX-${PIP_INDEX_URL-$(pip_setting index-url)}}
export PIP_FIND_LINKS UV_FIND_LINKS UV_DEFAULT_INDEX

uv() { "$python" -m uv pip install --quiet --python "$python" "$@"; }
pip() { "$python" -m pip install --quiet --no-compile "$@"; } # compiling all of every package takes pip minutes
say() { echo "install: $*" >&2; }

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
    grep -Eq '(no version of|No matching distribution found for) torch==[0-9.]+\+cpu|torch==[0-9.]+\+cpu has no wheels' "$log"
}

# Both tools look into the folder of the wheel from then on.
torch_comes_from_pytorch() {
    wheel=$(grep -Eo 'torch==[0-9.]+\+cpu' "$log" | head -n 1)
    say "the configured sources do not have $wheel for this Python; downloading it from $torch_index"
    attempt "the download of $wheel" "$python" -m pip download --quiet --no-deps --dest "$scratch" \
        --index-url "$torch_index" "$wheel" || return
    PIP_FIND_LINKS="$PIP_FIND_LINKS $scratch"
    UV_FIND_LINKS="$UV_FIND_LINKS,$scratch"
}

tools="uv pip"
"$python" -m uv --version >/dev/null 2>&1 ||
    attempt "fetching uv" pip --constraint "$here/cpu.txt" "${UV_PACKAGE:-uv}" || tools=pip

for tool in $tools; do
    [ $tool = uv ] || say "pip installs the same versions; this may take minutes"
    attempt $tool $tool "$@" && exit
    status=$?
    torch_is_missing && [ -z "${wheel-}" ] && torch_comes_from_pytorch || continue
    attempt $tool $tool "$@" && exit
    status=$?
done
say "not installed; every attempt and its error are above; run the same command again once the cause is gone"
exit $status
