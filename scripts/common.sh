# Read by the other scripts with `.`; needs bash. Sets ROOT (the repository)
# and CACHE (downloads, kept across clones and keyed by version).
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${SEALROOT_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/sealroot}
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

say() { printf 'sealroot: %s\n' "$*" >&2; }
die() { printf 'sealroot: error: %s\n' "$*" >&2; exit 1; }

# as_root runs a command as root: directly, or through sudo.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo -- "$@"
	else
		die "must be root for: $* (there is no sudo on this machine)"
	fi
}

# lock NAME holds an exclusive lock until the script ends, so that two makes
# do not fill the same place of the cache at once.
lock() {
	mkdir -p "$CACHE/locks"
	exec 9>"$CACHE/locks/$1"
	flock 9
}

# debian_mirror prints the base address of the Debian archive that this
# machine's apt uses for the given release; nothing when it uses none.
debian_mirror() {
	apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' "Codename: $1" 'Origin: Debian' 2>/dev/null | sort -u | head -n 1
}
