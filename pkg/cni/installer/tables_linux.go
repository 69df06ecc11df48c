package installer

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

// RemoveTables deletes flock's nftables tables in the calling thread's network namespace,
// unless pods of flock are left: their
// policies and source addresses stay enforced until they end.
func (i *Installer) RemoveTables() error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	pods := 0
	for _, l := range links {
		if kernel.IsLink(l.Name) {
			pods++
		}
	}
	conn, err := nft.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	var b nft.Batch
	var tables []nft.Table
	for _, family := range []nft.Family{nft.Inet, nft.ARP, nft.IPv4, nft.IPv6} {
		for _, name := range kernel.Tables {
			t := nft.Table{Family: family, Name: name}
			switch _, err := conn.Contents(t); {
			case errors.Is(err, unix.ENOENT):
			case errors.Is(err, unix.EPERM):
				i.Log.Warn("nftables tables of flock are left in place: the container lacks the capability NET_ADMIN", "remedy", "nft delete table inet "+kernel.PolicyTable+" and so on, or uninstall again with the capability")
				return nil
			case err != nil:
				return err
			default:
				tables = append(tables, t)
				b.DelTable(t)
			}
		}
	}
	switch {
	case len(tables) == 0:
		return nil
	case pods > 0:
		i.Log.Warn("nftables tables of flock are left in force, because pods of flock are left; uninstall again when they have ended", "pods", pods, "tables", tables)
		return nil
	}
	if err := conn.Commit(&b); err != nil {
		return err
	}
	i.Log.Info("removed", "tables", tables)
	return nil
}
