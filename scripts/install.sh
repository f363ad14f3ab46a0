#!/usr/bin/env bash
# install.sh EXTRAS: makes .venv and installs necomimi into it, editable, with these extras ("all", "all,dev").
#   TORCH=cpu|cuda   which torch (default: cuda where nvidia-smi answers, else cpu: constraints-cpu.txt holds)
#   TORCH_INDEX=URL  where else to look for torch, e.g. https://download.pytorch.org/whl/cpu (smaller without a GPU)
#   INSTALLER=pip|uv (default: uv, which is faster; pip if uv cannot be had or fails)
set -euo pipefail
cd "$(dirname "$0")/.."
extras=$1 venv=.venv py=.venv/bin/python
say() { printf '%s\n' "necomimi: $*"; }
die() { say "$*" >&2; exit 1; }

find_python() {  # the first interpreter that is new enough
    local p
    for p in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$p"; return; fi
    done
    die "Python 3.11 or newer is needed; ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1 || true). Name another one: make PYTHON=/path/to/python3 ..."
}

make_venv() {
    "$py" -c '' 2>/dev/null && return
    local python version; python=$(find_python); rm -rf "$venv"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "making $venv with Python $version"
    if "$python" -m venv "$venv" >"$venv.log" 2>&1; then rm -f "$venv.log"; return; fi
    rm -rf "$venv"
    if command -v uv >/dev/null; then rm -f "$venv.log"; uv venv --seed --python "$(command -v "$python")" "$venv"; return; fi
    cat "$venv.log" >&2; rm -f "$venv.log"
    die "'$python -m venv' does not work here. On Debian or Ubuntu: sudo apt-get install python3-venv (or python$version-venv); then run make again."
}

setting() { "$py" -m pip config list 2>/dev/null | sed -n "s/^\(:env:\.\|global\.\|install\.\)$1='\(.*\)'$/\2/p" | head -1 | sed 's/\\n/ /g; s/^ *//; s/ *$//; s/  */ /g'; }

find_uv() {  # uv reads none of pip's settings: hand over the ones that say where packages come from
    [ "${INSTALLER:-uv}" = uv ] || return 1
    uv=$(command -v uv) || { uv=$venv/bin/uv; [ -x "$uv" ] || "$py" -m pip install -q uv >/dev/null 2>&1 || return 1; }
    local links index extra cert
    links=$(setting find-links) index=$(setting index-url) extra=$(setting extra-index-url) cert=$(setting cert)
    [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-${links// /,}}"
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [ -z "$extra" ] || export UV_INDEX="${UV_INDEX:-$extra}"
    [ -z "$cert" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$cert}"
    export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} VIRTUAL_ENV=$PWD/$venv
}

install() {  # torch alone first, then the rest; with the CPU constraints where they hold
    "$@" "${constraints[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch &&
    "$@" "${constraints[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -e ".[$extras]"
}

browser() {  # a Chromium for the widget tests: the system's, or Playwright's own
    local b; for b in chromium chromium-browser google-chrome; do command -v "$b" >/dev/null && return; done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing chromium for the widget tests (apt-get)"
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } >.venv/chromium.log 2>&1 && return
    fi
    timeout 300 "$py" -m playwright install chromium >>.venv/chromium.log 2>&1 && return
    say "no Chromium could be installed (see .venv/chromium.log); the widget tests need one: sudo apt-get install chromium, or .venv/bin/playwright install chromium"
}

make_venv
if [ -z "${TORCH:-}" ]; then nvidia-smi >/dev/null 2>&1 && TORCH=cuda || TORCH=cpu; fi
constraints=(); [ "$TORCH" = cuda ] || constraints=(-c constraints-cpu.txt)
say "installing necomimi[$extras] ($TORCH)"
if find_uv && install "$uv" pip install -q; then say "installed with uv"
else install "$py" -m pip install -q --disable-pip-version-check; say "installed with pip"; fi
"$py" scripts/fix_cpu_torchvision.py
case ",$extras," in *,dev,*) browser ;; esac
