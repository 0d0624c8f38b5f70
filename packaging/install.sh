#!/bin/sh
# Installs skiff on this machine and ends when its node is Ready.
#
#   sudo packaging/install.sh                                  a cluster of one node
#   sudo SKIFF_URL=https://HOST:6443 SKIFF_TOKEN=... packaging/install.sh
#                                                              a node that joins HOST
#
# Environment:
#   SKIFF_BINARY            use this binary instead of building one
#   INSTALL_SKIFF_URL       download the binary from there instead of building one
#   INSTALL_SKIFF_SHA256    what the download's SHA-256 must be
#   INSTALL_SKIFF_EXEC      further arguments of `skiff server` or `skiff agent`
#   INSTALL_SKIFF_TIMEOUT   seconds to wait for the node to be Ready (default 180)
#   SKIFF_*                 settings of skiff, kept for its later starts
#
# Run again it changes only what is different. /etc/skiff/installed lists what
# was made; `skiff uninstall` takes exactly that away again.
set -eu

BIN=/usr/local/bin/skiff
CONFIG_DIR=/etc/skiff
RECORD=$CONFIG_DIR/installed
RUN_DIR=/run/skiff
PID_FILE=$RUN_DIR/skiff.pid
LOG_FILE=/var/log/skiff.log
UNIT_DIR=/etc/systemd/system
# The oldest compiler that builds skiff: rust-version in Cargo.toml.
RUST_MINOR=90

SOURCE=$(cd "$(dirname "$0")/.." && pwd)
TIMEOUT=${INSTALL_SKIFF_TIMEOUT:-180}
WORK=
POLICY=/usr/sbin/policy-rc.d
POLICY_SAVED=

say() {
    echo "[skiff] $*"
}

die() {
    echo "[skiff] error: $*" >&2
    exit 1
}

clean_up() {
    allow_starts
    if [ -n "$WORK" ]; then
        rm -rf "$WORK"
    fi
}

# ------------------------------------------------------------------ record

# made file PATH | made package NAME
made() {
    if [ ! -d "$CONFIG_DIR" ]; then
        mkdir -p "$CONFIG_DIR"
    fi
    if ! grep -qxF "$1 $2" "$RECORD" 2>/dev/null; then
        echo "$1 $2" >>"$RECORD"
    fi
}

# put MODE FROM TO: installs a file if it differs; succeeds if it did.
put() {
    if cmp -s "$2" "$3" && [ "$(stat -c %a "$3")" = "$1" ]; then
        return 1
    fi
    # Renamed into place: nobody ever sees half a file, and a running binary
    # can be replaced.
    rm -f "$3.new"
    made file "$3"
    { (umask 077 && cp "$2" "$3.new") && chmod "$1" "$3.new" && mv -f "$3.new" "$3"; } || die "cannot write $3"
}

# ---------------------------------------------------------------- packages

# Installing a daemon must not start it: skiff runs a containerd of its own.
forbid_starts() {
    POLICY_SAVED=$WORK/policy-rc.d
    if [ -e "$POLICY" ]; then
        cp -p "$POLICY" "$POLICY_SAVED"
    fi
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

allow_starts() {
    if [ -z "$POLICY_SAVED" ]; then
        return
    fi
    if [ -e "$POLICY_SAVED" ]; then
        cp -p "$POLICY_SAVED" "$POLICY"
    else
        rm -f "$POLICY"
    fi
    POLICY_SAVED=
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

install_packages() {
    if [ $# -eq 0 ]; then
        return
    fi
    command -v apt-get >/dev/null || die "missing: $*; install what corresponds to these Debian packages, then run this again"
    say "installing packages: $*"
    forbid_starts
    apt update || die "apt-get update failed: is this machine online?"
    apt install --no-install-recommends "$@" || die "apt-get could not install $*"
    allow_starts
    for name in "$@"; do
        made package "$name"
    done
}

installed() {
    case $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null || true) in
        "install ok installed") return 0 ;;
    esac
    return 1
}

runtime_packages() {
    PATH_BEFORE=$PATH
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
    missing=
    command -v containerd >/dev/null && command -v containerd-shim-runc-v2 >/dev/null || missing="containerd"
    command -v runc >/dev/null || missing="$missing runc"
    PATH=$PATH_BEFORE
    # shellcheck disable=SC2086 # a list
    install_packages $missing
    case $missing in
        *containerd*)
            # The package would start its service at the next boot.
            if command -v systemctl >/dev/null; then
                systemctl disable containerd.service >/dev/null 2>&1 || true
            fi
            ;;
    esac
}

# ------------------------------------------------------------------ binary

# Leaves the binary to install in $NEW.
get_binary() {
    if [ -n "${SKIFF_BINARY:-}" ]; then
        [ -f "$SKIFF_BINARY" ] || die "SKIFF_BINARY names $SKIFF_BINARY, which is no file"
        NEW=$SKIFF_BINARY
    elif [ -n "${INSTALL_SKIFF_URL:-}" ]; then
        download
    else
        build
    fi
    "$NEW" --version >/dev/null 2>&1 || die "$NEW does not run on this machine ($(uname -m)): is it for another architecture?"
}

download() {
    NEW=$WORK/skiff
    say "downloading $INSTALL_SKIFF_URL"
    if command -v curl >/dev/null; then
        curl -fsSL --retry 3 -o "$NEW" "$INSTALL_SKIFF_URL" || die "cannot download $INSTALL_SKIFF_URL"
    elif command -v wget >/dev/null; then
        wget -q -O "$NEW" "$INSTALL_SKIFF_URL" || die "cannot download $INSTALL_SKIFF_URL"
    else
        die "neither curl nor wget is installed: apt-get install curl"
    fi
    if [ -n "${INSTALL_SKIFF_SHA256:-}" ]; then
        sum=$(sha256sum "$NEW" | cut -d' ' -f1)
        [ "$sum" = "$INSTALL_SKIFF_SHA256" ] \
            || die "the download's SHA-256 is $sum, not $INSTALL_SKIFF_SHA256 as asked for: nothing was installed"
    fi
    chmod 755 "$NEW"
}

# With the user's own compiler: root rarely has one.
build() {
    [ -f "$SOURCE/Cargo.toml" ] || die "$SOURCE is not a checkout of skiff: set SKIFF_BINARY or INSTALL_SKIFF_URL"
    missing=
    command -v cc >/dev/null || missing="gcc"
    command -v pkg-config >/dev/null || missing="$missing pkg-config"
    command -v protoc >/dev/null || missing="$missing protobuf-compiler"
    for name in libc6-dev libnftnl-dev libmnl-dev; do
        installed "$name" || missing="$missing $name"
    done
    # shellcheck disable=SC2086 # a list
    install_packages $missing

    user=${SUDO_USER:-$(id -un)}
    home=$(getent passwd "$user" | cut -d: -f6)
    target=${CARGO_TARGET_DIR:-$SOURCE/target}
    # The target folder is named outright so that it is known where to look.
    # shellcheck disable=SC2016 # for the inner shell
    script='
        PATH="$PATH:$HOME/.cargo/bin"
        command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }
        minor=$(rustc -V | cut -d. -f2)
        [ "$minor" -ge "$1" ] || { echo "$(rustc -V) is too old: 1.$1 is needed (rustup update)" >&2; exit 1; }
        cd "$2" && cargo build --release --locked -p skiff --target-dir "$3"
    '
    say "building skiff (the first time takes a while)"
    if [ "$user" = "$(id -un)" ]; then
        HOME=${home:-$HOME} sh -c "$script" build "$RUST_MINOR" "$SOURCE" "$target" >&2 || die "skiff could not be built"
    else
        runuser -u "$user" -- env HOME="$home" PATH="$PATH" sh -c "$script" build "$RUST_MINOR" "$SOURCE" "$target" >&2 \
            || die "skiff could not be built as $user"
    fi
    NEW=$(find "$target" -path '*/release/skiff' -type f -printf '%T@ %p\n' \
        | sort -n | tail -n 1 | cut -d' ' -f2-)
    [ -n "$NEW" ] || die "the build left no binary below $target"
}

# ---------------------------------------------------------------- settings

# Leaves `server` or `agent` in $ROLE.
choose_role() {
    had=
    for role in server agent; do
        if grep -qx "file $(env_file "$role")" "$RECORD" 2>/dev/null; then
            had=$role
        fi
    done
    if [ -n "${SKIFF_URL:-}" ]; then
        ROLE=agent
        [ "$had" = agent ] || [ -n "${SKIFF_TOKEN:-}${SKIFF_TOKEN_FILE:-}" ] \
            || die "SKIFF_URL needs SKIFF_TOKEN: run \`skiff token create\` on the server"
    elif [ -n "${SKIFF_TOKEN:-}${SKIFF_TOKEN_FILE:-}" ]; then
        die "SKIFF_TOKEN needs SKIFF_URL=https://HOST:6443, the server to join"
    else
        ROLE=${had:-server}
    fi
    if [ -n "$had" ] && [ "$had" != "$ROLE" ]; then
        die "this machine is a skiff $had: run \`skiff uninstall\` first to make it a skiff $ROLE"
    fi
}

env_file() {
    if [ -d /run/systemd/system ]; then
        echo "$UNIT_DIR/skiff-$1.service.env"
    else
        echo "$CONFIG_DIR/skiff-$1.env"
    fi
}

# NAME="value", understood alike by systemd and by the shell.
setting() {
    case $2 in
        *'
'*) die "$1 has more than one line" ;;
    esac
    printf '%s="%s"\n' "$1" "$(printf '%s' "$2" | sed 's/[\\"$`]/\\&/g')"
}

write_settings() {
    (
        umask 077
        for name in $(env | sed -n 's/^\(SKIFF_[A-Z0-9_]*\)=.*/\1/p' | sort); do
            case $name in
                SKIFF_BINARY | SKIFF_ARGS) ;;
                *) eval "setting $name \"\${$name}\"" ;;
            esac
        done
        if [ -n "${INSTALL_SKIFF_EXEC:-}" ]; then
            setting SKIFF_ARGS "$INSTALL_SKIFF_EXEC"
        fi
    ) >"$WORK/env" || exit 1
    # Without a word about settings those of the last time stay.
    if [ ! -s "$WORK/env" ] && [ -f "$ENV_FILE" ]; then
        return 1
    fi
    put 600 "$WORK/env" "$ENV_FILE"
}

# ------------------------------------------------------------------- start

start_with_systemd() {
    unit=skiff-$ROLE.service
    [ -f "$SOURCE/systemd/$unit" ] || die "$SOURCE/systemd/$unit is missing: run this from a checkout"
    if put 644 "$SOURCE/systemd/$unit" "$UNIT_DIR/$unit"; then
        CHANGED=1
        systemctl daemon-reload
    fi
    systemctl is-enabled -q "$unit" 2>/dev/null || systemctl enable -q "$unit"
    if [ -z "$CHANGED" ] && systemctl is-active -q "$unit"; then
        return
    fi
    CHANGED=1
    say "starting $unit"
    # Type=notify: comes back when skiff says that it is up.
    if ! timeout "$TIMEOUT" systemctl restart "$unit"; then
        systemctl stop "$unit" || true
        journalctl -u "$unit" -t skiff -n 20 --no-pager -o cat >&2 || true
        die "skiff $ROLE did not start (see above); correct that and run this again"
    fi
}

running() {
    PID=$(cat "$PID_FILE" 2>/dev/null || true)
    [ -n "$PID" ] && [ "$(cat "/proc/$PID/comm" 2>/dev/null || true)" = skiff ]
}

# Pods go on running.
stop_in_background() {
    kill "$1" 2>/dev/null || true
    timeout 30 tail --pid="$1" -f /dev/null || kill -9 "$1" 2>/dev/null || true
    rm -f "$PID_FILE"
}

start_in_background() {
    if running; then
        if [ -z "$CHANGED" ]; then
            return
        fi
        say "restarting skiff $ROLE"
        stop_in_background "$PID"
    else
        say "starting skiff $ROLE in the background (systemd does not run here)"
    fi
    CHANGED=1
    mkdir -p "$RUN_DIR"
    made file "$LOG_FILE"
    touch "$LOG_FILE"
    chmod 600 "$LOG_FILE"
    (
        set -a
        # shellcheck disable=SC1090 # written above
        . "$ENV_FILE"
        set +a
        unset SKIFF_BINARY
        cd /
        # shellcheck disable=SC2086 # arguments are separated by blanks, as in the unit
        exec setsid "$BIN" "$ROLE" ${SKIFF_ARGS:-} </dev/null >>"$LOG_FILE" 2>&1
    ) &
    PID=$!
    echo "$PID" >"$PID_FILE"
}

wait_until_ready() {
    if [ -d /run/systemd/system ]; then
        "$BIN" status --wait "$TIMEOUT" && return
        journalctl -u "skiff-$ROLE.service" -t skiff -n 20 --no-pager -o cat >&2 || true
        die "skiff $ROLE runs, but is not ready (see above)"
    fi
    "$BIN" status --wait "$TIMEOUT" --pid "$PID" && return
    tail -n 20 "$LOG_FILE" >&2
    if running; then
        die "skiff $ROLE runs, but is not ready (see above); the whole log is $LOG_FILE"
    fi
    rm -f "$PID_FILE"
    die "skiff $ROLE did not start (see above); correct that and run this again"
}

# What the running skiff says about itself.
about() {
    sed -n "s/^ *\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" "$RUN_DIR/skiff.json"
}

say_what_next() {
    if [ "$ROLE" = server ]; then
        server=$(about server)
        kubeconfig=$(about kubeconfig)
        data=$(dirname "$(about agentDir)")
        echo
        echo "kubeconfig:  $kubeconfig"
        echo "             export KUBECONFIG=$kubeconfig; kubectl get nodes"
        echo "join:        sudo SKIFF_URL=$server SKIFF_TOKEN=$(cat "$data/server/node-token") packaging/install.sh"
        echo "             (on another machine; \`skiff token create\` prints tokens that expire)"
        echo "next:        sudo skiff selftest"
    else
        echo
        echo "next:        kubectl get nodes, on the server"
    fi
    if [ -d /run/systemd/system ]; then
        echo "stop:        sudo systemctl stop skiff-$ROLE (pods go on running)"
    else
        echo "stop:        sudo kill \$(cat $PID_FILE) (pods go on running); its log is $LOG_FILE"
    fi
    echo "remove:      sudo skiff uninstall"
}

main() {
    [ "$(id -u)" = 0 ] || die "must run as root: sudo $0"
    [ "$(uname -s)" = Linux ] || die "skiff runs on Linux only"
    case $TIMEOUT in
        '' | *[!0-9]*) die "INSTALL_SKIFF_TIMEOUT must be a number of seconds, not '$TIMEOUT'" ;;
    esac
    WORK=$(mktemp -d)
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    CHANGED=
    choose_role
    get_binary
    runtime_packages
    if put 755 "$NEW" "$BIN"; then
        say "installed $BIN ($("$BIN" --version))"
        CHANGED=1
    fi
    ENV_FILE=$(env_file "$ROLE")
    if write_settings; then
        CHANGED=1
    fi
    if [ -d /run/systemd/system ]; then
        start_with_systemd
    else
        start_in_background
    fi
    wait_until_ready
    if [ -z "$CHANGED" ]; then
        say "nothing had to be changed"
    fi
    say_what_next
}

main "$@"
