#!/usr/bin/env bash
# Makes .venv fit the project; returns at once when it already does. `make` calls it before every target.
#   INTERPRETER   the Python to build .venv with (default: the first one >= 3.11 that is found)
#   TORCH_INDEX   a package index to take torch from, e.g. one that holds CPU-only builds
set -euo pipefail
cd "$(dirname "$0")/.."

PY=.venv/bin/python
STAMP=.venv/.stamp
GL_PACKAGES=(libegl1 libgl1-mesa-dri libopengl0)

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }
fingerprint() { cat setup.cfg pyproject.toml constraints.txt scripts/setup.sh | cksum; }
fits() { [ "$(cat $STAMP 2>/dev/null)" = "$(fingerprint)" ] && $PY -c '' 2>/dev/null; }
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Prints what runs a command as root without asking anybody ("env" for root itself); fails where nothing can.
root_prefix() {
    if [ "$(id -u)" = 0 ]; then echo env; elif sudo -n true 2>/dev/null; then echo sudo -n; else return 1; fi
}

# Installs packages where apt is there and may be used; its output is shown only when it fails.
apt_install() {
    local prefix log
    command -v apt-get >/dev/null && prefix=$(root_prefix) || return 1
    say "installing with apt: $*"
    log=$(mktemp)
    if { $prefix apt-get update -qq; $prefix env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"; } >"$log" 2>&1 </dev/null; then
        rm -f "$log"
    else
        tail -n 5 "$log" >&2; rm -f "$log"; return 1
    fi
}

find_python() {
    local name
    for name in ${INTERPRETER:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if recent "$name"; then command -v "$name"; return; fi
    done
    if [ -n "${INTERPRETER:-}" ]; then die "INTERPRETER=$INTERPRETER is not a Python >= 3.11"; fi
    die "no Python >= 3.11 found; install one (Debian 12+, Ubuntu 24.04+: sudo apt-get install python3 python3-venv)" \
        "or name it: make setup INTERPRETER=/path/to/python3.11"
}

# A usable .venv has a recent Python and pip; anything else (interrupted, moved, other version) is built anew.
make_venv() {
    local python version
    if recent $PY && $PY -m pip --version >/dev/null 2>&1; then return; fi
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        apt_install "python$version-venv" || die "Python $version has no working venv module; type:" \
            "sudo apt-get install python3-venv   (or python$version-venv), then run make again"
    fi
    say "creating .venv with Python $version ($python)"
    rm -rf .venv
    "$python" -m venv .venv || die "$python -m venv .venv failed"
}

install_project() {
    if [ -n "${TORCH_INDEX:-}" ]; then
        say "installing torch from TORCH_INDEX"
        $PY -m pip install -qq --no-deps --index-url "$TORCH_INDEX" "$(grep -i '^torch==' constraints.txt)" ||
            die "torch could not be installed from TORCH_INDEX=$TORCH_INDEX"
    fi
    say "installing the project and what it needs (minutes the first time, most of them for torch)"
    # The warp renderer is always there: training must not stop where OpenGL is missing, and the tests compare the two;
    # so are TQC, small as it is, Meta-World, whose scenes the benchmark and the tests look at, the hand, ray and rerun.
    $PY -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[test,warp,contrib,metaworld,hand,meshes,cluster,view]" ||
        die "pip could not install the project: see its message above, then run make again"
    # PyBullet, of which only the motion clips are used, has packages for Python 3.11; elsewhere it would be compiled.
    $PY -m pip install -qq --disable-pip-version-check -c constraints.txt --only-binary pybullet -e ".[human]" 2>/dev/null ||
        say "PyBullet has no ready-made package for this Python: make geometry-aware needs Python 3.11," \
            "or pip install 'kp3d_rl[human]' and a compiler"
}

opengl_works() { $PY -c "from envs.renderers import gl_info; gl_info()" >/dev/null 2>&1; }

provide_opengl() {
    if opengl_works; then return; fi
    if apt_install "${GL_PACKAGES[@]}" && opengl_works; then return; fi
    say "no working OpenGL: cameras are rendered by MuJoCo Warp, which needs none." \
        "For OpenGL, type: sudo apt-get install ${GL_PACKAGES[*]}"
}

main() {
    if fits; then return; fi
    # Two targets started together set up once: the second waits here.
    if command -v flock >/dev/null; then exec 9<scripts/setup.sh; flock 9; if fits; then return; fi; fi
    rm -f $STAMP
    make_venv
    install_project
    provide_opengl
    fingerprint >$STAMP
    say "ready"
}

main
