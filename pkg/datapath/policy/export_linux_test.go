package policy

import "flock.fritzlab.net/flock/pkg/netlink/nft"

// WrapCommit has f called for each transaction from now on, with their number.
func (t *Table) WrapCommit(f func(count int, commit func() error) error) {
	commit, count := t.commit, -1
	t.commit = func(b *nft.Batch) error {
		count++
		return f(count, func() error { return commit(b) })
	}
}
