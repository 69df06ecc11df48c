package fabric

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/state"
)

// Cut drops everything between a node and the LAN, in both directions, as when a node
// fails behind a switch: no link goes down, and neither the router nor the node is
// notified. A second Cut changes nothing.
func Cut(dir state.Dir, node string) error { return port(dir, node, portDisabled) }

// Restore undoes Cut.
func Restore(dir state.Dir, node string) error { return port(dir, node, portForwarding) }

// States of a bridge's port (IEEE 802.1D, linux/if_bridge.h).
const (
	portDisabled   = 0
	portForwarding = 3
)

func port(dir state.Dir, node string, state byte) error {
	if err := member.Of(dir, plan.Tor).InNet(func() error { return setPort(node, state) }); err != nil {
		return fmt.Errorf("the router's port of %s: %w", node, err)
	}
	return nil
}

// setPort sets the state of a port in this thread's namespace.
func setPort(name string, state byte) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{state})
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set its state to %d: %w", state, err)
	}
	return nil
}
