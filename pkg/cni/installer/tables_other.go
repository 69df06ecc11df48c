//go:build !linux

package installer

// RemoveTables does nothing: only Linux has nftables.
func (i *Installer) RemoveTables() error { return nil }
