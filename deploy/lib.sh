# shellcheck shell=bash
# The set-up that deploy/demo, deploy/test and deploy/chroot-test share: what this machine lacks comes by apt,
# the Python side goes into .venv. Sourced, with `set -euo pipefail` on, by a script that has set ROOT.
#
# Speaks on standard error, one line a step; standard output belongs to the script that sources it.
# The full output of every step goes to LOG. Nothing here needs or starts a service.
#
#   KEXEC_FLEET_PYTHON   the interpreter for .venv (default: the first on PATH that serves)

VENV=$ROOT/.venv
ME=deploy/$(basename "$0")
LOG=$ROOT/build/log/$(basename "$0").log
PIP_TRIES=3
MISSING=()
# Administrators' tools (mke2fs, sshd) are not on a plain user's PATH in Debian.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s: %s\n' "$ME" "$*" >&2; }

# Exit code 2 is the CLI's for "something this machine lacks".
die() {
  say "$*"
  exit 2
}

# logged WHAT COMMAND...: one line on the screen, the output in the log, the log's tail when it fails.
logged() {
  local what=$1 from code=0
  shift
  say "$what"
  printf '\n== %s: %s\n' "$what" "$*" >>"$LOG"
  from=$(wc -l <"$LOG")
  "$@" >>"$LOG" 2>&1 </dev/null || code=$?
  [ "$code" -eq 0 ] && return 0
  say "FAILED with exit code $code: $what; the last lines of $LOG:"
  tail -n +"$((from + 1))" "$LOG" | tail -n 25 | sed 's/^/    /' >&2
  return "$code"
}

# --- what the machine needs -----------------------------------------------------------------------------

have() { command -v "$1"; }

# QEMU with its firmware and network ROM, seen at work: a binary without SeaBIOS would only fail later.
qemu_runs() {
  echo quit | timeout 60 qemu-system-x86_64 -machine pc -accel tcg -m 64 -nodefaults -display none \
    -device virtio-net-pci -S -monitor stdio
}

# The folder of keys may hold .gpg, .pgp or .asc files, by release.
keyring_has() { compgen -G "/usr/share/keyrings/debian-archive-$1-automatic.*"; }

# Debian signs a suite with the keys of two releases: bookworm's still open trixie.
keyring_serves() {
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] && { keyring_has trixie || keyring_has bookworm; }
}

# need WHY PACKAGES CHECK...: notes what to install when the check fails. Checks look for the thing, not the
# package: what came another way serves too.
need() {
  local why=$1 packages=$2
  shift 2
  "$@" >/dev/null 2>&1 && return 0
  say "missing: $packages ($why)"
  # shellcheck disable=SC2206 # one word a package
  MISSING+=($packages)
}

check_packages() {
  MISSING=()
  need "Python 3.11 or newer with venv, for .venv" "python3 python3-venv" python_found
  need "lets pip know whom it talks to" ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
  need "runs the lab's virtual machines" "qemu-system-x86 seabios ipxe-qemu" qemu_runs
  need "makes the virtual machines' disks" qemu-utils have qemu-img
  need "builds the lab's Debian" mmdebstrap have mmdebstrap
  need "fills the lab's disk image" e2fsprogs have mke2fs
  need "verifies the packages the lab downloads" debian-archive-keyring keyring_serves
  need "makes the lab's keys and opens its shells" openssh-client have ssh-keygen
  if [ "$(id -u)" -ne 0 ]; then
    need "keeps owners in the lab's disk image without root" fakeroot have fakeroot
    need "lets mmdebstrap work without root" uidmap have newuidmap
  fi
  case $1 in
  test) check_test_packages ;;
  esac
}

check_test_packages() {
  need "tests: lists the project's files" git have git
  need "tests: a real SSH server" openssh-server have sshd
  # redis-tools carries the server's program without the service; link_redis gives it its name.
  need "tests: a real Redis" redis-tools redis_found
  need "tests: reads the shell scripts" shellcheck have shellcheck
  need "tests: a second reader of the lab's initramfs" cpio have cpio
  need "tests: the lab's disk image without root" fakeroot have fakeroot
  need "tests: the boot loader's own tools" grub2-common have grub-set-default
}

install_packages() {
  local kind=$1
  check_packages "$kind"
  if [ ${#MISSING[@]} -eq 0 ]; then
    say "packages: nothing is missing"
    return
  fi
  have apt-get >/dev/null || die "missing: ${MISSING[*]}; there is no apt-get here: install them by hand"
  become_root
  services_stay_off
  apt_install "${MISSING[@]}" || die "could not install ${MISSING[*]} (on Ubuntu the component 'universe' is needed)"
  services_stay_off_done
  check_packages "$kind"
  [ ${#MISSING[@]} -eq 0 ] || {
    tail -n 10 "$LOG" | sed 's/^/    /' >&2
    die "still missing after the installation: ${MISSING[*]}; see $LOG"
  }
}

note_keyring() {
  keyring_has trixie >/dev/null ||
    say "notice: the installed debian-archive-keyring does not know Debian 13; its keys for Debian 12 still open" \
      "the archive, until Debian stops signing with them"
}

SUDO=()

become_root() {
  [ "$(id -u)" -eq 0 ] && return
  local by_hand="run this as root, then start again: apt-get install ${MISSING[*]}"
  have sudo >/dev/null || die "root or sudo is needed to install packages; $by_hand"
  if sudo -n true 2>/dev/null; then
    SUDO=(sudo -n)
  elif [ -t 0 ] && [ "${CI:-}" != true ]; then
    say "sudo may ask for your password, to install: ${MISSING[*]}"
    SUDO=(sudo)
    sudo -v || die "sudo refused; $by_hand"
  else
    die "sudo asks for a password and nobody is there to type it; $by_hand"
  fi
}

as_root() { "${SUDO[@]}" "$@"; }

apt_quiet() {
  as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -q -o DPkg::Lock::Timeout=600 \
    -o Acquire::Retries=3 "$@"
}

apt_install() {
  logged "apt: reading the package index" apt_quiet update ||
    say "the package index could not be read whole; trying with what is there"
  logged "apt: installing $*" apt_quiet install -y --no-install-recommends "$@"
}

# --- no service may start, now or at the next boot ------------------------------------------------------

POLICY=/usr/sbin/policy-rc.d
POLICY_MARK="left by kexec-fleet's set-up: may be deleted"
SSH_WAS_THERE=

# Debian's packages ask policy-rc.d before they start a service. One that is there already is not touched.
services_stay_off() {
  have sshd >/dev/null && SSH_WAS_THERE=yes
  trap services_stay_off_done EXIT
  if [ -e "$POLICY" ] && ! grep -qs "$POLICY_MARK" "$POLICY"; then
    return
  fi
  printf '#!/bin/sh\n# %s\nexit 101\n' "$POLICY_MARK" | as_root tee "$POLICY" >/dev/null
  as_root chmod 755 "$POLICY"
}

services_stay_off_done() {
  trap - EXIT
  if grep -qs "$POLICY_MARK" "$POLICY"; then
    as_root rm -f "$POLICY"
  fi
  # The package enables its service for the next boot; who had no SSH server before shall have none after.
  if [ -z "$SSH_WAS_THERE" ] && have sshd >/dev/null; then
    disable_ssh_service
  fi
}

disable_ssh_service() {
  if have systemctl >/dev/null; then
    logged "keeping the SSH server from starting at boot" as_root systemctl disable ssh.service ssh.socket || true
  elif have update-rc.d >/dev/null; then
    logged "keeping the SSH server from starting at boot" as_root update-rc.d ssh disable || true
  fi
}

redis_found() { have redis-server || have redis-check-rdb; }

# Redis' server and its checker are one program that goes by its name.
link_redis() {
  have redis-server >/dev/null || ln -sf "$(command -v redis-check-rdb)" "$VENV/bin/redis-server"
}

# --- .venv ----------------------------------------------------------------------------------------------

PYTHON=

# A version of pyenv's that is not switched on, a Python without ssl, a Debian without python3-venv: each looks
# like a Python until it is used. So it is used.
python_serves() {
  local trial code=0
  "$1" -c 'import ensurepip, fcntl, sqlite3, ssl, sys, venv, zlib; sys.exit(sys.version_info < (3, 11))' || return 1
  trial=$(mktemp -d)
  "$1" -m venv "$trial/venv" && "$trial/venv/bin/python" -m pip --version || code=1
  rm -rf "$trial"
  return "$code"
}

python_found() {
  [ -z "$PYTHON" ] || return 0
  if venv_works; then
    PYTHON=$VENV/bin/python
    return 0
  fi
  local candidate
  for candidate in ${KEXEC_FLEET_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3}; do
    if python_serves "$candidate" >>"$LOG" 2>&1; then
      PYTHON=$candidate
      return 0
    fi
  done
  return 1
}

# A .venv that was moved, whose Python is gone or another than asked for, or whose making was interrupted is made
# anew.
venv_works() {
  [ ! -e "$VENV/.unfinished" ] && grep -qsF "$VENV" "$VENV/bin/activate" && venv_has_right_python &&
    "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

venv_has_right_python() {
  local base='import sys; print(sys.base_prefix)'
  [ -z "${KEXEC_FLEET_PYTHON:-}" ] ||
    [ "$("$KEXEC_FLEET_PYTHON" -c "$base" 2>/dev/null)" = "$("$VENV/bin/python" -c "$base" 2>/dev/null)" ]
}

# What .venv was made from. Another Python, pyproject.toml or choice of extras gives another stamp.
venv_stamp() {
  { "$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)' && echo "$VENV $1" && cat "$ROOT/pyproject.toml"; } |
    sha256sum | cut -d' ' -f1
}

venv_is_current() {
  [ "$(cat "$VENV/.stamp" 2>/dev/null)" = "$(venv_stamp "$1")" ] &&
    "$VENV/bin/python" -c 'import orchestrator, workers' 2>>"$LOG"
}

# make_venv EXTRAS ("" or "[dev]")
make_venv() {
  local extras=$1
  if venv_works && venv_is_current "$extras"; then
    say ".venv: up to date"
    return
  fi
  if ! venv_works; then
    logged ".venv: making it with $PYTHON" fresh_venv || die "could not make $VENV"
  fi
  # In place from here: pip changes only what differs. The mark makes an interrupted change start anew.
  rm -f "$VENV/.stamp"
  pip_install "$extras" || die "could not install the Python packages; is the package index within reach?"
  PYTHON=$VENV/bin/python
  venv_stamp "$extras" >"$VENV/.stamp"
  rm -f "$VENV/.unfinished"
}

fresh_venv() {
  rm -rf "$VENV"
  mkdir -p "$VENV"
  touch "$VENV/.unfinished"
  "$PYTHON" -m venv "$VENV"
}

# Downloads are cached by pip under XDG_CACHE_HOME. The last try goes without that cache: it may be what is broken.
pip_install() {
  local try options=()
  touch "$VENV/.unfinished"
  for ((try = 1; try <= PIP_TRIES; try++)); do
    [ "$try" -lt "$PIP_TRIES" ] || options=(--no-cache-dir)
    logged ".venv: installing the Python packages (try $try of $PIP_TRIES)" "$VENV/bin/python" -m pip install \
      --no-input --disable-pip-version-check --retries 5 "${options[@]}" -e "$ROOT$1" && return 0
    [ "$try" -eq "$PIP_TRIES" ] || sleep $((try * 5))
  done
  return 1
}

# --- all of it ------------------------------------------------------------------------------------------

check_machine() {
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "only Linux on x86-64 is supported, this is $(uname -sm)"
  local name
  # shellcheck disable=SC1091 # the machine's own file
  name=$(. /etc/os-release && echo "$ID-${VERSION_ID:-}")
  case $name in
  debian-12 | debian-13 | ubuntu-24.04) ;;
  *) say "notice: this is $name; Debian 12, Debian 13 and Ubuntu 24.04 are what the set-up is written for" ;;
  esac
}

# set_up demo|test
set_up() {
  check_machine
  mkdir -p "$(dirname "$LOG")"
  # Two set-ups at once in one tree would build one .venv; the second waits, and then finds it done.
  exec 9>"$ROOT/build/setup.lock"
  flock -n 9 || { say "another set-up is at work in this tree; waiting for it" && flock 9; }
  : >"$LOG"
  [ -z "${KEXEC_FLEET_PYTHON:-}" ] || python_found ||
    die "KEXEC_FLEET_PYTHON=$KEXEC_FLEET_PYTHON does not serve: it takes Python 3.11 or newer, with venv; see $LOG"
  install_packages "$1"
  note_keyring
  case $1 in
  test)
    make_venv '[dev]'
    link_redis
    ;;
  *) has_dev_already || make_venv '' ;;
  esac
  export PATH=$VENV/bin:$PATH
  exec 9>&-
}

# The tests' .venv has all that the demo needs: do not tear it down and back up between the two.
has_dev_already() {
  venv_works && PYTHON=$VENV/bin/python && venv_is_current '[dev]' && say ".venv: up to date"
}
