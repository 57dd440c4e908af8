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

# patiently COMMAND... runs what reads from the network, at most three times.
patiently() {
	local seconds
	for seconds in 5 20; do
		"$@" && return
		say "failed, again in $seconds s: $*"
		sleep "$seconds"
	done
	"$@"
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

# own_apt DIR SUITE sets APT to the options of an apt that knows this suite of
# Debian 12's archive alone and keeps all it has in DIR, so that nothing in /etc or
# /var changes; its package list is read.
own_apt() {
	local dir=$1 suite=$2 mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	mirror=$(debian_mirror bookworm)
	[ -n "$mirror" ] || die "apt on this machine knows no Debian 12 (bookworm) archive, which $suite is part of"
	[ -f $keyring ] || die "$keyring is missing: install debian-archive-keyring"
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	echo "deb [signed-by=$keyring] $mirror $suite main" >"$dir/sources.list"
	APT=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache"
		-o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
	patiently apt-get -q "${APT[@]}" update -eany >"$dir/log" 2>&1 || { cat "$dir/log" >&2; die "cannot read the package list of $suite"; }
}

# fetch_packages DIR PACKAGE... downloads packages into DIR by the apt of own_apt.
fetch_packages() {
	local dir=$1
	shift
	(cd "$dir" && patiently download "$@") >"$dir/log" 2>&1 ||
		{ cat "$dir/log" >&2; die "cannot download $*"; }
}

# download PACKAGE... reads the package list again when that fails: what it names may be
# gone from the archive since.
download() {
	apt-get -q "${APT[@]}" download "$@" && return
	apt-get -q "${APT[@]}" update -eany
	return 1
}
