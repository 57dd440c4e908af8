// Package qemutests holds the tests that boot whole machines in QEMU. The
// machines are in package machine; here is what tests say about them. Run them
// by `make test RUN=TestName`; consoles are kept in build/qemu-logs/.
package qemutests
